/* SPDX-License-Identifier: GPL-2.0 */
/* One physically contiguous block of memory and its memory type. */
#ifndef IOBMD_CHUNK_H
#define IOBMD_CHUNK_H

#include <linux/device.h>
#include <linux/list.h>
#include <linux/types.h>

#include "iobmd_abi.h"
#include "iobmd_placement.h"

/**
 * struct iobmd_chunk - a block
 * @link: for the owner's list
 * @device: what it was allocated for, NULL for pages taken over
 * @address: first byte, in the direct map
 * @bus_address: first byte as @device sees it
 * @bytes: whole pages
 * @write_through: the second mapping that makes the pages write-through
 * @reserved: its pages are marked reserved
 */
struct iobmd_chunk {
	struct list_head link;
	struct device *device;
	void *address;
	dma_addr_t bus_address;
	size_t bytes;
	void __iomem *write_through;
	bool reserved;
};

struct iobmd_chunk *iobmd_chunk_alloc(struct device *device, size_t bytes,
				      gfp_t gfp);
struct iobmd_chunk *iobmd_chunk_adopt(u64 physical, size_t bytes);
bool iobmd_chunk_is_usable(const struct iobmd_chunk *chunk,
			   const struct iobmd_plan *plan);
int iobmd_chunk_set_type(struct iobmd_chunk *chunk,
			 enum iobmd_memory_type type);
enum iobmd_memory_type iobmd_chunk_type(const struct iobmd_chunk *chunk);
void iobmd_chunk_free(struct iobmd_chunk *chunk);

#endif /* IOBMD_CHUNK_H */
