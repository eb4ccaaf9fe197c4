// SPDX-License-Identifier: GPL-2.0
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/printk.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "iobmd_pageable.h"

/**
 * iobmd_pageable_file - a file in memory for a buffer and its margins
 * @page_count: pages of the buffer
 *
 * Pages are accounted for when they are touched, not now.  The seals are against
 * a process that punches holes through its mapping (MADV_REMOVE), or opens the
 * file through /proc.
 *
 * Return: the file, or an ERR_PTR.
 */
struct file *iobmd_pageable_file(unsigned long page_count)
{
	loff_t size = (loff_t)(page_count + 2 * IOBMD_MARGIN) << PAGE_SHIFT;
	struct file *file = shmem_file_setup("iobmd", size, VM_NORESERVE);

	if (!IS_ERR(file))
		SHMEM_I(file_inode(file))->seals = F_SEAL_SEAL | F_SEAL_SHRINK |
						   F_SEAL_GROW |
						   F_SEAL_FUTURE_WRITE;
	return file;
}

/**
 * iobmd_pageable_create - make storage of which nothing exists yet
 * @pageable: filled in
 * @page_count: pages
 * @type: memory type of pages that get held
 *
 * Return: 0, or a negative errno.
 */
int iobmd_pageable_create(struct iobmd_pageable *pageable,
			  unsigned long page_count, enum iobmd_memory_type type)
{
	struct file *file = iobmd_pageable_file(page_count);

	if (IS_ERR(file))
		return PTR_ERR(file);
	*pageable = (struct iobmd_pageable){
		.file = file,
		.page_count = page_count,
		.type = type,
	};
	return 0;
}

/**
 * iobmd_pageable_destroy - let go of the pages and of the contents
 * @pageable: what iobmd_pageable_create() made, no longer mapped anywhere
 */
void iobmd_pageable_destroy(struct iobmd_pageable *pageable)
{
	iobmd_pageable_let_go(pageable);
	kvfree(pageable->held);
	fput(pageable->file);
}

/* Rather refuse than have the OOM killer look for a victim. */
static struct page *read_page(struct iobmd_pageable *pageable,
			      unsigned long index)
{
	struct address_space *mapping = pageable->file->f_mapping;

	return shmem_read_mapping_page_gfp(
		mapping, IOBMD_MARGIN + index,
		mapping_gfp_mask(mapping) | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
}

/**
 * iobmd_pageable_borrow - a page for a moment, loose or held
 * @pageable: the storage, of type write-back
 * @index: which page
 *
 * Return: the page with a reference, or an ERR_PTR.
 */
struct page *iobmd_pageable_borrow(struct iobmd_pageable *pageable,
				   unsigned long index)
{
	return read_page(pageable, index);
}

/*
 * A loose page may be mapped by processes, as write-back.  Whoever is about to
 * map it has it locked until the entry is written.
 */
static int take_type(struct iobmd_pageable *pageable, unsigned long index,
		     struct iobmd_scatter *scatter)
{
	int error;

	if (pageable->type == IOBMD_TYPE_WB)
		return 0;
	lock_page(scatter->page);
	unmap_mapping_pages(pageable->file->f_mapping, IOBMD_MARGIN + index, 1,
			    false);
	error = iobmd_scatter_set_type(scatter, pageable->type);
	unlock_page(scatter->page);
	return error;
}

static int allocate_held(struct iobmd_pageable *pageable)
{
	if (pageable->held)
		return 0;
	pageable->held = kvcalloc(pageable->page_count, sizeof(*pageable->held),
				  GFP_KERNEL | __GFP_NOWARN);
	return pageable->held ? 0 : -ENOMEM;
}

/**
 * iobmd_pageable_hold - make a page stay, and give it the type
 * @pageable: the storage
 * @index: which page
 *
 * Return: the page, or an ERR_PTR.
 */
struct page *iobmd_pageable_hold(struct iobmd_pageable *pageable,
				 unsigned long index)
{
	struct iobmd_scatter scatter = {};
	int error;

	error = allocate_held(pageable);
	if (error)
		return ERR_PTR(error);
	if (pageable->held[index].page)
		return pageable->held[index].page;
	scatter.page = read_page(pageable, index);
	if (IS_ERR(scatter.page))
		return scatter.page;
	error = take_type(pageable, index, &scatter);
	if (error) {
		put_page(scatter.page);
		return ERR_PTR(error);
	}
	pageable->held[index] = scatter;
	pageable->held_count++;
	return scatter.page;
}

/**
 * iobmd_pageable_hold_all - make all pages exist and stay
 * @pageable: the storage
 *
 * Return: 0, or a negative errno with some pages held.
 */
int iobmd_pageable_hold_all(struct iobmd_pageable *pageable)
{
	unsigned long i;

	for (i = 0; i < pageable->page_count; i++) {
		struct page *page;

		if (fatal_signal_pending(current))
			return -EINTR;
		page = iobmd_pageable_hold(pageable, i);
		if (IS_ERR(page))
			return PTR_ERR(page);
		cond_resched();
	}
	return 0;
}

/* A device or a kernel mapping may have written to it. */
static void loosen(struct iobmd_scatter *scatter)
{
	if (iobmd_scatter_write_back(scatter))
		pr_err("a page stays allocated: not write-back\n");
	else {
		set_page_dirty(scatter->page);
		put_page(scatter->page);
	}
	*scatter = (struct iobmd_scatter){};
}

/**
 * iobmd_pageable_let_go - all held pages become loose
 * @pageable: the storage; pages of another type than write-back are mapped by
 *	no process
 */
void iobmd_pageable_let_go(struct iobmd_pageable *pageable)
{
	unsigned long i;

	for (i = 0; pageable->held_count; i++) {
		if (!pageable->held[i].page)
			continue;
		loosen(&pageable->held[i]);
		pageable->held_count--;
		cond_resched();
	}
}

/*
 * The next page in memory, with a reference, from a place in the file on; a
 * buffer may be much larger than what exists of it.
 */
static struct page *next_page(const struct iobmd_pageable *pageable,
			      unsigned long *place)
{
	struct address_space *mapping = pageable->file->f_mapping;
	struct page *page = NULL;

	while (!page &&
	       xa_find(&mapping->i_pages, place, ULONG_MAX, XA_PRESENT)) {
		page = find_get_page(mapping, *place);
		*place += 1;
	}
	return page;
}

/* No process maps anything afterwards, or is about to. */
static void unmap_all(struct iobmd_pageable *pageable)
{
	struct address_space *mapping = pageable->file->f_mapping;
	unsigned long place = 0;
	struct page *page;

	unmap_mapping_pages(mapping, 0, 0, false);
	while ((page = next_page(pageable, &place))) {
		lock_page(page);
		unmap_mapping_pages(mapping, place - 1, 1, false);
		unlock_page(page);
		put_page(page);
		cond_resched();
	}
}

static int retype_held(struct iobmd_pageable *pageable,
		       enum iobmd_memory_type type)
{
	unsigned long i;
	int error = 0;

	for (i = 0; pageable->held_count && i < pageable->page_count; i++) {
		struct iobmd_scatter *scatter = &pageable->held[i];

		if (!scatter->page)
			continue;
		error = iobmd_scatter_write_back(scatter);
		if (!error)
			error = iobmd_scatter_set_type(scatter, type);
		if (error)
			break;
		cond_resched();
	}
	return error;
}

/**
 * iobmd_pageable_set_type - another type for the pages held now and later
 * @pageable: the storage
 * @type: an available type
 *
 * Processes lose their mappings and fault them in again.
 *
 * Return: 0, or a negative errno with everything write-back.
 */
int iobmd_pageable_set_type(struct iobmd_pageable *pageable,
			    enum iobmd_memory_type type)
{
	int error;

	unmap_all(pageable);
	error = retype_held(pageable, type);
	if (error) {
		retype_held(pageable, IOBMD_TYPE_WB);
		type = IOBMD_TYPE_WB;
	}
	pageable->type = type;
	return error;
}

/**
 * iobmd_pageable_is_idle - nobody has one of the pages locked
 * @pageable: the storage
 *
 * For whoever must not wait for a page, such as memory reclaim: whoever locked
 * it may be waiting for reclaim.
 */
bool iobmd_pageable_is_idle(const struct iobmd_pageable *pageable)
{
	unsigned long place = 0;
	struct page *page;

	while ((page = next_page(pageable, &place))) {
		bool idle = trylock_page(page);

		if (idle)
			unlock_page(page);
		put_page(page);
		if (!idle)
			return false;
	}
	return true;
}

/**
 * iobmd_pageable_discard - forget the contents; the next touch reads zeros
 * @pageable: the storage
 */
void iobmd_pageable_discard(struct iobmd_pageable *pageable)
{
	struct inode *inode = file_inode(pageable->file);

	unmap_mapping_pages(pageable->file->f_mapping, 0, 0, false);
	iobmd_pageable_let_go(pageable);
	shmem_truncate_range(inode, 0, (loff_t)-1);
}

/**
 * iobmd_pageable_count - pages in memory
 * @pageable: the storage
 * @resident: set to those in memory
 * @dirty: set to those of them that were written to
 */
void iobmd_pageable_count(const struct iobmd_pageable *pageable, u64 *resident,
			  u64 *dirty)
{
	unsigned long place = 0;
	struct page *page;

	*resident = 0;
	*dirty = 0;
	while ((page = next_page(pageable, &place))) {
		*resident += 1;
		*dirty += PageDirty(page) ? 1 : 0;
		put_page(page);
		cond_resched();
	}
}
