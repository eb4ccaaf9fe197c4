// SPDX-License-Identifier: GPL-2.0
#include "iobmd_placement.h"

#ifdef __KERNEL__
#include <linux/errno.h>
#else
#include <errno.h>
#endif

/* A contiguous request up to this size is a heap chunk on xnu, not a page. */
#define HALF_PAGE_MAX ((IOBMD_PAGE - 16) / 2)

/*
 * Cache mode -> memory type as x86 xnu has it, but with a real WT.  A
 * descriptor keeps three bits of its mode: 8 is 0, 9 is 1, and a mode beside
 * kIOMemoryMapperNone, which is the fourth bit, is still that mode.
 */
static const __u32 type_of_mode[8] = {
	[kIODefaultCache] = IOBMD_TYPE_WB,
	[kIOInhibitCache] = IOBMD_TYPE_UC_MINUS,
	[kIOWriteThruCache] = IOBMD_TYPE_WT,
	[kIOCopybackCache] = IOBMD_TYPE_WB,
	[kIOWriteCombineCache] = IOBMD_TYPE_WC,
	[kIOCopybackInnerCache] = IOBMD_TYPE_WB,
	[kIOPostedWrite] = IOBMD_TYPE_UC_MINUS,
	[kIORealTimeCache] = IOBMD_TYPE_WC,
};

static __u64 round_page(__u64 bytes)
{
	return (bytes + IOBMD_PAGE - 1) & ~(IOBMD_PAGE - 1);
}

/* For 1 <= @n <= 2^63. */
static __u64 round_up_to_power_of_two(__u64 n)
{
	__u64 power = 1;

	while (power < n)
		power <<= 1;
	return power;
}

/**
 * iobmd_request_from - reduce a factory call to capacity, alignment, options
 * @call: what the caller passed
 * @request: filled in on success
 *
 * withCapacity(contiguous) aligns to the capacity itself, withBytes to its
 * length rounded up to a power of two, a page at most.
 *
 * Return: 0, or -EINVAL for a factory or a task that does not exist.
 */
int iobmd_request_from(const struct iobmd_create *call,
		       struct iobmd_request *request)
{
	__u64 alignment;

	*request = (struct iobmd_request){
		.capacity = call->capacity,
		.alignment = 1,
		.options = call->options,
		.task = IOBMD_TASK_KERNEL,
	};

	switch (call->factory) {
	case IOBMD_IN_TASK_WITH_OPTIONS:
		if (call->task > IOBMD_TASK_CURRENT)
			return -EINVAL;
		request->task = call->task;
		request->alignment = call->alignment;
		return 0;
	case IOBMD_WITH_OPTIONS:
		request->alignment = call->alignment;
		return 0;
	case IOBMD_WITH_CAPACITY:
		if (call->contiguous)
			request->alignment = call->capacity;
		break;
	case IOBMD_WITH_BYTES:
		alignment = call->capacity;
		if (alignment > IOBMD_PAGE)
			alignment = IOBMD_PAGE;
		request->alignment = round_up_to_power_of_two(alignment);
		break;
	default:
		return -EINVAL;
	}
	if (call->contiguous)
		request->options |= kIOMemoryPhysicallyContiguous;
	return 0;
}

/* One physical run; @size may be anything the overflow rules let through. */
static int place_run(__u64 size, __u64 alignment,
		     const struct iobmd_limits *limits, struct iobmd_plan *plan,
		     const char **reason)
{
	if (size > limits->run)
		return iobmd_refuse(
			reason, -ENOMEM,
			"the capacity exceeds the longest physically contiguous block this kernel can allocate");
	if (alignment > limits->run)
		return iobmd_refuse(
			reason, -ENOMEM,
			"the alignment exceeds the longest physically contiguous block this kernel can allocate");
	plan->contiguous = 1;
	plan->alignment = round_up_to_power_of_two(alignment ? alignment : 1);
	plan->storage = round_page(size);
	/* The allocator aligns a block to its own size and to nothing else. */
	if (plan->storage < plan->alignment)
		plan->storage = plan->alignment;
	if (plan->storage > limits->run)
		return iobmd_refuse(
			reason, -ENOMEM,
			"capacity and alignment together exceed the longest physically contiguous block");
	/* Between a heap chunk and a run of pages xnu takes a low page. */
	if (size > HALF_PAGE_MAX && size <= IOBMD_PAGE &&
	    alignment <= IOBMD_PAGE)
		plan->address_bits = 32;
	return 0;
}

static int place_wired(__u64 size, __u64 alignment,
		       const struct iobmd_limits *limits,
		       struct iobmd_plan *plan, const char **reason)
{
	if (size > limits->wired)
		return iobmd_refuse(
			reason, -ENOMEM,
			"the capacity exceeds the wired limit, the larger of 2 GiB and a 64th of RAM");
	if (size > limits->memory)
		return iobmd_refuse(reason, -ENOMEM,
				    "the capacity exceeds the machine's RAM");
	plan->alignment = round_up_to_power_of_two(alignment ? alignment : 1);
	plan->storage = round_page(size);
	return 0;
}

/**
 * iobmd_place - the placement algorithm of IOBufferMemoryDescriptor
 * @request: what was asked
 * @limits: what can be had
 * @plan: filled in on success, undefined on failure
 * @reason: on failure a sentence for a person, static
 *
 * Follows the order of initWithPhysicalMask: a request that breaks several
 * rules is refused by the first of them.
 *
 * Return: 0, or a negative errno where the factory returns NULL.
 */
int iobmd_place(const struct iobmd_request *request,
		const struct iobmd_limits *limits, struct iobmd_plan *plan,
		const char **reason)
{
	const __u32 page_granular = kIOMemorySharingTypeMask | kIOMapCacheMask |
				    kIOMemoryClearEncrypt;
	__u32 contiguous = request->options &
			   (kIOMemoryPhysicallyContiguous |
			    kIOMemoryHostPhysicallyContiguous);
	__u64 alignment = request->alignment;
	__u64 size = request->capacity;

	if (!size)
		return iobmd_refuse(reason, -EINVAL, "a capacity of 0 bytes");
	if ((request->options & page_granular) && alignment < IOBMD_PAGE)
		alignment = IOBMD_PAGE;
	if (alignment >= IOBMD_PAGE) {
		size = round_page(size);
		if (size < request->capacity)
			return iobmd_refuse(
				reason, -EOVERFLOW,
				"the capacity rounded up to whole pages exceeds 64 bits");
	}
	if (alignment > IOBMD_PAGE)
		contiguous = 1;
	if (size + alignment < request->capacity)
		return iobmd_refuse(
			reason, -EOVERFLOW,
			"capacity and alignment add up to more than 64 bits");
	if (request->task != IOBMD_TASK_KERNEL &&
	    !(request->options & kIOMemoryPageable))
		return iobmd_refuse(
			reason, -EINVAL,
			"a task other than kernel_task needs kIOMemoryPageable");
	if (request->options & kIOMemoryPageable)
		return iobmd_refuse(
			reason, -EOPNOTSUPP,
			"kIOMemoryPageable is not supported: this module makes wired buffers only");

	*plan = (struct iobmd_plan){
		.address_bits = 64,
		.type = type_of_mode[(request->options >> kIOMapCacheShift) & 7],
	};
	if (contiguous)
		return place_run(size, alignment, limits, plan, reason);
	return place_wired(size, alignment, limits, plan, reason);
}
