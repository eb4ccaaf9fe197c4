// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/kernel.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "iobmd_descriptor.h"
#include "iobmd_map.h"
#include "iobmd_placement.h"
#include "iobmd_storage.h"
#include "iobmd_transfer.h"
#include "iobmd_wiring.h"

static atomic_t live = ATOMIC_INIT(0);

/* Where this is not so, nothing below may be called. */
static bool may_sleep(void)
{
	return !in_atomic() && !irqs_disabled();
}

static struct iobmd_descriptor *allocate(const struct iobmd_create *call,
					 const struct iobmd_request *request,
					 const struct iobmd_plan *plan)
{
	struct iobmd_descriptor *made = kzalloc(sizeof(*made), GFP_KERNEL);

	if (!made)
		return NULL;
	kref_init(&made->refs);
	mutex_init(&made->lock);
	INIT_LIST_HEAD(&made->maps);
	INIT_LIST_HEAD(&made->ranges);
	made->capacity = plan->capacity;
	made->length = plan->capacity;
	made->direction = request->options & kIOMemoryDirectionMask;
	made->read_only = iobmd_is_out_only(made->direction);
	made->alignment = plan->alignment;
	made->mask = plan->mask == IOBMD_ANY_ADDRESS ? 0 : plan->mask;
	made->options = request->options;
	made->task = request->task;
	if (call->factory == IOBMD_IN_TASK_WITH_OPTIONS_TAGGED) {
		made->kernel_tag = call->kernel_tag;
		made->user_tag = call->user_tag;
	}
	return made;
}

/* Wired memory is prepared; pageable memory is at an address in its task. */
static int settle_in(struct iobmd_descriptor *descriptor, const char **reason)
{
	struct iobmd_map *map;
	int error;

	if (!descriptor->memory.is_pageable) {
		descriptor->prepared = 1;
		return iobmd_memory_wire(&descriptor->memory);
	}
	switch (descriptor->task) {
	case IOBMD_TASK_KERNEL:
		error = iobmd_memory_open_own(&descriptor->memory);
		return error ? iobmd_refuse(
				       reason, error,
				       "no kernel mapping for the pageable buffer") :
			       0;
	case IOBMD_TASK_CURRENT:
		map = iobmd_map_range(descriptor, true, reason);
		return PTR_ERR_OR_ZERO(map);
	default:
		return 0;
	}
}

/* Preloaded whatever the direction: no transfer has begun yet. */
static int fill(struct iobmd_descriptor *descriptor,
		const struct iobmd_create *call, const char **reason)
{
	int error = settle_in(descriptor, reason);

	if (error || (call->factory != IOBMD_WITH_BYTES &&
		      call->factory != IOBMD_WITH_COPY))
		return error;
	error = iobmd_preload(descriptor, u64_to_user_ptr(call->bytes));
	if (error && call->factory == IOBMD_WITH_COPY)
		return iobmd_refuse(
			reason, error,
			"the source is not mapped in the calling process");
	return error;
}

static int make(const struct iobmd_create *call,
		const struct iobmd_request *request,
		const struct iobmd_plan *plan,
		struct iobmd_descriptor **descriptor, const char **reason)
{
	struct iobmd_descriptor *made;
	int error;

	made = allocate(call, request, plan);
	if (!made)
		return iobmd_refuse(reason, -ENOMEM,
				    "no memory for the descriptor itself");
	error = iobmd_memory_create(&made->memory, plan, request->options,
				    reason);
	if (error) {
		kfree(made);
		return error;
	}
	made->creator = get_pid(task_tgid(current));
	atomic_inc(&live);
	error = fill(made, call, reason);
	if (error) {
		iobmd_descriptor_release(made);
		return error;
	}
	*descriptor = made;
	return 0;
}

/**
 * iobmd_descriptor_create - run a factory
 * @call: the arguments
 * @descriptor: set on success, for iobmd_descriptor_release()
 * @reason: where Apple's factory returns NULL, a static sentence that says why;
 *	NULL where the call itself is at fault
 *
 * Refuses where it may not sleep.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_descriptor_create(const struct iobmd_create *call,
			    struct iobmd_descriptor **descriptor,
			    const char **reason)
{
	struct iobmd_request request;
	struct iobmd_limits limits;
	struct iobmd_plan plan;
	int error;

	*reason = NULL;
	error = iobmd_request_from(call, &request);
	if (error)
		return error;
	if (!may_sleep())
		return iobmd_refuse(
			reason, -EWOULDBLOCK,
			"creation may block: not with interrupts off or a simple lock held");
	iobmd_storage_limits(&limits);
	error = iobmd_place(&request, &limits, &plan, reason);
	if (error)
		return error;
	return make(call, &request, &plan, descriptor, reason);
}

static void destroy(struct kref *refs)
{
	struct iobmd_descriptor *descriptor =
		container_of(refs, struct iobmd_descriptor, refs);

	iobmd_memory_destroy(&descriptor->memory);
	put_pid(descriptor->creator);
	kfree(descriptor);
	atomic_dec(&live);
}

/**
 * iobmd_descriptor_get - one more user
 * @descriptor: self
 */
void iobmd_descriptor_get(struct iobmd_descriptor *descriptor)
{
	kref_get(&descriptor->refs);
}

/**
 * iobmd_descriptor_put - one user less; the last one frees the buffer
 * @descriptor: self
 */
void iobmd_descriptor_put(struct iobmd_descriptor *descriptor)
{
	kref_put(&descriptor->refs, destroy);
}

/**
 * iobmd_descriptor_release - release()
 * @descriptor: what iobmd_descriptor_create() made
 *
 * The buffer lives on while something maps it.
 */
void iobmd_descriptor_release(struct iobmd_descriptor *descriptor)
{
	iobmd_map_release_ranges(descriptor);
	iobmd_descriptor_put(descriptor);
}

/** iobmd_descriptors_live - how many descriptors exist now */
u32 iobmd_descriptors_live(void)
{
	return atomic_read(&live);
}

/**
 * iobmd_get_capacity - getCapacity()
 * @descriptor: self
 *
 * Return: the bytes asked for at creation, not rounded.
 */
u64 iobmd_get_capacity(const struct iobmd_descriptor *descriptor)
{
	return descriptor->capacity;
}

/**
 * iobmd_get_length - getLength()
 * @descriptor: self
 *
 * Return: bytes in use.
 */
u64 iobmd_get_length(const struct iobmd_descriptor *descriptor)
{
	return READ_ONCE(descriptor->length);
}

/**
 * iobmd_set_length - setLength()
 * @descriptor: self
 * @length: bytes; beyond the capacity it is ignored and counted
 * @accepted: set to whether it was not
 *
 * Contents stay as they are, below and above @length.
 *
 * Return: 0, or -EINTR if killed while waiting.
 */
int iobmd_set_length(struct iobmd_descriptor *descriptor, u64 length,
		     bool *accepted)
{
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	*accepted = length <= descriptor->capacity;
	if (*accepted)
		WRITE_ONCE(descriptor->length, length);
	else
		descriptor->refused_lengths++;
	mutex_unlock(&descriptor->lock);
	return 0;
}

/**
 * iobmd_get_direction - getDirection()
 * @descriptor: self
 *
 * Return: the current direction, three bits.
 */
u32 iobmd_get_direction(const struct iobmd_descriptor *descriptor)
{
	return READ_ONCE(descriptor->direction);
}

/**
 * iobmd_is_out_only - memory the device only reads
 * @direction: an IODirection
 *
 * Such memory is not written by the driver's copies.
 */
bool iobmd_is_out_only(u32 direction)
{
	return (direction & kIODirectionInOut) == kIODirectionOut;
}

/**
 * iobmd_set_direction - setDirection()
 * @descriptor: self
 * @direction: an IODirection
 *
 * Takes effect at once, also on a prepared buffer: what it was prepared for
 * before does not bind it.
 *
 * Return: 0, or -EINTR if killed while waiting.
 */
int iobmd_set_direction(struct iobmd_descriptor *descriptor, u32 direction)
{
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	WRITE_ONCE(descriptor->direction, direction & kIOMemoryDirectionMask);
	descriptor->read_only = iobmd_is_out_only(direction);
	mutex_unlock(&descriptor->lock);
	return 0;
}

/**
 * iobmd_get_bytes_no_copy - getBytesNoCopy()
 * @descriptor: self
 *
 * Return: the address of the first byte in the task the buffer was created in,
 * whatever the length; 0 if it lives nowhere.
 */
u64 iobmd_get_bytes_no_copy(struct iobmd_descriptor *descriptor)
{
	if (descriptor->task == IOBMD_TASK_CURRENT)
		return iobmd_map_first_range(descriptor);
	return (unsigned long)iobmd_memory_address(&descriptor->memory);
}

/**
 * iobmd_get_bytes_no_copy_at - getBytesNoCopy(start, withLength)
 * @descriptor: self
 * @window: @start and @length in; @address out, 0 unless all of the window
 *	lies under the current length
 */
void iobmd_get_bytes_no_copy_at(struct iobmd_descriptor *descriptor,
				struct iobmd_window *window)
{
	u64 length = iobmd_get_length(descriptor);

	window->address = 0;
	if (window->start < length && window->length <= length - window->start)
		window->address =
			iobmd_get_bytes_no_copy(descriptor) + window->start;
}

/**
 * iobmd_get_physical_segment - getPhysicalSegment()
 * @descriptor: self
 * @segment: @offset in; @address and @length out, 0 at or after the end, and
 *	while the buffer is not prepared
 *
 * The run is clipped to the current length.
 */
void iobmd_get_physical_segment(struct iobmd_descriptor *descriptor,
				struct iobmd_segment *segment)
{
	segment->address = 0;
	segment->length = 0;
	mutex_lock(&descriptor->lock);
	if (descriptor->prepared && segment->offset < descriptor->length)
		segment->address = iobmd_memory_segment(&descriptor->memory,
							segment->offset,
							descriptor->length,
							&segment->length);
	mutex_unlock(&descriptor->lock);
}

static u32 storage_kind(const struct iobmd_memory *memory)
{
	if (memory->is_pageable)
		return IOBMD_STORAGE_PAGEABLE;
	return memory->backing.chunk_count > 1 ? IOBMD_STORAGE_CHUNKS :
						 IOBMD_STORAGE_RUN;
}

static u64 storage_bytes(const struct iobmd_memory *memory)
{
	if (memory->is_pageable)
		return (u64)memory->page_count << PAGE_SHIFT;
	return memory->backing.bytes;
}

/**
 * iobmd_describe - what no method of Apple's tells
 * @descriptor: self
 * @description: filled in; the memory type is read from the page tables now
 */
void iobmd_describe(struct iobmd_descriptor *descriptor,
		    struct iobmd_description *description)
{
	struct iobmd_memory *memory = &descriptor->memory;

	*description = (struct iobmd_description){
		.kernel_address = (unsigned long)iobmd_memory_address(memory),
		.user_address = iobmd_map_first_range(descriptor),
		.storage = storage_bytes(memory),
		.memory_type = iobmd_memory_type(memory),
		.storage_kind = storage_kind(memory),
		.chunks = memory->backing.chunk_count,
		.prepared = READ_ONCE(descriptor->prepared),
		.alignment = descriptor->alignment,
		.mask = descriptor->mask,
		.refused_lengths = READ_ONCE(descriptor->refused_lengths),
		.held = READ_ONCE(memory->pageable.held_count),
		.kernel_tag = descriptor->kernel_tag,
		.user_tag = descriptor->user_tag,
		.mappings = iobmd_map_count(descriptor),
		.areas = READ_ONCE(memory->areas),
		.guard = memory->backing.guard,
	};
}
