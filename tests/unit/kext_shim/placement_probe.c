// SPDX-License-Identifier: GPL-2.0
/* The placement functions with arguments that ctypes can pass as they are. */
#include <string.h>

#include "iobmd_placement.h"

/* @in: capacity, alignment, mask, factory, options, task; @out: the plan. */
int probe_place(const __u64 in[6], const __u64 limit[6], __u64 out[10],
		const char **reason)
{
	struct iobmd_request request = {
		.capacity = in[0],
		.alignment = in[1],
		.mask = in[2],
		.factory = in[3],
		.options = in[4],
		.task = in[5],
	};
	struct iobmd_limits limits = {
		.memory = limit[0],
		.top = limit[1],
		.run = limit[2],
		.wired = limit[3],
		.pageable = limit[4],
		.mapper = limit[5],
	};
	struct iobmd_plan plan = { 0 };
	int result;

	*reason = "";
	result = iobmd_place(&request, &limits, &plan, reason);
	out[0] = plan.capacity;
	out[1] = plan.storage;
	out[2] = plan.alignment;
	out[3] = plan.mask;
	out[4] = plan.kind;
	out[5] = plan.mapping;
	out[6] = plan.contiguous;
	out[7] = plan.type;
	out[8] = plan.io_bits;
	out[9] = plan.packed;
	return result;
}

/* @in: factory, options, capacity, alignment, mask, task, contiguous. */
int probe_request(const __u64 in[7], __u64 out[6])
{
	struct iobmd_create call = {
		.factory = in[0],
		.options = in[1],
		.capacity = in[2],
		.alignment = in[3],
		.mask = in[4],
		.task = in[5],
		.contiguous = in[6],
		.kernel_tag = 12,
		.user_tag = 13,
	};
	struct iobmd_request request;
	int result = iobmd_request_from(&call, &request);

	out[0] = request.capacity;
	out[1] = request.alignment;
	out[2] = request.mask;
	out[3] = request.factory;
	out[4] = request.options;
	out[5] = request.task;
	return result;
}

/* The first usable stretch of [start, end): its length, and where it begins. */
__u64 probe_usable(__u64 mask, __u64 alignment, __u32 contiguous, __u64 start,
		   __u64 end, __u64 wanted, __u64 *at)
{
	struct iobmd_plan plan = {
		.mask = mask,
		.alignment = alignment,
		.contiguous = contiguous,
	};

	return iobmd_usable(&plan, start, end, wanted, at);
}

__u32 probe_type_of_map(__u32 options)
{
	return iobmd_type_of_map(options);
}

/* Long enough for every reason iobmd_place() gives. */
unsigned int probe_reason_max(void)
{
	return IOBMD_REASON_MAX;
}
