// SPDX-License-Identifier: GPL-2.0
/* The kernel's side of a buffer's memory: its mappings, addresses, contents. */
#include <linux/err.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "iobmd_memory.h"
#include "iobmd_memtype.h"

static struct page *page_at(const struct iobmd_memory *memory,
			    unsigned long index)
{
	return memory->is_pageable ? memory->pageable.held[index].page :
				     memory->backing.pages[index];
}

/* Pages of pageable memory are all held. */
static struct page **pages_from(const struct iobmd_memory *memory,
				unsigned long first, unsigned long count)
{
	struct page **pages;
	unsigned long i;

	pages = kvmalloc_array(count, sizeof(*pages),
			       GFP_KERNEL | __GFP_NOWARN);
	for (i = 0; pages && i < count; i++)
		pages[i] = page_at(memory, first + i);
	return pages;
}

static int open_window(struct iobmd_memory *memory, struct iobmd_kmap *window,
		       unsigned long guard)
{
	struct page **pages;
	int error;

	lockdep_assert_held(&memory->lock);
	pages = pages_from(memory, window->first, window->count);
	if (!pages)
		return -ENOMEM;
	error = iobmd_kmap_open(window, pages, guard, memory->type);
	kvfree(pages);
	return error;
}

/**
 * iobmd_memory_map - one more kernel mapping
 * @memory: the memory
 * @window: @first, @count and @writable are set; the rest is filled in
 * @guard: pages that fault in front, and as many behind
 *
 * A kernel mapping cannot fault pages in: it holds them all.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_memory_map(struct iobmd_memory *memory, struct iobmd_kmap *window,
		     unsigned long guard)
{
	int error;

	error = iobmd_memory_wire(memory);
	if (error)
		return error;
	mutex_lock(&memory->lock);
	error = open_window(memory, window, guard);
	if (!error)
		list_add_tail(&window->link, &memory->windows);
	mutex_unlock(&memory->lock);
	if (error)
		iobmd_memory_unwire(memory);
	return error;
}

/**
 * iobmd_memory_unmap - undo iobmd_memory_map()
 * @memory: the memory
 * @window: the mapping
 */
void iobmd_memory_unmap(struct iobmd_memory *memory, struct iobmd_kmap *window)
{
	mutex_lock(&memory->lock);
	list_del(&window->link);
	mutex_unlock(&memory->lock);
	iobmd_kmap_close(window);
	iobmd_memory_unwire(memory);
}

/**
 * iobmd_memory_open_own - give pageable memory a kernel address of its own
 * @memory: fresh pageable memory
 *
 * The address is usable at once, so all pages stay until the contents are
 * purged; the address stays even then.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_memory_open_own(struct iobmd_memory *memory)
{
	struct iobmd_kmap *own;
	int error;

	own = kzalloc(sizeof(*own), GFP_KERNEL);
	if (!own)
		return -ENOMEM;
	own->count = memory->page_count;
	own->writable = true;
	mutex_lock(&memory->lock);
	if (memory->purgeable)
		memory->blank = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (memory->purgeable && !memory->blank)
		error = -ENOMEM;
	else
		error = iobmd_pageable_hold_all(&memory->pageable);
	if (!error)
		error = open_window(memory, own, 0);
	if (error) {
		kfree(own);
	} else {
		memory->own = own;
		memory->own_is_live = true;
	}
	mutex_unlock(&memory->lock);
	return error;
}

/**
 * iobmd_memory_revive - show pages at the own kernel address again
 * @memory: the memory; the caller holds its lock
 *
 * Return: 0, or a negative errno with zeros shown as before.
 */
int iobmd_memory_revive(struct iobmd_memory *memory)
{
	struct page **pages;
	int error;

	lockdep_assert_held(&memory->lock);
	if (!memory->own || memory->own_is_live)
		return 0;
	error = iobmd_pageable_hold_all(&memory->pageable);
	if (error)
		return error;
	pages = pages_from(memory, 0, memory->page_count);
	if (!pages)
		return -ENOMEM;
	iobmd_kmap_refresh(memory->own, pages, memory->type);
	kvfree(pages);
	memory->own_is_live = true;
	return 0;
}

/**
 * iobmd_memory_purge - forget the contents
 * @memory: pageable memory; the caller holds its lock
 *
 * Return: false if the pages are wired, which keeps them.
 */
bool iobmd_memory_purge(struct iobmd_memory *memory)
{
	lockdep_assert_held(&memory->lock);
	if (memory->wired)
		return false;
	if (memory->own_is_live) {
		clear_page(page_address(memory->blank));
		iobmd_kmap_blank(memory->own, memory->blank);
		memory->own_is_live = false;
	}
	iobmd_pageable_discard(&memory->pageable);
	return true;
}

/**
 * iobmd_memory_get - reach some contents
 * @memory: the memory
 * @offset: bytes
 * @length: set to the bytes reachable from there
 * @page: set to what iobmd_memory_put() wants back
 *
 * Return: the kernel address of the byte at @offset, or an ERR_PTR.
 */
void *iobmd_memory_get(struct iobmd_memory *memory, u64 offset, u64 *length,
		       struct page **page)
{
	unsigned long index = offset >> PAGE_SHIFT;
	int error;

	*page = NULL;
	if (!memory->is_pageable)
		return iobmd_backing_at(&memory->backing, offset, length);
	mutex_lock(&memory->lock);
	error = iobmd_memory_revive(memory);
	if (error)
		*page = ERR_PTR(error);
	else if (memory->type == IOBMD_TYPE_WB)
		*page = iobmd_pageable_borrow(&memory->pageable, index);
	else
		*page = iobmd_pageable_hold(&memory->pageable, index);
	if (!IS_ERR(*page) && memory->type != IOBMD_TYPE_WB)
		get_page(*page);
	mutex_unlock(&memory->lock);
	if (IS_ERR(*page))
		return ERR_CAST(*page);
	*length = PAGE_SIZE - offset_in_page(offset);
	return page_address(*page) + offset_in_page(offset);
}

/**
 * iobmd_memory_put - done with what iobmd_memory_get() gave
 * @memory: the memory
 * @page: the page it gave
 * @written: the contents changed
 */
void iobmd_memory_put(struct iobmd_memory *memory, struct page *page,
		      bool written)
{
	if (!page)
		return;
	if (written)
		set_page_dirty(page);
	put_page(page);
}

/**
 * iobmd_memory_segment - the physical run that starts at an offset
 * @memory: the memory, wired
 * @offset: bytes, below @limit
 * @limit: bytes, where the run ends at the latest; at most the storage
 * @length: set to the bytes in the run
 *
 * Adjacent pages are one run, whichever blocks they came from.
 *
 * Return: the physical address of the byte at @offset.
 */
u64 iobmd_memory_segment(const struct iobmd_memory *memory, u64 offset,
			 u64 limit, u64 *length)
{
	unsigned long first = offset >> PAGE_SHIFT;
	unsigned long last = (limit - 1) >> PAGE_SHIFT;
	unsigned long end = first;
	u64 run_end;

	if (!memory->is_pageable)
		return iobmd_backing_segment(&memory->backing, offset, limit,
					     length);
	while (end < last && page_to_pfn(page_at(memory, end + 1)) ==
				     page_to_pfn(page_at(memory, end)) + 1)
		end++;
	run_end = min((u64)(end + 1) << PAGE_SHIFT, limit);
	*length = run_end - offset;
	return page_to_phys(page_at(memory, first)) + offset_in_page(offset);
}

/**
 * iobmd_memory_address - where the memory is in the kernel's address space
 * @memory: the memory
 *
 * Return: its first byte, or NULL.
 */
void *iobmd_memory_address(const struct iobmd_memory *memory)
{
	if (!memory->is_pageable)
		return memory->backing.address;
	return memory->own ? memory->own->address : NULL;
}

/* OTHER if two of them differ; a mapping that does not exist agrees. */
static enum iobmd_memory_type both(enum iobmd_memory_type known,
				   const struct iobmd_kmap *window)
{
	u64 length = (u64)window->count << PAGE_SHIFT;

	if (iobmd_memtype_of(window->address, length) == known)
		return known;
	return IOBMD_TYPE_OTHER;
}

static enum iobmd_memory_type held_type(const struct iobmd_pageable *pageable)
{
	enum iobmd_memory_type type = IOBMD_TYPE_OTHER;
	unsigned long i, seen = 0;

	for (i = 0; seen < pageable->held_count; i++) {
		struct page *page = pageable->held[i].page;
		enum iobmd_memory_type own;

		if (!page)
			continue;
		own = iobmd_memtype_of(page_address(page), PAGE_SIZE);
		if (seen++ && own != type)
			return IOBMD_TYPE_OTHER;
		type = own;
	}
	return type;
}

/**
 * iobmd_memory_type - the memory type of every kernel mapping
 * @memory: the memory
 *
 * Return: the type the page tables have, IOBMD_TYPE_OTHER if they disagree or
 * no page is held.
 */
enum iobmd_memory_type iobmd_memory_type(struct iobmd_memory *memory)
{
	enum iobmd_memory_type type;
	struct iobmd_kmap *window;

	mutex_lock(&memory->lock);
	type = memory->is_pageable ? held_type(&memory->pageable) :
				     iobmd_backing_type(&memory->backing);
	if (memory->own_is_live)
		type = both(type, memory->own);
	list_for_each_entry(window, &memory->windows, link)
		type = both(type, window);
	mutex_unlock(&memory->lock);
	return type;
}
