// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/slab.h>

#include "iobmd_copy.h"
#include "iobmd_descriptor.h"
#include "iobmd_placement.h"
#include "iobmd_storage.h"

/**
 * struct iobmd_descriptor - one IOBufferMemoryDescriptor
 * @lock: held by a transfer, and to change @length or @direction
 * @capacity: bytes, as asked at creation
 * @length: bytes in use
 * @refused_lengths: setLength() calls beyond @capacity
 * @direction: the current IODirection
 * @alignment: bytes, from the plan
 * @backing: the memory
 *
 * @capacity, @alignment and @backing are constant and need no lock.
 */
struct iobmd_descriptor {
	struct mutex lock;
	u64 capacity;
	u64 length;
	u64 refused_lengths;
	u32 direction;
	u64 alignment;
	struct iobmd_backing backing;
};

static atomic_t live = ATOMIC_INIT(0);

static int fill(struct iobmd_descriptor *descriptor,
		const struct iobmd_request *request, const char **reason)
{
	struct iobmd_limits limits;
	struct iobmd_plan plan;
	int error;

	iobmd_storage_limits(&limits);
	error = iobmd_place(request, &limits, &plan, reason);
	if (error)
		return error;
	mutex_init(&descriptor->lock);
	descriptor->capacity = request->capacity;
	descriptor->length = request->capacity;
	descriptor->direction = request->options & kIOMemoryDirectionMask;
	descriptor->alignment = plan.alignment;
	return iobmd_backing_create(&descriptor->backing, &plan, reason);
}

/**
 * iobmd_descriptor_create - run a factory
 * @call: the arguments
 * @descriptor: set on success, for iobmd_descriptor_destroy()
 * @reason: where Apple's factory returns NULL, a static sentence that says why;
 *	NULL where the call itself is at fault
 *
 * May sleep.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_descriptor_create(const struct iobmd_create *call,
			    struct iobmd_descriptor **descriptor,
			    const char **reason)
{
	struct iobmd_descriptor *made;
	struct iobmd_request request;
	int error;

	*reason = NULL;
	error = iobmd_request_from(call, &request);
	if (error)
		return error;
	made = kzalloc(sizeof(*made), GFP_KERNEL);
	if (!made)
		return iobmd_refuse(reason, -ENOMEM,
				    "no memory for the descriptor itself");
	error = fill(made, &request, reason);
	if (error) {
		kfree(made);
		return error;
	}
	atomic_inc(&live);
	/* Preloaded whatever the direction: no transfer has begun yet. */
	if (call->factory == IOBMD_WITH_BYTES)
		error = iobmd_copy_in(made->backing.address,
				      u64_to_user_ptr(call->bytes),
				      made->capacity);
	if (error) {
		iobmd_descriptor_destroy(made);
		return error;
	}
	*descriptor = made;
	return 0;
}

/**
 * iobmd_descriptor_destroy - the last release
 * @descriptor: what iobmd_descriptor_create() made; nobody else uses it
 */
void iobmd_descriptor_destroy(struct iobmd_descriptor *descriptor)
{
	iobmd_backing_destroy(&descriptor->backing);
	kfree(descriptor);
	atomic_dec(&live);
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
 *
 * Contents stay as they are, below and above @length.
 *
 * Return: 0, or -EINTR if killed while waiting.
 */
int iobmd_set_length(struct iobmd_descriptor *descriptor, u64 length)
{
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	if (length <= descriptor->capacity)
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
 * iobmd_set_direction - setDirection()
 * @descriptor: self
 * @direction: an IODirection
 *
 * Takes effect at once, also on what writeBytes() may do.
 *
 * Return: 0, or -EINTR if killed while waiting.
 */
int iobmd_set_direction(struct iobmd_descriptor *descriptor, u32 direction)
{
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	WRITE_ONCE(descriptor->direction, direction & kIOMemoryDirectionMask);
	mutex_unlock(&descriptor->lock);
	return 0;
}

/**
 * iobmd_append_bytes - appendBytes()
 * @descriptor: self
 * @transfer: @bytes and @length in; @result out, always true
 *
 * What does not fit under the capacity is cut off.  Ignores the direction.
 *
 * Return: 0, or a negative errno with the length unchanged.
 */
int iobmd_append_bytes(struct iobmd_descriptor *descriptor,
		       struct iobmd_transfer *transfer)
{
	u64 length;
	int error;

	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	length = min(transfer->length,
		     descriptor->capacity - descriptor->length);
	error = iobmd_copy_in(descriptor->backing.address + descriptor->length,
			      u64_to_user_ptr(transfer->bytes), length);
	if (!error) {
		WRITE_ONCE(descriptor->length, descriptor->length + length);
		transfer->result = 1;
	}
	mutex_unlock(&descriptor->lock);
	return error;
}

/* A transfer that leaves the current length moves nothing, not a part. */
static bool is_inside(const struct iobmd_descriptor *descriptor,
		      const struct iobmd_transfer *transfer)
{
	return transfer->offset <= descriptor->length &&
	       transfer->length <= descriptor->length - transfer->offset;
}

/**
 * iobmd_read_bytes - readBytes()
 * @descriptor: self
 * @transfer: @offset, @length and @bytes in; @result out, bytes read
 *
 * Ignores the direction.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_read_bytes(struct iobmd_descriptor *descriptor,
		     struct iobmd_transfer *transfer)
{
	int error = 0;

	transfer->result = 0;
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	if (is_inside(descriptor, transfer)) {
		error = iobmd_copy_out(u64_to_user_ptr(transfer->bytes),
				       descriptor->backing.address +
					       transfer->offset,
				       transfer->length);
		transfer->result = transfer->length;
	}
	mutex_unlock(&descriptor->lock);
	return error;
}

/* Memory the device only reads is not written by the driver's copies. */
static bool is_out_only(const struct iobmd_descriptor *descriptor)
{
	return (descriptor->direction & kIODirectionInOut) == kIODirectionOut;
}

/**
 * iobmd_write_bytes - writeBytes()
 * @descriptor: self
 * @transfer: @offset, @length and @bytes in, NULL @bytes for zeros; @result
 *	out, bytes written
 *
 * Writes nothing while the direction is Out only.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_write_bytes(struct iobmd_descriptor *descriptor,
		      struct iobmd_transfer *transfer)
{
	int error = 0;
	void *to;

	transfer->result = 0;
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	if (is_inside(descriptor, transfer) && !is_out_only(descriptor)) {
		to = descriptor->backing.address + transfer->offset;
		if (transfer->bytes)
			error = iobmd_copy_in(to,
					      u64_to_user_ptr(transfer->bytes),
					      transfer->length);
		else
			error = iobmd_clear(to, transfer->length);
		transfer->result = transfer->length;
	}
	mutex_unlock(&descriptor->lock);
	return error;
}

/**
 * iobmd_get_bytes_no_copy - getBytesNoCopy()
 * @descriptor: self
 *
 * Return: the kernel address of the first byte, whatever the length.
 */
u64 iobmd_get_bytes_no_copy(const struct iobmd_descriptor *descriptor)
{
	return (unsigned long)descriptor->backing.address;
}

/**
 * iobmd_get_bytes_no_copy_at - getBytesNoCopy(start, withLength)
 * @descriptor: self
 * @window: @start and @length in; @address out, 0 unless all of the window
 *	lies under the current length
 */
void iobmd_get_bytes_no_copy_at(const struct iobmd_descriptor *descriptor,
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
 * @segment: @offset in; @address and @length out, 0 at or after the end
 *
 * The run is clipped to the current length.
 */
void iobmd_get_physical_segment(const struct iobmd_descriptor *descriptor,
				struct iobmd_segment *segment)
{
	u64 length = iobmd_get_length(descriptor);

	segment->address = 0;
	segment->length = 0;
	if (segment->offset >= length)
		return;
	segment->address = iobmd_backing_segment(&descriptor->backing,
						 segment->offset, length,
						 &segment->length);
}

/**
 * iobmd_describe - what no method of Apple's tells
 * @descriptor: self
 * @description: filled in; the memory type is read from the page tables now
 */
void iobmd_describe(struct iobmd_descriptor *descriptor,
		    struct iobmd_description *description)
{
	const struct iobmd_backing *backing = &descriptor->backing;

	*description = (struct iobmd_description){
		.kernel_address = (unsigned long)backing->address,
		.storage = (u64)backing->page_count << PAGE_SHIFT,
		.memory_type = iobmd_backing_type(backing),
		.storage_kind = backing->window ? IOBMD_STORAGE_CHUNKS :
						  IOBMD_STORAGE_RUN,
		.chunks = backing->chunk_count,
		.alignment = descriptor->alignment,
		.refused_lengths = READ_ONCE(descriptor->refused_lengths),
	};
}
