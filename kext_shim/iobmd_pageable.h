/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Storage that can be paged out: an unlinked file in memory.
 *
 * A page is either loose or held.  Loose pages are write-back and the kernel's
 * to swap out and to move.  A held page stays where it is and has the buffer's
 * memory type.  A page of any other type than write-back is never loose.
 */
#ifndef IOBMD_PAGEABLE_H
#define IOBMD_PAGEABLE_H

#include <linux/fs.h>
#include <linux/mm_types.h>
#include <linux/types.h>

#include "iobmd_abi.h"
#include "iobmd_scatter.h"

/*
 * The file is longer than the buffer by this many pages on either side, which
 * are never touched: guard pages of user mappings lie there.
 */
#define IOBMD_MARGIN 16ul

/**
 * struct iobmd_pageable - storage
 * @file: contents, and the address space of every user mapping
 * @held: one per page, allocated when the first page is held
 * @page_count: pages of the buffer
 * @held_count: pages held now
 * @type: memory type of held pages
 *
 * The owner's lock protects all of it.
 */
struct iobmd_pageable {
	struct file *file;
	struct iobmd_scatter *held;
	unsigned long page_count;
	unsigned long held_count;
	enum iobmd_memory_type type;
};

struct file *iobmd_pageable_file(unsigned long page_count);
int iobmd_pageable_create(struct iobmd_pageable *pageable,
			  unsigned long page_count,
			  enum iobmd_memory_type type);
void iobmd_pageable_destroy(struct iobmd_pageable *pageable);
struct page *iobmd_pageable_borrow(struct iobmd_pageable *pageable,
				   unsigned long index);
struct page *iobmd_pageable_hold(struct iobmd_pageable *pageable,
				 unsigned long index);
int iobmd_pageable_hold_all(struct iobmd_pageable *pageable);
void iobmd_pageable_let_go(struct iobmd_pageable *pageable);
int iobmd_pageable_set_type(struct iobmd_pageable *pageable,
			    enum iobmd_memory_type type);
bool iobmd_pageable_is_idle(const struct iobmd_pageable *pageable);
void iobmd_pageable_discard(struct iobmd_pageable *pageable);
void iobmd_pageable_count(const struct iobmd_pageable *pageable, u64 *resident,
			  u64 *dirty);

#endif /* IOBMD_PAGEABLE_H */
