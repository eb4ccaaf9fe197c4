/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From a factory's arguments to what the memory must be like.
 *
 * Pure: no allocation, no state, no kernel.  The host compiles this file too
 * and tests it there.
 */
#ifndef IOBMD_PLACEMENT_H
#define IOBMD_PLACEMENT_H

#include "iobmd_abi.h"

#define IOBMD_PAGE 4096ull

/**
 * struct iobmd_request - the arguments every factory boils down to
 * @capacity: bytes, as asked
 * @alignment: bytes, as asked
 * @options: IOOptionBits
 * @task: enum iobmd_task
 */
struct iobmd_request {
	__u64 capacity;
	__u64 alignment;
	__u32 options;
	__u32 task;
};

/**
 * struct iobmd_limits - what this machine can give at most
 * @memory: bytes of RAM
 * @run: bytes of the longest physically contiguous block
 * @wired: bytes of the largest wired buffer that is not contiguous
 */
struct iobmd_limits {
	__u64 memory;
	__u64 run;
	__u64 wired;
};

/**
 * struct iobmd_plan - what the memory must be like
 * @storage: bytes to allocate, whole pages
 * @alignment: bytes, a power of two the first byte's address is a multiple of
 * @contiguous: 1 if one physical run has to hold all of it
 * @address_bits: physical addresses fit into this many bits
 * @type: enum iobmd_memory_type of every mapping
 * @reserved: 0
 */
struct iobmd_plan {
	__u64 storage;
	__u64 alignment;
	__u32 contiguous;
	__u32 address_bits;
	__u32 type;
	__u32 reserved;
};

/* A factory's NULL: @error is negative, @sentence static. */
static inline int iobmd_refuse(const char **reason, int error,
			       const char *sentence)
{
	*reason = sentence;
	return error;
}

int iobmd_request_from(const struct iobmd_create *call,
		       struct iobmd_request *request);
int iobmd_place(const struct iobmd_request *request,
		const struct iobmd_limits *limits, struct iobmd_plan *plan,
		const char **reason);

#endif /* IOBMD_PLACEMENT_H */
