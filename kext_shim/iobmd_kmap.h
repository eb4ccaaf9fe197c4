/* SPDX-License-Identifier: GPL-2.0 */
/* A kernel mapping of some of a buffer's pages, that can be changed in place. */
#ifndef IOBMD_KMAP_H
#define IOBMD_KMAP_H

#include <linux/list.h>
#include <linux/mm_types.h>
#include <linux/types.h>

#include "iobmd_abi.h"

/**
 * struct iobmd_kmap - a mapping
 * @link: for the owner's list
 * @base: what vmap() returned: the guard in front, or the first page
 * @address: the first page
 * @first: index of the first page in the buffer
 * @count: pages, without the guards
 * @writable: writes do not fault
 */
struct iobmd_kmap {
	struct list_head link;
	void *base;
	void *address;
	unsigned long first;
	unsigned long count;
	bool writable;
};

int iobmd_kmap_open(struct iobmd_kmap *window, struct page **pages,
		    unsigned long guard, enum iobmd_memory_type type);
void iobmd_kmap_refresh(struct iobmd_kmap *window, struct page **pages,
			enum iobmd_memory_type type);
void iobmd_kmap_blank(struct iobmd_kmap *window, struct page *blank);
void iobmd_kmap_close(struct iobmd_kmap *window);

#endif /* IOBMD_KMAP_H */
