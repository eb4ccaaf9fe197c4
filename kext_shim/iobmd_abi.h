/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * What /dev/iobmd understands.
 *
 * This header is the only place where these layouts and numbers are written
 * down.  The module includes it, and the host reads the same structures and
 * enumerations back out of the built module's DWARF.
 *
 * A descriptor is a file descriptor: the factories on /dev/iobmd make one,
 * close() is release().  Every method is one ioctl on it.
 */
#ifndef IOBMD_ABI_H
#define IOBMD_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define IOBMD_ABI_VERSION 1
#define IOBMD_REASON_MAX 160
#define IOBMD_IOC_TYPE 0xb7

/* Apple's constants, Apple's spelling. */
enum iobmd_direction {
	kIODirectionNone = 0x0,
	kIODirectionIn = 0x1,
	kIODirectionOut = 0x2,
	kIODirectionOutIn = 0x3,
	kIODirectionInOut = 0x3,
	kIOMemoryDirectionMask = 0x7,
};

enum iobmd_option {
	kIOMemoryPhysicallyContiguous = 0x00000010,
	kIOMemoryPageable = 0x00000020,
	kIOMemoryPurgeable = 0x00000040,
	kIOMemoryHostPhysicallyContiguous = 0x00000080,
	kIOMemoryMapperNone = 0x00000800,
	kIOMemoryKernelUserShared = 0x00010000,
	kIOMemorySharingTypeMask = 0x000f0000,
	kIOMemoryThreadSafe = 0x00100000,
	kIOMemoryClearEncrypt = 0x00200000,
	kIOMemoryUseReserve = 0x00800000,
};

enum iobmd_cache_mode {
	kIODefaultCache = 0,
	kIOInhibitCache = 1,
	kIOWriteThruCache = 2,
	kIOCopybackCache = 3,
	kIOWriteCombineCache = 4,
	kIOCopybackInnerCache = 5,
	kIOPostedWrite = 6,
	kIORealTimeCache = 7,
	kIOPostedReordered = 8,
	kIOPostedCombinedReordered = 9,
	kIOMapCacheShift = 8,
	kIOMapCacheMask = 0xf00,
};

/* Which factory iobmd_create runs. */
enum iobmd_factory {
	IOBMD_WITH_OPTIONS,
	IOBMD_IN_TASK_WITH_OPTIONS,
	IOBMD_WITH_CAPACITY,
	IOBMD_WITH_BYTES,
};

/* The task_t a factory is given. */
enum iobmd_task {
	IOBMD_TASK_NULL,
	IOBMD_TASK_KERNEL,
	IOBMD_TASK_CURRENT,
};

/* The memory type the module believes its pages have, by PAT name. */
enum iobmd_memory_type {
	IOBMD_TYPE_WB,
	IOBMD_TYPE_WC,
	IOBMD_TYPE_UC_MINUS,
	IOBMD_TYPE_WT,
	/* The mappings disagree, or have a type no buffer is made with. */
	IOBMD_TYPE_OTHER,
};

/* How the storage was put together; see iobmd_storage.h. */
enum iobmd_storage {
	IOBMD_STORAGE_RUN,
	IOBMD_STORAGE_CHUNKS,
};

/**
 * struct iobmd_create - run a factory
 * @factory: in, enum iobmd_factory
 * @options: in, IOOptionBits; for withCapacity and withBytes the IODirection
 * @capacity: in, bytes; for withBytes the number of bytes
 * @alignment: in, bytes; read by withOptions and inTaskWithOptions only
 * @task: in, enum iobmd_task; read by inTaskWithOptions only
 * @contiguous: in, withCapacity's and withBytes's last argument
 * @bytes: in, user pointer to withBytes's source
 * @fd: out, the descriptor, or -1 where Apple's factory returns NULL
 * @error: out, beside a NULL the errno that explains it, else 0
 * @reason: out, beside a NULL one sentence for a person, else empty
 *
 * The ioctl itself fails only for a call that is no factory call at all.
 */
struct iobmd_create {
	__u32 factory;
	__u32 options;
	__u64 capacity;
	__u64 alignment;
	__u32 task;
	__u32 contiguous;
	__u64 bytes;
	__s32 fd;
	__s32 error;
	char reason[IOBMD_REASON_MAX];
};

/**
 * struct iobmd_transfer - move bytes between the caller and the buffer
 * @offset: in, where in the buffer; ignored by appendBytes
 * @length: in, bytes asked for
 * @bytes: in, user pointer; 0 is NULL
 * @result: out, bytes moved; for appendBytes the bool it returns
 */
struct iobmd_transfer {
	__u64 offset;
	__u64 length;
	__u64 bytes;
	__u64 result;
};

/**
 * struct iobmd_window - getBytesNoCopy(start, withLength)
 * @start: in, offset into the buffer
 * @length: in, bytes
 * @address: out, kernel virtual address, or 0 for NULL
 */
struct iobmd_window {
	__u64 start;
	__u64 length;
	__u64 address;
};

/**
 * struct iobmd_segment - getPhysicalSegment(offset, &length)
 * @offset: in, offset into the buffer
 * @address: out, physical address of that byte, or 0
 * @length: out, bytes to the end of the contiguous run, or 0
 */
struct iobmd_segment {
	__u64 offset;
	__u64 address;
	__u64 length;
};

/**
 * struct iobmd_description - what the module believes about one descriptor
 * @kernel_address: start of the buffer in the kernel's address space
 * @storage: bytes of storage behind it, whole pages
 * @memory_type: enum iobmd_memory_type, read back from the page tables
 * @storage_kind: enum iobmd_storage
 * @chunks: physically separate allocations
 * @alignment: bytes, the alignment the placement decided on
 * @refused_lengths: setLength() calls beyond the capacity that were ignored
 */
struct iobmd_description {
	__u64 kernel_address;
	__u64 storage;
	__u32 memory_type;
	__u32 storage_kind;
	__u32 chunks;
	__u32 reserved;
	__u64 alignment;
	__u64 refused_lengths;
};

/**
 * struct iobmd_info - the module itself
 * @abi_version: IOBMD_ABI_VERSION it was built with
 * @live: descriptors that exist now
 * @types: bit per enum iobmd_memory_type this CPU's PAT can express
 * @reserved: 0
 */
struct iobmd_info {
	__u32 abi_version;
	__u32 live;
	__u32 types;
	__u32 reserved;
};

/*
 * An enum, not macros, so that the numbers reach the DWARF.  Types and numbers
 * stay clear of those the VFS answers itself (2 is FIGETBSZ).
 */
enum iobmd_ioctl {
	/* on /dev/iobmd */
	IOBMD_IOC_INFO = _IOR(IOBMD_IOC_TYPE, 0x40, struct iobmd_info),
	IOBMD_IOC_CREATE = _IOWR(IOBMD_IOC_TYPE, 0x41, struct iobmd_create),
	/* on a descriptor */
	IOBMD_IOC_GET_CAPACITY = _IOR(IOBMD_IOC_TYPE, 0x50, __u64),
	IOBMD_IOC_GET_LENGTH = _IOR(IOBMD_IOC_TYPE, 0x51, __u64),
	IOBMD_IOC_SET_LENGTH = _IOW(IOBMD_IOC_TYPE, 0x52, __u64),
	IOBMD_IOC_GET_DIRECTION = _IOR(IOBMD_IOC_TYPE, 0x53, __u32),
	IOBMD_IOC_SET_DIRECTION = _IOW(IOBMD_IOC_TYPE, 0x54, __u32),
	IOBMD_IOC_APPEND_BYTES =
		_IOWR(IOBMD_IOC_TYPE, 0x55, struct iobmd_transfer),
	IOBMD_IOC_READ_BYTES =
		_IOWR(IOBMD_IOC_TYPE, 0x56, struct iobmd_transfer),
	IOBMD_IOC_WRITE_BYTES =
		_IOWR(IOBMD_IOC_TYPE, 0x57, struct iobmd_transfer),
	IOBMD_IOC_GET_BYTES_NO_COPY = _IOR(IOBMD_IOC_TYPE, 0x58, __u64),
	IOBMD_IOC_GET_BYTES_NO_COPY_AT =
		_IOWR(IOBMD_IOC_TYPE, 0x59, struct iobmd_window),
	IOBMD_IOC_GET_PHYSICAL_SEGMENT =
		_IOWR(IOBMD_IOC_TYPE, 0x5a, struct iobmd_segment),
	IOBMD_IOC_GET_PHYSICAL_ADDRESS = _IOR(IOBMD_IOC_TYPE, 0x5b, __u64),
	IOBMD_IOC_DESCRIBE =
		_IOR(IOBMD_IOC_TYPE, 0x5c, struct iobmd_description),
};

#endif /* IOBMD_ABI_H */
