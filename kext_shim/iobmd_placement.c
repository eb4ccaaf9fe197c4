// SPDX-License-Identifier: GPL-2.0
#include "iobmd_placement.h"

#ifdef __KERNEL__
#include <linux/errno.h>
#else
#include <errno.h>
#endif

/* A contiguous request up to this size is a heap chunk on xnu, not a page. */
#define HALF_PAGE_MAX ((IOBMD_PAGE - 16) / 2)

/* A larger pageable buffer does not fit into x86 xnu's kernel map. */
#define KERNEL_PAGEABLE_MAX (512ull << 20)

/* The last address of 32 bits: where low memory ends. */
#define LOW_MEMORY 0xffffffffull

/* A buffer to share a page leaves room for the page's own administration. */
#define PACKED_MAX (IOBMD_PAGE - IOBMD_PACKED_UNIT)

static __u64 round_page(__u64 bytes)
{
	return (bytes + IOBMD_PAGE - 1) & ~(IOBMD_PAGE - 1);
}

static __u32 digits(__u64 n)
{
	__u32 count = 0;

	for (; n; n >>= 1)
		count++;
	return count;
}

/* All ones, as many as @n has digits. */
static __u64 all_ones(__u64 n)
{
	__u64 ones = n;
	unsigned int shift;

	for (shift = 1; shift < 64; shift <<= 1)
		ones |= ones >> shift;
	return ones;
}

/**
 * iobmd_longest_run - how long a physical run can be at all
 * @mask: what struct iobmd_plan says
 *
 * Counting up from any page, the lowest bit that is not in @mask gets set after
 * that many bytes at the latest.
 *
 * Return: bytes, or 0 where nothing limits it.
 */
__u64 iobmd_longest_run(__u64 mask)
{
	return ~mask & (mask + 1);
}

/* Bytes of all pages of RAM whose addresses have only bits of @mask. */
static __u64 room_under(__u64 mask)
{
	__u64 bits = mask / IOBMD_PAGE;
	__u64 room = IOBMD_PAGE;

	for (; bits; bits >>= 1)
		if (bits & 1)
			room <<= 1;
	return room;
}

/**
 * iobmd_usable - look through free memory for what a plan can use
 * @plan: what is needed
 * @start: first physical address of the free memory, a multiple of a page
 * @end: the address behind it, a multiple of a page
 * @wanted: bytes, whole pages
 * @at: set to where the usable stretch begins
 *
 * Return: the bytes of the first usable stretch, at most @wanted and, for a
 * contiguous plan, not less; 0 if there is none.
 */
__u64 iobmd_usable(const struct iobmd_plan *plan, __u64 start, __u64 end,
		   __u64 wanted, __u64 *at)
{
	__u64 step = plan->alignment > IOBMD_PAGE ? plan->alignment :
						    IOBMD_PAGE;
	__u64 bytes = 0;

	*at = (start + step - 1) & ~(step - 1);
	while (*at < end) {
		while (bytes < wanted && *at + bytes < end &&
		       !((*at + bytes) & ~plan->mask))
			bytes += IOBMD_PAGE;
		if (bytes == wanted || (bytes && !plan->contiguous))
			return bytes;
		*at = (*at + bytes + IOBMD_PAGE + step - 1) & ~(step - 1);
		bytes = 0;
	}
	return 0;
}

/* One physical run; @size may be anything the overflow rules let through. */
static int place_run(__u64 size, __u64 alignment,
		     const struct iobmd_limits *limits, struct iobmd_plan *plan,
		     const char **reason)
{
	__u64 longest = iobmd_longest_run(plan->mask);

	if (longest && size > longest)
		return iobmd_refuse(
			reason, -ENOMEM,
			"no physically contiguous block of that size has addresses with only bits of the mask");
	if (size > limits->run)
		return iobmd_refuse(
			reason, -ENOMEM,
			"the capacity exceeds the longest physically contiguous block this kernel can allocate");
	if (alignment > limits->run)
		return iobmd_refuse(
			reason, -ENOMEM,
			"the alignment exceeds the longest physically contiguous block this kernel can allocate");
	plan->contiguous = 1;
	plan->alignment = iobmd_power_of_two(alignment ? alignment : 1);
	plan->storage = round_page(size);
	/* The allocator aligns a block to its own size and to nothing else. */
	if (plan->storage < plan->alignment)
		plan->storage = plan->alignment;
	if (plan->storage > limits->run)
		return iobmd_refuse(
			reason, -ENOMEM,
			"capacity and alignment together exceed the longest physically contiguous block");
	return 0;
}

/*
 * Each mapping costs the mapper at least a page of addresses, which is why xnu
 * lets small buffers share one.
 */
static int is_packed(__u64 size, __u64 alignment, const struct iobmd_plan *plan)
{
	return plan->io_bits && plan->mapping == IOBMD_MAPPING_PLAIN &&
	       alignment < IOBMD_PAGE && size <= PACKED_MAX &&
	       alignment <= PACKED_MAX - size;
}

static void place_packed(__u64 size, __u64 alignment, struct iobmd_plan *plan)
{
	const __u64 unit = IOBMD_PACKED_UNIT;

	plan->packed = 1;
	plan->alignment =
		iobmd_power_of_two(alignment > unit ? alignment : unit);
	plan->storage = (size + unit - 1) / unit * unit;
}

static int place_scattered(__u64 size, __u64 alignment,
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
	plan->alignment = iobmd_power_of_two(alignment ? alignment : 1);
	plan->storage = round_page(size);
	if (plan->mask != IOBMD_ANY_ADDRESS &&
	    plan->storage > room_under(plan->mask))
		return iobmd_refuse(
			reason, -ENOMEM,
			"the pages whose addresses have only bits of the mask are fewer than the capacity needs");
	return 0;
}

/* Where host pages lie, and in how many pieces, is not this buffer's affair. */
static int place_pageable(const struct iobmd_request *request,
			  const struct iobmd_limits *limits,
			  struct iobmd_plan *plan, const char **reason)
{
	/* Nothing has been prepared yet that could be mapped at once. */
	if (request->task != IOBMD_TASK_NULL &&
	    (request->options & kIOMapPrefault))
		return iobmd_refuse(
			reason, -EINVAL,
			"a pageable buffer cannot be prefaulted by its factory");
	if (request->capacity > limits->pageable)
		return iobmd_refuse(
			reason, -ENOMEM,
			"the capacity exceeds the largest pageable buffer");
	if (request->task == IOBMD_TASK_KERNEL &&
	    request->capacity > KERNEL_PAGEABLE_MAX)
		return iobmd_refuse(
			reason, -ENOMEM,
			"a pageable buffer in kernel_task has 512 MiB at most");
	plan->kind = IOBMD_PLAN_PAGEABLE;
	plan->alignment = IOBMD_PAGE;
	plan->storage = round_page(request->capacity);
	plan->mask = IOBMD_ANY_ADDRESS;
	return 0;
}

/* The factories whose documentation gives the NULL task a meaning. */
static int has_physical_mask(const struct iobmd_request *request)
{
	return request->factory == IOBMD_IN_TASK_WITH_PHYSICAL_MASK ||
	       request->factory == IOBMD_INIT_WITH_PHYSICAL_MASK;
}

/* What pageability, task and guard pages rule out. */
static int check_kind(const struct iobmd_request *request, __u32 contiguous,
		      const char **reason)
{
	__u32 pageable = request->options & kIOMemoryPageable;

	if (request->factory == IOBMD_WITH_COPY &&
	    (!pageable || request->task == IOBMD_TASK_NULL))
		return iobmd_refuse(
			reason, -EINVAL,
			"withCopy needs a task and kIOMemoryPageable");
	if (!pageable && request->task != IOBMD_TASK_KERNEL &&
	    !(request->task == IOBMD_TASK_NULL && has_physical_mask(request)))
		return iobmd_refuse(
			reason, -EINVAL,
			"a task other than kernel_task needs kIOMemoryPageable");
	if (request->factory == IOBMD_IN_TASK_WITH_GUARD_PAGES &&
	    (pageable || contiguous))
		return iobmd_refuse(
			reason, -EINVAL,
			"a buffer with guard pages is neither pageable nor physically contiguous");
	return 0;
}

/*
 * Reads the physical mask into the alignment it asks for and plan->mask.  With
 * a mapper it is about the mapper's addresses, whose width is all that can be
 * chosen.  Returns 1 if a run is what xnu takes in its place: between 4 GiB and
 * the top of RAM it has no other allocator.
 */
static int apply_mask(__u64 mask, const struct iobmd_limits *limits,
		      struct iobmd_plan *plan, __u64 *alignment)
{
	__u64 lowest = mask & -mask;
	__u64 allowed = mask | (lowest - 1) | (IOBMD_PAGE - 1);
	__u64 reachable = all_ones(limits->top - 1);

	*alignment = lowest > IOBMD_PAGE ? lowest : IOBMD_PAGE;
	if (plan->io_bits) {
		plan->io_bits = digits(allowed);
		return 0;
	}
	if (!(reachable & ~allowed))
		return 0;
	plan->mask = allowed & reachable;
	return allowed > LOW_MEMORY && allowed < limits->top - 1;
}

static __u32 mapping_of(const struct iobmd_request *request)
{
	if (request->factory == IOBMD_IN_TASK_WITH_GUARD_PAGES)
		return IOBMD_MAPPING_GUARDED;
	if (request->task == IOBMD_TASK_NULL)
		return IOBMD_MAPPING_NONE;
	return IOBMD_MAPPING_PLAIN;
}

/**
 * iobmd_place - the placement algorithm of IOBufferMemoryDescriptor
 * @request: what was asked
 * @limits: what can be had
 * @plan: filled in on success, undefined on failure
 * @reason: on failure a sentence for a person, static
 *
 * Follows the order of initWithPhysicalMask: a request that breaks several
 * rules is refused by the first of them.  An alignment above 1 beside a mask
 * drops the mask.
 *
 * Return: 0, or a negative errno where the factory returns NULL.
 */
int iobmd_place(const struct iobmd_request *request,
		const struct iobmd_limits *limits, struct iobmd_plan *plan,
		const char **reason)
{
	const __u32 page_granular = kIOMemorySharingTypeMask | kIOMapCacheMask |
				    kIOMemoryClearEncrypt;
	const int mapped = limits->mapper &&
			   !(request->options & kIOMemoryMapperNone);
	/* A mapper makes a run for the device of any pages. */
	__u32 contiguous = request->options &
			   (kIOMemoryHostPhysicallyContiguous |
			    (mapped ? 0 : kIOMemoryPhysicallyContiguous));
	int masked = request->mask && request->alignment <= 1;
	__u64 alignment = request->alignment;
	__u64 size = request->capacity;
	int only_as_run = 0;
	int error;

	*plan = (struct iobmd_plan){
		.capacity = request->capacity,
		.mask = IOBMD_ANY_ADDRESS,
		.mapping = mapping_of(request),
		.type = iobmd_type_of_creation(request->options),
		.io_bits = mapped ? 64 : 0,
	};
	if (!size)
		return iobmd_refuse(reason, -EINVAL, "a capacity of 0 bytes");
	if (masked)
		only_as_run =
			apply_mask(request->mask, limits, plan, &alignment);
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
	error = check_kind(request, contiguous, reason);
	if (error)
		return error;
	if (request->options & kIOMemoryPageable)
		return place_pageable(request, limits, plan, reason);
	if (plan->mapping == IOBMD_MAPPING_GUARDED)
		plan->capacity = size;
	/* Between a heap chunk and a run of pages xnu takes a low page. */
	if (contiguous && !masked && size > HALF_PAGE_MAX &&
	    size <= IOBMD_PAGE && alignment <= IOBMD_PAGE)
		plan->mask = LOW_MEMORY;
	if (only_as_run && !contiguous && size > limits->run)
		return iobmd_refuse(
			reason, -ENOMEM,
			"a mask between 4 GiB and the top of RAM takes one physically contiguous block, and none is that long");
	if (contiguous || only_as_run)
		return place_run(size, alignment, limits, plan, reason);
	if (is_packed(size, alignment, plan)) {
		place_packed(size, alignment, plan);
		return 0;
	}
	return place_scattered(size, alignment, limits, plan, reason);
}
