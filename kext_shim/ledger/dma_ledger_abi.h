/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * What the ledger of the DMA API writes down, and where.
 *
 * One ring of records of one size for all CPUs: record number n is in slot
 * n % capacity.  Slots lie in blocks; the directory has the physical address
 * of every block.  A record is there once its sequence is n + 1, which is
 * written last.  Whoever has read up to n writes n into the header's consumed;
 * what finds no room is not written, and counted.
 *
 * This header is the only place where these layouts and numbers are written
 * down; the host reads them back out of the built module's DWARF.
 */
#ifndef DMA_LEDGER_ABI_H
#define DMA_LEDGER_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DMA_LEDGER_IOC_TYPE 0xb8

/* In enums, so that they reach the DWARF. */
enum dma_ledger_number {
	DMA_LEDGER_ABI_VERSION = 1,
	DMA_LEDGER_FRAMES = 10,
	DMA_LEDGER_BLOCK_RECORDS = 256,
	DMA_LEDGER_NO_FIELD = 0xffff,
};

enum dma_ledger_kind {
	DMA_LEDGER_NOTHING,
	/* struct dma_ledger_module */
	DMA_LEDGER_MODULE_COMING,
	DMA_LEDGER_MODULE_GOING,
	/* struct dma_ledger_piece */
	DMA_LEDGER_PIECE,
	/* struct dma_ledger_record */
	DMA_LEDGER_ALLOC,
	DMA_LEDGER_FREE,
	DMA_LEDGER_ALLOC_PAGES,
	DMA_LEDGER_FREE_PAGES,
	DMA_LEDGER_ALLOC_NONCONTIGUOUS,
	DMA_LEDGER_FREE_NONCONTIGUOUS,
	DMA_LEDGER_MAP_PAGE,
	DMA_LEDGER_UNMAP_PAGE,
	DMA_LEDGER_MAP_SG,
	DMA_LEDGER_MAP_SGTABLE,
	DMA_LEDGER_UNMAP_SG,
	DMA_LEDGER_MAP_RESOURCE,
	DMA_LEDGER_UNMAP_RESOURCE,
	DMA_LEDGER_SYNC_FOR_CPU,
	DMA_LEDGER_SYNC_FOR_DEVICE,
	DMA_LEDGER_SYNC_SG_FOR_CPU,
	DMA_LEDGER_SYNC_SG_FOR_DEVICE,
	DMA_LEDGER_POOL_CREATE,
	DMA_LEDGER_POOL_ALLOC,
	DMA_LEDGER_POOL_FREE,
	DMA_LEDGER_POOL_DESTROY,
	DMA_LEDGER_SET_MASK,
	DMA_LEDGER_SET_COHERENT_MASK,
	DMA_LEDGER_MMAP,
	DMA_LEDGER_MEMORY_UC,
	DMA_LEDGER_MEMORY_WC,
	DMA_LEDGER_MEMORY_WB,
	DMA_LEDGER_PAGES_UC,
	DMA_LEDGER_PAGES_WB,
	DMA_LEDGER_PAGES_ARRAY_UC,
	DMA_LEDGER_PAGES_ARRAY_WC,
	DMA_LEDGER_PAGES_ARRAY_WB,
	/* vm_insert_page(), vm_insert_pages(), remap_pfn_range() */
	DMA_LEDGER_USER_PAGE,
	DMA_LEDGER_USER_PAGES,
	DMA_LEDGER_USER_RANGE,
	/* vmf_insert_pfn(), vmf_insert_pfn_prot(), vmf_insert_mixed() */
	DMA_LEDGER_USER_FRAME,
	DMA_LEDGER_USER_FRAME_PROT,
	DMA_LEDGER_USER_MIXED,
	/* a driver was tried on a device, and left it with all devres freed */
	DMA_LEDGER_BIND,
	DMA_LEDGER_UNBIND,
	DMA_LEDGER_KINDS,
};

enum dma_ledger_flag {
	/* the caller's, not the probe's */
	DMA_LEDGER_IRQS_OFF = 0x1,
	DMA_LEDGER_ATOMIC = 0x2,
	/* a byte of fresh memory was not 0 */
	DMA_LEDGER_NOT_ZEROED = 0x4,
	/* the address has no memory behind it that the kernel knows */
	DMA_LEDGER_NO_RAM = 0x8,
	DMA_LEDGER_VMALLOC = 0x10,
	/* on the kernel stack of the caller */
	DMA_LEDGER_STACK = 0x20,
	/* the stack could not be followed beyond its first frame */
	DMA_LEDGER_SHORT_STACK = 0x40,
};

/**
 * struct dma_ledger_record - one call of the DMA API
 * @sequence: the record's number + 1
 * @time: nanoseconds, the kernel log's clock; when the call returned, or for
 *	calls that end something (free, unmap, sync) when it was made
 * @kind: enum dma_ledger_kind
 * @direction: enum dma_data_direction, or NO_FIELD
 * @pieces: piece records that follow this one, at once
 * @cpu: number
 * @frames: entries of @stack
 * @flags: enum dma_ledger_flag
 * @pid: thread
 * @preempt: preempt_count() of the caller, where the kernel counts
 * @device: address of its struct device, or 0
 * @mask: its streaming DMA mask when the call was made, 0 for none
 * @coherent_mask: its coherent DMA mask
 * @boundary: its segment boundary mask, 0 where none was set
 * @size: bytes; the new mask for set_mask; pages for set_memory and set_pages
 * @bus: DMA address of the first byte; of user mappings other than mmap the
 *	physical address of the process's top page table
 * @virtual_address: kernel address; the list for scatter-gather calls; the
 *	object for pages, noncontiguous memory and arrays of pages
 * @physical: of the first byte, or 0
 * @attrs: DMA_ATTR_*
 * @gfp: of allocations; of user mappings the low half of the page protection
 *	that was asked for
 * @owner: the pool; a mapping's user address; a pool's alignment is in @bus
 * @error: 0 or a negative errno
 * @module: id of the module of the first frame that is in one, 0 for none; of
 *	bind and unbind the driver's; of user mappings without such a frame the
 *	one whose file is mapped
 * @driver: of the device, shortened
 * @subsystem: the bus, shortened
 * @name: of the device, or of the pool for pool_create, shortened
 * @stack: return addresses, the caller's first
 */
struct dma_ledger_record {
	__u64 sequence;
	__u64 time;
	__u16 kind;
	__u16 direction;
	__u32 pieces;
	__u16 cpu;
	__u16 frames;
	__u32 flags;
	__u32 pid;
	__u32 preempt;
	__u64 device;
	__u64 mask;
	__u64 coherent_mask;
	__u64 boundary;
	__u64 size;
	__u64 bus;
	__u64 virtual_address;
	__u64 physical;
	__u32 attrs;
	__u32 gfp;
	__u64 owner;
	__s32 error;
	__u32 module;
	char driver[16];
	char subsystem[12];
	char name[20];
	__u64 stack[DMA_LEDGER_FRAMES];
};

/**
 * struct dma_ledger_piece - a physical run of what the record before has
 * @sequence: the record's number + 1
 * @time: of the call
 * @kind: DMA_LEDGER_PIECE
 * @reserved: 0
 * @index: which of the call's pieces
 * @parent: number of the call's record
 * @physical: of the first byte
 * @length: bytes
 * @bus: DMA address, for lists only
 * @bus_length: bytes the device sees there, 0 for none
 * @padding: 0
 */
struct dma_ledger_piece {
	__u64 sequence;
	__u64 time;
	__u16 kind;
	__u16 reserved;
	__u32 index;
	__u64 parent;
	__u64 physical;
	__u64 length;
	__u64 bus;
	__u64 bus_length;
	__u64 padding[24];
};

/**
 * struct dma_ledger_module - code that came or went
 * @sequence: the record's number + 1
 * @time: nanoseconds
 * @kind: DMA_LEDGER_MODULE_COMING or DMA_LEDGER_MODULE_GOING
 * @init: 1 for the code that is dropped after init
 * @id: of the module, from 1, never used twice
 * @base: address of its code
 * @size: bytes
 * @name: of the module
 * @padding: 0
 */
struct dma_ledger_module {
	__u64 sequence;
	__u64 time;
	__u16 kind;
	__u16 init;
	__u32 id;
	__u64 base;
	__u64 size;
	char name[64];
	__u64 padding[19];
};

/**
 * struct dma_ledger_header - the ring's only page that is no record
 * @produced: records numbered so far
 * @consumed: records read so far; the reader's
 * @lost: records that found no room
 * @stale: breakpoints that were met after they had been taken away
 */
struct dma_ledger_header {
	__u64 produced;
	__u64 consumed;
	__u64 lost;
	__u64 stale;
};

/**
 * struct dma_ledger_info - where the ring is, and what was missed
 * @abi_version: DMA_LEDGER_ABI_VERSION it was built with
 * @record_size: bytes
 * @capacity: records
 * @header: physical address of struct dma_ledger_header
 * @directory: physical address of an array of 64-bit physical addresses
 * @blocks: entries of it; a block has DMA_LEDGER_BLOCK_RECORDS records
 * @produced: as in the header
 * @consumed: as in the header
 * @lost: as in the header
 * @missed: calls of watched functions that could not be recorded
 * @armed: bit per enum dma_ledger_kind that is watched
 */
struct dma_ledger_info {
	__u32 abi_version;
	__u32 record_size;
	__u64 capacity;
	__u64 header;
	__u64 directory;
	__u64 blocks;
	__u64 produced;
	__u64 consumed;
	__u64 lost;
	__u64 missed;
	__u64 armed;
};

enum dma_ledger_ioctl {
	DMA_LEDGER_IOC_INFO =
		_IOR(DMA_LEDGER_IOC_TYPE, 0x40, struct dma_ledger_info),
};

#endif /* DMA_LEDGER_ABI_H */
