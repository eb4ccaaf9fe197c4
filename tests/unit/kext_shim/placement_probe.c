// SPDX-License-Identifier: GPL-2.0
/* The placement function with arguments that ctypes can pass as they are. */
#include <string.h>

#include "iobmd_placement.h"

/* Fills @out with storage, alignment, contiguous, address_bits, type. */
int probe_place(__u64 capacity, __u64 alignment, __u32 options, __u32 task,
		__u64 memory, __u64 run, __u64 wired, __u64 out[5],
		const char **reason)
{
	struct iobmd_request request = { capacity, alignment, options, task };
	struct iobmd_limits limits = { memory, run, wired };
	struct iobmd_plan plan = { 0 };
	int result;

	*reason = "";
	result = iobmd_place(&request, &limits, &plan, reason);
	out[0] = plan.storage;
	out[1] = plan.alignment;
	out[2] = plan.contiguous;
	out[3] = plan.address_bits;
	out[4] = plan.type;
	return result;
}

/* Fills @out with capacity, alignment, options, task. */
int probe_request(__u32 factory, __u32 options, __u64 capacity, __u64 alignment,
		  __u32 task, __u32 contiguous, __u64 out[4])
{
	struct iobmd_create call = {
		.factory = factory,
		.options = options,
		.capacity = capacity,
		.alignment = alignment,
		.task = task,
		.contiguous = contiguous,
	};
	struct iobmd_request request;
	int result = iobmd_request_from(&call, &request);

	out[0] = request.capacity;
	out[1] = request.alignment;
	out[2] = request.options;
	out[3] = request.task;
	return result;
}

/* Long enough for every reason iobmd_place() gives. */
unsigned int probe_reason_max(void)
{
	return IOBMD_REASON_MAX;
}
