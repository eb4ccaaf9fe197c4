/* SPDX-License-Identifier: GPL-2.0 */
/* Buffers that share a page. */
#ifndef IOBMD_SLOT_H
#define IOBMD_SLOT_H

#include <linux/types.h>

struct iobmd_chunk;
struct iobmd_slot_page;

/**
 * struct iobmd_slot - a part of a page
 * @page: the page, NULL for no slot
 * @start: bytes from the start of the page
 * @bytes: its size
 */
struct iobmd_slot {
	struct iobmd_slot_page *page;
	unsigned int start;
	unsigned int bytes;
};

int iobmd_slot_get(struct iobmd_slot *slot, unsigned int bytes,
		   unsigned int alignment);
void iobmd_slot_put(struct iobmd_slot *slot);
const struct iobmd_chunk *iobmd_slot_chunk(const struct iobmd_slot *slot);
u64 iobmd_slot_io_address(const struct iobmd_slot *slot);

#endif /* IOBMD_SLOT_H */
