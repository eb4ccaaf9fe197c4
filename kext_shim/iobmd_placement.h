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

/* Buffers that share a page start at multiples of this. */
#define IOBMD_PACKED_UNIT 64

/* A plan's mask that asks for nothing. */
#define IOBMD_ANY_ADDRESS (~0ull)

/**
 * struct iobmd_request - the arguments every factory boils down to
 * @capacity: bytes, as asked
 * @alignment: bytes, as asked
 * @mask: the physical mask, 0 for none
 * @factory: enum iobmd_factory; some have rules of their own
 * @options: IOOptionBits
 * @task: enum iobmd_task
 * @reserved: 0
 */
struct iobmd_request {
	__u64 capacity;
	__u64 alignment;
	__u64 mask;
	__u32 factory;
	__u32 options;
	__u32 task;
	__u32 reserved;
};

/**
 * struct iobmd_limits - what this machine can give at most
 * @memory: bytes of RAM
 * @top: the first physical address behind the last byte of RAM
 * @run: bytes of the longest physically contiguous block
 * @wired: bytes of the largest wired buffer that is not contiguous
 * @pageable: bytes of the largest pageable buffer
 * @mapper: 1 if an IOMMU stands between devices and memory
 * @reserved: 0
 */
struct iobmd_limits {
	__u64 memory;
	__u64 top;
	__u64 run;
	__u64 wired;
	__u64 pageable;
	__u32 mapper;
	__u32 reserved;
};

enum iobmd_plan_kind {
	/* Allocated and mapped by the factory; see iobmd_storage.h. */
	IOBMD_PLAN_WIRED,
	/* No memory before the first touch or prepare(). */
	IOBMD_PLAN_PAGEABLE,
};

enum iobmd_plan_mapping {
	IOBMD_MAPPING_PLAIN,
	/* With an inaccessible page before and after. */
	IOBMD_MAPPING_GUARDED,
	/* In no task, also not in the kernel's. */
	IOBMD_MAPPING_NONE,
};

/**
 * struct iobmd_plan - what the memory must be like
 * @capacity: bytes, what getCapacity() returns
 * @storage: bytes to allocate, whole pages unless @packed
 * @alignment: bytes, a power of two the first byte's address is a multiple of
 * @mask: every bit the physical address of a page may have
 * @kind: enum iobmd_plan_kind; a pageable buffer is not @contiguous, and its
 *	pages are anywhere
 * @mapping: enum iobmd_plan_mapping
 * @contiguous: 1 if one physical run has to hold all of it
 * @type: enum iobmd_memory_type of every mapping
 * @io_bits: devices get addresses of the mapper's, no wider than this; 0 if
 *	they get physical addresses
 * @packed: 1 to share a page with other buffers
 *
 * Offsets inside a page are not addresses of pages: all bits below IOBMD_PAGE
 * are in @mask.  So are the zeros below the lowest bit of the physical mask,
 * which are a wish for alignment.  Bits no byte of RAM has are left out.
 */
struct iobmd_plan {
	__u64 capacity;
	__u64 storage;
	__u64 alignment;
	__u64 mask;
	__u32 kind;
	__u32 mapping;
	__u32 contiguous;
	__u32 type;
	__u32 io_bits;
	__u32 packed;
};

/* A factory's NULL: @error is negative, @sentence static. */
static inline int iobmd_refuse(const char **reason, int error,
			       const char *sentence)
{
	*reason = sentence;
	return error;
}

/* The power of two not below @n, for 1 <= @n <= 2^63. */
static inline __u64 iobmd_power_of_two(__u64 n)
{
	__u64 power = 1;

	while (power < n)
		power <<= 1;
	return power;
}

int iobmd_request_from(const struct iobmd_create *call,
		       struct iobmd_request *request);
int iobmd_place(const struct iobmd_request *request,
		const struct iobmd_limits *limits, struct iobmd_plan *plan,
		const char **reason);
__u32 iobmd_type_of_creation(__u32 options);
__u32 iobmd_type_of_map(__u32 options);
__u64 iobmd_longest_run(__u64 mask);
__u64 iobmd_usable(const struct iobmd_plan *plan, __u64 start, __u64 end,
		   __u64 wanted, __u64 *at);

#endif /* IOBMD_PLACEMENT_H */
