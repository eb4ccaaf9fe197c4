/* SPDX-License-Identifier: GPL-2.0 */
/* Exchange the pages or the type of a vmap() range where it stands. */
#ifndef IOBMD_REMAP_H
#define IOBMD_REMAP_H

#include <linux/mm_types.h>
#include <linux/pgtable.h>

void iobmd_remap(void *address, struct page **pages, unsigned long count,
		 pgprot_t protection);
void iobmd_remap_to(void *address, struct page *page, unsigned long count,
		    pgprot_t protection);

#endif /* IOBMD_REMAP_H */
