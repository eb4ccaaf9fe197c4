// SPDX-License-Identifier: GPL-2.0
#include "iobmd_placement.h"

#ifdef __KERNEL__
#include <linux/errno.h>
#else
#include <errno.h>
#endif

/* Cache mode -> memory type as x86 xnu has it, but with a real WT. */
static const __u32 type_of_mode[] = {
	[kIODefaultCache] = IOBMD_TYPE_WB,
	[kIOInhibitCache] = IOBMD_TYPE_UC_MINUS,
	[kIOWriteThruCache] = IOBMD_TYPE_WT,
	[kIOCopybackCache] = IOBMD_TYPE_WB,
	[kIOWriteCombineCache] = IOBMD_TYPE_WC,
	[kIOCopybackInnerCache] = IOBMD_TYPE_WB,
	[kIOPostedWrite] = IOBMD_TYPE_UC_MINUS,
	[kIORealTimeCache] = IOBMD_TYPE_WC,
	[kIOPostedReordered] = IOBMD_TYPE_UC_MINUS,
	[kIOPostedCombinedReordered] = IOBMD_TYPE_UC_MINUS,
};

/**
 * iobmd_type_of_creation - the memory type a factory's options ask for
 * @options: IOOptionBits
 *
 * A descriptor keeps three bits of its mode: 8 is 0, 9 is 1, and a mode beside
 * kIOMemoryMapperNone, which is the fourth bit, is still that mode.
 *
 * Return: enum iobmd_memory_type.
 */
__u32 iobmd_type_of_creation(__u32 options)
{
	return type_of_mode[(options >> kIOMapCacheShift) & 7];
}

/**
 * iobmd_type_of_map - the memory type a mapping's options ask for
 * @options: IOOptionBits with a cache mode other than kIODefaultCache
 *
 * Return: enum iobmd_memory_type; modes without a name count as the default.
 */
__u32 iobmd_type_of_map(__u32 options)
{
	__u32 mode = (options & kIOMapCacheMask) >> kIOMapCacheShift;

	if (mode > kIOPostedCombinedReordered)
		mode = kIODefaultCache;
	return type_of_mode[mode];
}

/**
 * iobmd_request_from - reduce a factory call to what the placement looks at
 * @call: what the caller passed
 * @request: filled in on success
 *
 * withCapacity(contiguous) aligns to the capacity itself, withBytes to its
 * length rounded up to a power of two, a page at most.  Tags are for
 * accounting and change no placement.  DriverKit's options have been checked.
 *
 * Return: 0, or -EINVAL for a factory, a task or options that do not exist.
 */
int iobmd_request_from(const struct iobmd_create *call,
		       struct iobmd_request *request)
{
	__u64 alignment;

	*request = (struct iobmd_request){
		.capacity = call->capacity,
		.alignment = 1,
		.factory = call->factory,
		.options = call->options,
		.task = call->task,
	};

	switch (call->factory) {
	case IOBMD_WITH_OPTIONS:
		request->alignment = call->alignment;
		request->task = IOBMD_TASK_KERNEL;
		break;
	case IOBMD_IN_TASK_WITH_OPTIONS:
	case IOBMD_IN_TASK_WITH_OPTIONS_TAGGED:
		request->alignment = call->alignment;
		break;
	case IOBMD_INIT_WITH_PHYSICAL_MASK:
		request->alignment = call->alignment;
		request->mask = call->mask;
		break;
	case IOBMD_IN_TASK_WITH_PHYSICAL_MASK:
		request->mask = call->mask;
		break;
	case IOBMD_IN_TASK_WITH_GUARD_PAGES:
		request->alignment = IOBMD_PAGE;
		break;
	case IOBMD_WITH_COPY:
		break;
	case IOBMD_DRIVERKIT_CREATE:
		request->alignment = call->alignment;
		request->task = IOBMD_TASK_KERNEL;
		request->options |= kIOMemoryKernelUserShared |
				    kIOMemoryThreadSafe;
		break;
	case IOBMD_WITH_CAPACITY:
		request->task = IOBMD_TASK_KERNEL;
		if (call->contiguous) {
			request->alignment = call->capacity;
			request->options |= kIOMemoryPhysicallyContiguous;
		}
		break;
	case IOBMD_WITH_BYTES:
		request->task = IOBMD_TASK_KERNEL;
		alignment = call->capacity;
		if (alignment > IOBMD_PAGE)
			alignment = IOBMD_PAGE;
		request->alignment = iobmd_power_of_two(alignment);
		if (call->contiguous)
			request->options |= kIOMemoryPhysicallyContiguous;
		break;
	default:
		return -EINVAL;
	}
	if (call->options != (__u32)call->options ||
	    request->task > IOBMD_TASK_CURRENT)
		return -EINVAL;
	return 0;
}
