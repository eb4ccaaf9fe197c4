// SPDX-License-Identifier: GPL-2.0
#include <linux/kernel.h>
#include <linux/minmax.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <asm/cacheflush.h>

#include "iobmd_purgeable.h"
#include "iobmd_wiring.h"

/* Without a direction of its own prepare() takes the descriptor's. */
static u32 effective(const struct iobmd_descriptor *descriptor, u32 direction)
{
	return direction & kIODirectionInOut ? direction :
					       descriptor->direction;
}

static u32 prepare(struct iobmd_descriptor *descriptor, u32 direction)
{
	bool read_only = iobmd_is_out_only(effective(descriptor, direction));
	int error;

	if (descriptor->prepared) {
		if (descriptor->read_only && !read_only)
			return kIOReturnNotWritable;
		descriptor->prepared++;
		return kIOReturnSuccess;
	}
	error = iobmd_memory_wire(&descriptor->memory);
	if (error)
		return error == -ENOMEM ? kIOReturnNoMemory :
					  kIOReturnCannotWire;
	descriptor->prepared = 1;
	descriptor->read_only = read_only;
	return kIOReturnSuccess;
}

/**
 * iobmd_prepare - prepare()
 * @descriptor: self
 * @wiring: @direction in; @code out
 *
 * Pages in and wires; counts.  The first one decides whether the memory may be
 * written until the last complete(), or the next setDirection().
 *
 * Return: 0, or -EINTR if killed while waiting.
 */
int iobmd_prepare(struct iobmd_descriptor *descriptor,
		  struct iobmd_wiring *wiring)
{
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	wiring->code = prepare(descriptor, wiring->direction);
	mutex_unlock(&descriptor->lock);
	return 0;
}

/**
 * iobmd_complete - complete()
 * @descriptor: self
 * @wiring: @direction in, ignored; @code out, always success
 *
 * Return: 0, or -EINTR if killed while waiting.
 */
int iobmd_complete(struct iobmd_descriptor *descriptor,
		   struct iobmd_wiring *wiring)
{
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	if (descriptor->prepared && !--descriptor->prepared) {
		iobmd_memory_unwire(&descriptor->memory);
		descriptor->read_only =
			iobmd_is_out_only(descriptor->direction);
	}
	wiring->code = kIOReturnSuccess;
	mutex_unlock(&descriptor->lock);
	return 0;
}

/**
 * iobmd_get_flags - getFlags()
 * @descriptor: self
 *
 * Return: the options a descriptor keeps, the direction, and what it is.
 */
u32 iobmd_get_flags(struct iobmd_descriptor *descriptor)
{
	const struct iobmd_memory *memory = &descriptor->memory;
	u32 mode = (descriptor->options & kIOMapCacheMask) >> kIOMapCacheShift;
	u32 flags;

	flags = (descriptor->options & kIOBufferDescriptorMemoryFlags &
		 ~kIOMemoryDirectionMask) |
		kIOMemoryTypeVirtual | kIOMemoryAsReference |
		((mode << kIOMemoryBufferCacheShift) &
		 kIOMemoryBufferCacheMask);
	flags |= memory->is_pageable ? kIOMemoryBufferPageable :
				       kIOMemoryAutoPrepare;
	if (memory->purgeable)
		flags |= kIOMemoryBufferPurgeable;
	mutex_lock(&descriptor->lock);
	flags |= descriptor->direction;
	if (descriptor->prepared && descriptor->read_only)
		flags |= kIOMemoryPreparedReadOnly;
	mutex_unlock(&descriptor->lock);
	return flags;
}

/*
 * Where xnu takes a wired buffer of this size and alignment from: its heap, not
 * whole pages.
 */
static bool is_heap_chunk(const struct iobmd_descriptor *descriptor)
{
	const u32 contiguous = kIOMemoryPhysicallyContiguous |
			       kIOMemoryHostPhysicallyContiguous;

	if (descriptor->alignment >= PAGE_SIZE || descriptor->mask)
		return false;
	if (descriptor->options & contiguous)
		return 2 * descriptor->capacity + 16 <= PAGE_SIZE;
	if (descriptor->alignment > 1)
		return descriptor->capacity + descriptor->alignment < PAGE_SIZE;
	return descriptor->capacity <= SZ_32K;
}

/* A memory entry stands behind pageable, typed and mapped buffers. */
static bool has_memory_entry(struct iobmd_descriptor *descriptor)
{
	struct iobmd_memory *memory = &descriptor->memory;

	return memory->is_pageable || (descriptor->options & kIOMapCacheMask) ||
	       READ_ONCE(memory->areas) || READ_ONCE(memory->wired) > 1;
}

/**
 * iobmd_set_purgeable - setPurgeable()
 * @descriptor: self
 * @purge: @state in; @old_state and @code out
 */
void iobmd_set_purgeable(struct iobmd_descriptor *descriptor,
			 struct iobmd_purge *purge)
{
	u32 state = purge->state & kIOMemoryPurgeableStateMask;

	purge->old_state = 0;
	if (state < kIOMemoryPurgeableKeepCurrent ||
	    state > kIOMemoryPurgeableEmpty) {
		purge->code = kIOReturnBadArgument;
	} else if (descriptor->memory.is_pageable) {
		purge->code = iobmd_purgeable_set(&descriptor->memory, state,
						  &purge->old_state);
	} else {
		if (has_memory_entry(descriptor))
			purge->old_state = kIOMemoryPurgeableNonVolatile;
		purge->code = is_heap_chunk(descriptor) ? KERN_INVALID_ADDRESS :
							  KERN_INVALID_ARGUMENT;
	}
}

/**
 * iobmd_get_page_counts - getPageCounts()
 * @descriptor: self
 * @counts: @resident, @dirty and @code out
 *
 * Wired pages are all in memory, and were all written: with zeros.
 */
void iobmd_get_page_counts(struct iobmd_descriptor *descriptor,
			   struct iobmd_page_counts *counts)
{
	struct iobmd_memory *memory = &descriptor->memory;

	counts->resident = 0;
	counts->dirty = 0;
	counts->code = kIOReturnSuccess;
	if (memory->is_pageable) {
		mutex_lock(&memory->lock);
		iobmd_pageable_count(&memory->pageable, &counts->resident,
				     &counts->dirty);
		mutex_unlock(&memory->lock);
	} else if (has_memory_entry(descriptor)) {
		counts->resident = memory->page_count;
		counts->dirty = memory->page_count;
	} else {
		counts->code = kIOReturnNotReady;
	}
}

/* Written back and dropped line by line, through the address all share. */
static int flush(struct iobmd_descriptor *descriptor, u64 offset, u64 length)
{
	struct iobmd_memory *memory = &descriptor->memory;

	while (length) {
		struct page *page;
		u64 piece;
		void *at;

		at = iobmd_memory_get(memory, offset, &piece, &page);
		if (IS_ERR(at))
			return PTR_ERR(at);
		piece = min(piece, min_t(u64, length, SZ_1M));
		clflush_cache_range(at, piece);
		iobmd_memory_put(memory, page, false);
		offset += piece;
		length -= piece;
		cond_resched();
	}
	return 0;
}

static u32 perform(struct iobmd_descriptor *descriptor,
		   const struct iobmd_operation *operation)
{
	u64 length;

	switch (operation->operation) {
	case kIOMemoryIncoherentIOFlush:
	case kIOMemoryIncoherentIOStore:
	case kIOMemoryClearEncrypted:
	case kIOMemorySetEncrypted:
		break;
	default:
		return kIOReturnUnsupported;
	}
	if (operation->offset > descriptor->length)
		return kIOReturnUnderrun;
	if (!descriptor->prepared)
		return kIOReturnNotReady;
	/* The marks are for hibernation, which takes every page anyway. */
	if (operation->operation >= kIOMemoryClearEncrypted)
		return kIOReturnSuccess;
	length = min(operation->length, descriptor->length - operation->offset);
	return flush(descriptor, operation->offset, length) ?
		       kIOReturnNoMemory :
		       kIOReturnSuccess;
}

/**
 * iobmd_perform_operation - performOperation()
 * @descriptor: self
 * @operation: @operation, @offset and @length in, clipped to the current
 *	length; @code out
 */
void iobmd_perform_operation(struct iobmd_descriptor *descriptor,
			     struct iobmd_operation *operation)
{
	mutex_lock(&descriptor->lock);
	operation->code = perform(descriptor, operation);
	mutex_unlock(&descriptor->lock);
}
