/* SPDX-License-Identifier: GPL-2.0 */
/* A buffer's storage: one block, or several under one kernel mapping. */
#ifndef IOBMD_STORAGE_H
#define IOBMD_STORAGE_H

#include <linux/list.h>
#include <linux/mm_types.h>
#include <linux/types.h>

#include "iobmd_abi.h"
#include "iobmd_placement.h"

/**
 * struct iobmd_backing - storage, unchanged from creation to destruction
 * @chunks: the blocks, in order
 * @chunk_count: how many
 * @pages: every page, in order
 * @page_count: how many
 * @window: the mapping that makes several blocks one, else NULL
 * @address: first byte in the kernel's address space
 */
struct iobmd_backing {
	struct list_head chunks;
	u32 chunk_count;
	struct page **pages;
	unsigned long page_count;
	void *window;
	void *address;
};

void iobmd_storage_limits(struct iobmd_limits *limits);
int iobmd_backing_create(struct iobmd_backing *backing,
			 const struct iobmd_plan *plan, const char **reason);
void iobmd_backing_destroy(struct iobmd_backing *backing);
enum iobmd_memory_type iobmd_backing_type(const struct iobmd_backing *backing);
u64 iobmd_backing_segment(const struct iobmd_backing *backing, u64 offset,
			  u64 limit, u64 *length);

#endif /* IOBMD_STORAGE_H */
