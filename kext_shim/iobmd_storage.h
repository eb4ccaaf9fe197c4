/* SPDX-License-Identifier: GPL-2.0 */
/* A buffer's storage: one block, or several under one kernel mapping. */
#ifndef IOBMD_STORAGE_H
#define IOBMD_STORAGE_H

#include <linux/list.h>
#include <linux/mm_types.h>
#include <linux/types.h>

#include "iobmd_abi.h"
#include "iobmd_gather.h"
#include "iobmd_mapper.h"
#include "iobmd_placement.h"
#include "iobmd_slot.h"

/**
 * struct iobmd_backing - storage, in the same place from creation to destruction
 * @chunks: the blocks, in order
 * @chunk_count: how many
 * @pages: every page, in order
 * @page_count: how many
 * @window: the mapping that makes several blocks one or has guard pages, else
 *	NULL
 * @guard: bytes at either end of @window that fault
 * @address: first byte in the kernel's address space, NULL if mapped nowhere
 * @start: bytes from the start of the first page to @address
 * @bytes: size of the storage
 * @slot: the part of a shared page it is, if it is; there are no @chunks then
 * @io: where devices see its pages, if a mapper is in use
 * @io_address: where devices see its first byte, or 0
 */
struct iobmd_backing {
	struct list_head chunks;
	u32 chunk_count;
	struct page **pages;
	unsigned long page_count;
	void *window;
	u64 guard;
	void *address;
	unsigned int start;
	u64 bytes;
	struct iobmd_slot slot;
	struct iobmd_io_range io;
	u64 io_address;
};

int iobmd_backing_create(struct iobmd_backing *backing,
			 const struct iobmd_plan *plan, const char **reason);
void iobmd_backing_destroy(struct iobmd_backing *backing);
enum iobmd_memory_type iobmd_backing_type(const struct iobmd_backing *backing);
int iobmd_backing_set_type(struct iobmd_backing *backing,
			   enum iobmd_memory_type type, const char **reason);
void *iobmd_backing_at(const struct iobmd_backing *backing, u64 offset,
		       u64 *length);
u64 iobmd_backing_segment(const struct iobmd_backing *backing, u64 offset,
			  u64 limit, u64 *length);

#endif /* IOBMD_STORAGE_H */
