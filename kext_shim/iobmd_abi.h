/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * What /dev/iobmd understands.
 *
 * This header is the only place where these layouts and numbers are written
 * down.  The module includes it, and the host reads the same structures and
 * enumerations back out of the built module's DWARF.
 *
 * A descriptor is a file descriptor: the factories on /dev/iobmd make one,
 * close() is release().  Every method is one ioctl on it.  A mapping
 * (IOMemoryMap) is a file descriptor too.
 *
 * Where Apple's method returns a code, the ioctl returns 0 and the structure
 * carries the code.  Where Apple returns an object or NULL, fd is the object or
 * -1, and beside a NULL stand an errno and a sentence for a person.
 */
#ifndef IOBMD_ABI_H
#define IOBMD_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define IOBMD_ABI_VERSION 2
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
	/* for prepare() */
	kIODirectionPrepareToPhys32 = 0x4,
	kIODirectionPrepareNoFault = 0x8,
	kIODirectionPrepareNonCoherent = 0x20,
	/* for complete() */
	kIODirectionCompleteWithError = 0x40,
	kIODirectionCompleteWithDataValid = 0x80,
};

enum iobmd_option {
	kIOMemoryPhysicallyContiguous = 0x00000010,
	kIOMemoryPageable = 0x00000020,
	kIOMemoryPurgeable = 0x00000040,
	kIOMemoryHostPhysicallyContiguous = 0x00000080,
	kIOMemoryMapperNone = 0x00000800,
	kIOMemoryHostOnly = 0x00001000,
	kIOMemoryKernelUserShared = 0x00010000,
	kIOMemoryPersistent = 0x00010000,
	kIOMemoryMapCopyOnWrite = 0x00020000,
	kIOMemoryRemote = 0x00040000,
	kIOMemorySharingTypeMask = 0x000f0000,
	kIOMemoryThreadSafe = 0x00100000,
	kIOMemoryClearEncrypt = 0x00200000,
	kIOMemoryUseReserve = 0x00800000,
};

/* What getFlags() has beside the options; a namespace of its own. */
enum iobmd_flag {
	kIOMemoryAutoPrepare = 0x00000008,
	kIOMemoryTypeVirtual = 0x00000010,
	kIOMemoryTypeMask = 0x000000f0,
	kIOMemoryAsReference = 0x00000100,
	kIOMemoryBufferPageable = 0x00000400,
	kIOMemoryPreparedReadOnly = 0x00008000,
	kIOMemoryBufferPurgeable = 0x00400000,
	kIOMemoryBufferCacheMask = 0x70000000,
	kIOMemoryBufferCacheShift = 28,
	/* the option bits a descriptor keeps */
	kIOBufferDescriptorMemoryFlags = 0x00b00807,
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

enum iobmd_map_option {
	kIOMapAnywhere = 0x00000001,
	kIOMapReadOnly = 0x00001000,
	kIOMapStatic = 0x01000000,
	kIOMapReference = 0x02000000,
	kIOMapUnique = 0x04000000,
	kIOMapPrefault = 0x10000000,
	kIOMapOverwrite = 0x20000000,
	kIOMapGuardedSmall = 0x40000000,
	kIOMapGuardedLarge = 0x80000000,
	kIOMapGuardedMask = 0xc0000000,
};

/* DriverKit's CreateMapping(): other numbers for the same things. */
enum iobmd_driverkit_map_option {
	kIOMemoryMapFixedAddress = 0x00000001,
	kIOMemoryMapReadOnly = 0x00000002,
	kIOMemoryMapGuardedDefault = 0x00000000,
	kIOMemoryMapGuardedNone = 0x00000004,
	kIOMemoryMapGuardedSmall = 0x00000008,
	kIOMemoryMapGuardedLarge = 0x0000000c,
	kIOMemoryMapGuardedMask = 0x0000001c,
	kIOMemoryMapCacheModeDefault = 0x00000000,
	kIOMemoryMapCacheModeInhibit = 0x00000100,
	kIOMemoryMapCacheModeCopyback = 0x00000200,
	kIOMemoryMapCacheModeWriteThrough = 0x00000400,
	kIOMemoryMapCacheModeRealTime = 0x00000800,
	kIOMemoryMapCacheModeMask = 0x0000ff00,
};

enum iobmd_purgeable_state {
	kIOMemoryPurgeableKeepCurrent = 1,
	kIOMemoryPurgeableNonVolatile = 2,
	kIOMemoryPurgeableVolatile = 3,
	kIOMemoryPurgeableEmpty = 4,
	kIOMemoryPurgeableStateMask = 0xf,
};

enum iobmd_operation_code {
	kIOMemoryIncoherentIOFlush = 1,
	kIOMemoryIncoherentIOStore = 2,
	kIOMemoryClearEncrypted = 50,
	kIOMemorySetEncrypted = 51,
};

/* IOReturn, and the Mach codes that come out of it unchanged. */
enum iobmd_return {
	kIOReturnSuccess = 0,
	kIOReturnError = 0xe00002bc,
	kIOReturnNoMemory = 0xe00002bd,
	kIOReturnNoResources = 0xe00002be,
	kIOReturnBadArgument = 0xe00002c2,
	kIOReturnUnsupported = 0xe00002c7,
	kIOReturnVMError = 0xe00002c8,
	kIOReturnInternalError = 0xe00002c9,
	kIOReturnNotReadable = 0xe00002ce,
	kIOReturnNotWritable = 0xe00002cf,
	kIOReturnBusy = 0xe00002d5,
	kIOReturnNotReady = 0xe00002d8,
	kIOReturnCannotWire = 0xe00002de,
	kIOReturnUnderrun = 0xe00002e7,
	KERN_INVALID_ADDRESS = 1,
	KERN_INVALID_ARGUMENT = 4,
};

/* Which factory iobmd_create runs. */
enum iobmd_factory {
	IOBMD_WITH_OPTIONS,
	IOBMD_IN_TASK_WITH_OPTIONS,
	IOBMD_WITH_CAPACITY,
	IOBMD_WITH_BYTES,
	/* inTaskWithOptions with kernTag and userTag */
	IOBMD_IN_TASK_WITH_OPTIONS_TAGGED,
	/* alignment is 1 */
	IOBMD_IN_TASK_WITH_PHYSICAL_MASK,
	/* alignment and mask */
	IOBMD_INIT_WITH_PHYSICAL_MASK,
	IOBMD_WITH_COPY,
	IOBMD_IN_TASK_WITH_GUARD_PAGES,
	/* DriverKit: IOBufferMemoryDescriptor::Create() */
	IOBMD_DRIVERKIT_CREATE,
	IOBMD_FACTORIES,
};

/*
 * The task_t a method is given.  CURRENT is the process that makes the call.
 */
enum iobmd_task {
	IOBMD_TASK_NULL,
	IOBMD_TASK_KERNEL,
	IOBMD_TASK_CURRENT,
};

/* Where in the kernel the factory is called from. */
enum iobmd_context {
	IOBMD_CONTEXT_PROCESS,
	/* with a simple lock held */
	IOBMD_CONTEXT_SIMPLE_LOCK,
	/* from an interrupt handler */
	IOBMD_CONTEXT_INTERRUPT,
	IOBMD_CONTEXTS,
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
	/* swappable; see iobmd_pageable.h */
	IOBMD_STORAGE_PAGEABLE,
};

/**
 * struct iobmd_create - run a factory
 * @factory: in, enum iobmd_factory
 * @task: in, enum iobmd_task; ignored by withOptions, withCapacity, withBytes
 *	and Create
 * @options: in, IOOptionBits; for withCapacity and withBytes the IODirection;
 *	64 bits for Create only
 * @capacity: in, bytes; for withBytes and withCopy the number of bytes
 * @alignment: in, bytes; ignored by the factories without that argument
 * @mask: in, physicalMask; ignored by the factories without that argument
 * @bytes: in, user pointer: withBytes's source, withCopy's source in the
 *	calling process, which is the sourceMap
 * @contiguous: in, withCapacity's and withBytes's last argument
 * @kernel_tag: in, kernTag of the tagged factory
 * @user_tag: in, userTag of the tagged factory
 * @context: in, enum iobmd_context
 * @fd: out, the descriptor, or -1 where Apple's factory returns NULL
 * @error: out, beside a NULL the errno that explains it, else 0
 * @code: out, enum iobmd_return: what Create returns; 0 or kIOReturnError for
 *	the others, which return no code
 * @reserved: 0
 * @reason: out, beside a NULL one sentence for a person, else empty
 *
 * The ioctl itself fails only for a call that is no factory call at all.
 */
struct iobmd_create {
	__u32 factory;
	__u32 task;
	__u64 options;
	__u64 capacity;
	__u64 alignment;
	__u64 mask;
	__u64 bytes;
	__u32 contiguous;
	__u32 kernel_tag;
	__u32 user_tag;
	__u32 context;
	__s32 fd;
	__s32 error;
	__u32 code;
	__u32 reserved;
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
 * struct iobmd_wiring - prepare(forDirection) and complete(forDirection)
 * @direction: in, an IODirection
 * @code: out, enum iobmd_return
 */
struct iobmd_wiring {
	__u32 direction;
	__u32 code;
};

/**
 * struct iobmd_purge - setPurgeable(newState, &oldState)
 * @state: in, enum iobmd_purgeable_state; modifiers above its mask are ignored
 * @old_state: out, the state before, or 0 where Apple leaves it alone
 * @code: out, enum iobmd_return
 * @reserved: 0
 */
struct iobmd_purge {
	__u32 state;
	__u32 old_state;
	__u32 code;
	__u32 reserved;
};

/**
 * struct iobmd_page_counts - getPageCounts(&residentPageCount, &dirtyPageCount)
 * @resident: out, pages
 * @dirty: out, pages
 * @code: out, enum iobmd_return
 * @reserved: 0
 */
struct iobmd_page_counts {
	__u64 resident;
	__u64 dirty;
	__u32 code;
	__u32 reserved;
};

/**
 * struct iobmd_operation - performOperation(options, offset, length)
 * @offset: in, bytes
 * @length: in, bytes
 * @operation: in, enum iobmd_operation_code
 * @code: out, enum iobmd_return
 */
struct iobmd_operation {
	__u64 offset;
	__u64 length;
	__u32 operation;
	__u32 code;
};

/**
 * struct iobmd_create_mapping - createMappingInTask()
 * @task: in, enum iobmd_task
 * @options: in, enum iobmd_map_option and a cache mode; map(options) is
 *	IOBMD_TASK_KERNEL with kIOMapAnywhere, offset 0, length 0
 * @address: in, where to, without kIOMapAnywhere
 * @offset: in, bytes into the buffer
 * @length: in, bytes; 0 is the whole current length
 * @fd: out, the mapping, or -1 for NULL
 * @error: out, beside a NULL the errno that explains it, else 0
 * @reason: out, beside a NULL one sentence for a person, else empty
 */
struct iobmd_create_mapping {
	__u32 task;
	__u32 options;
	__u64 address;
	__u64 offset;
	__u64 length;
	__s32 fd;
	__s32 error;
	char reason[IOBMD_REASON_MAX];
};

/**
 * struct iobmd_mapping - IOMemoryMap: getVirtualAddress(), getLength(), ...
 * @address: first byte of the range, in the task it is mapped in
 * @length: bytes
 * @offset: bytes into the buffer of the first byte
 * @task: enum iobmd_task; CURRENT is the process that made the mapping
 * @options: what createMappingInTask() was given
 * @guard: bytes that fault in front of the mapping, and as many behind it
 * @own: 1 if it aliases the address the buffer lives at itself
 * @writable: 1 unless it faults on writes
 * @areas: user-space areas (VMAs) that show it now, forks included
 */
struct iobmd_mapping {
	__u64 address;
	__u64 length;
	__u64 offset;
	__u32 task;
	__u32 options;
	__u64 guard;
	__u32 own;
	__u32 writable;
	__u32 areas;
	__u32 reserved;
};

/**
 * struct iobmd_driverkit_length - SetLength(length), GetLength(&length)
 * @length: in for SetLength, out for GetLength, bytes
 * @code: out, enum iobmd_return
 * @reserved: 0
 */
struct iobmd_driverkit_length {
	__u64 length;
	__u32 code;
	__u32 reserved;
};

/**
 * struct iobmd_driverkit_range - GetAddressRange(&range)
 * @address: out, of the first byte, in the calling process
 * @length: out, bytes in use
 * @code: out, enum iobmd_return
 * @reserved: 0
 */
struct iobmd_driverkit_range {
	__u64 address;
	__u64 length;
	__u32 code;
	__u32 reserved;
};

/**
 * struct iobmd_driverkit_mapping - CreateMapping(), into the calling process
 * @options: in, enum iobmd_driverkit_map_option
 * @address: in, with kIOMemoryMapFixedAddress
 * @offset: in, bytes
 * @length: in, bytes; 0 is all
 * @alignment: in, ignored
 * @fd: out, the mapping, or -1
 * @code: out, enum iobmd_return
 * @error: out, beside a failure the errno that explains it, else 0
 * @reserved: 0
 * @reason: out, beside a failure one sentence for a person, else empty
 */
struct iobmd_driverkit_mapping {
	__u64 options;
	__u64 address;
	__u64 offset;
	__u64 length;
	__u64 alignment;
	__s32 fd;
	__u32 code;
	__s32 error;
	__u32 reserved;
	char reason[IOBMD_REASON_MAX];
};

/**
 * struct iobmd_description - what the module believes about one descriptor
 * @kernel_address: start of the buffer in the kernel's address space, or 0
 * @user_address: start of it in the process it was created in, or 0
 * @storage: bytes of storage behind it, whole pages
 * @memory_type: enum iobmd_memory_type, read back from the page tables; for
 *	pageable storage that of the pages held now, OTHER if there are none
 * @storage_kind: enum iobmd_storage
 * @chunks: physically separate allocations
 * @prepared: prepare() calls not yet completed
 * @alignment: bytes, the alignment the placement decided on
 * @mask: the mask the placement used, 0 for none
 * @refused_lengths: setLength() calls beyond the capacity that were ignored
 * @held: pages of pageable storage that cannot be paged out now
 * @kernel_tag: as given, 16 bits
 * @user_tag: as given, 16 bits
 * @mappings: mappings (IOMemoryMap) that exist now
 * @areas: user-space areas (VMAs) that show the buffer now
 * @guard: bytes that fault in front of the buffer, and as many behind it
 */
struct iobmd_description {
	__u64 kernel_address;
	__u64 user_address;
	__u64 storage;
	__u32 memory_type;
	__u32 storage_kind;
	__u32 chunks;
	__u32 prepared;
	__u64 alignment;
	__u64 mask;
	__u64 refused_lengths;
	__u64 held;
	__u32 kernel_tag;
	__u32 user_tag;
	__u32 mappings;
	__u32 areas;
	__u64 guard;
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
	IOBMD_IOC_GET_FLAGS = _IOR(IOBMD_IOC_TYPE, 0x5d, __u32),
	IOBMD_IOC_PREPARE = _IOWR(IOBMD_IOC_TYPE, 0x5e, struct iobmd_wiring),
	IOBMD_IOC_COMPLETE = _IOWR(IOBMD_IOC_TYPE, 0x5f, struct iobmd_wiring),
	IOBMD_IOC_CREATE_MAPPING =
		_IOWR(IOBMD_IOC_TYPE, 0x60, struct iobmd_create_mapping),
	IOBMD_IOC_SET_PURGEABLE =
		_IOWR(IOBMD_IOC_TYPE, 0x61, struct iobmd_purge),
	IOBMD_IOC_GET_PAGE_COUNTS =
		_IOR(IOBMD_IOC_TYPE, 0x62, struct iobmd_page_counts),
	IOBMD_IOC_PERFORM_OPERATION =
		_IOWR(IOBMD_IOC_TYPE, 0x63, struct iobmd_operation),
	IOBMD_IOC_DRIVERKIT_SET_LENGTH =
		_IOWR(IOBMD_IOC_TYPE, 0x68, struct iobmd_driverkit_length),
	IOBMD_IOC_DRIVERKIT_GET_LENGTH =
		_IOR(IOBMD_IOC_TYPE, 0x69, struct iobmd_driverkit_length),
	IOBMD_IOC_DRIVERKIT_GET_ADDRESS_RANGE =
		_IOR(IOBMD_IOC_TYPE, 0x6a, struct iobmd_driverkit_range),
	IOBMD_IOC_DRIVERKIT_CREATE_MAPPING =
		_IOWR(IOBMD_IOC_TYPE, 0x6b, struct iobmd_driverkit_mapping),
	/* on a mapping; close() is release(), mmap() shows it once more */
	IOBMD_IOC_DESCRIBE_MAPPING =
		_IOR(IOBMD_IOC_TYPE, 0x70, struct iobmd_mapping),
	/* readable without a page fault?  result: bytes read under a lock */
	IOBMD_IOC_READ_MAPPING_LOCKED =
		_IOWR(IOBMD_IOC_TYPE, 0x71, struct iobmd_transfer),
};

#endif /* IOBMD_ABI_H */
