// SPDX-License-Identifier: GPL-2.0
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "iobmd_memtype.h"
#include "iobmd_remap.h"
#include "iobmd_kmap.h"

static pgprot_t protection(const struct iobmd_kmap *window,
			   enum iobmd_memory_type type)
{
	pgprot_t prot = iobmd_memtype_pgprot(type);

	if (!window->writable)
		prot = __pgprot(pgprot_val(prot) & ~(_PAGE_RW | _PAGE_DIRTY));
	return prot;
}

/* vmap() has no holes: guards begin as any page and then lose it. */
static struct page **with_guards(struct page **pages, unsigned long count,
				 unsigned long guard)
{
	struct page **all;
	unsigned long i;

	all = kvmalloc_array(count + 2 * guard, sizeof(*all),
			     GFP_KERNEL | __GFP_NOWARN);
	if (!all)
		return NULL;
	for (i = 0; i < guard; i++) {
		all[i] = pages[0];
		all[guard + count + i] = pages[0];
	}
	memcpy(all + guard, pages, count * sizeof(*pages));
	return all;
}

/**
 * iobmd_kmap_open - map pages into the kernel
 * @window: @count and @writable are set; the rest is filled in
 * @pages: @count pages, which have @type
 * @guard: pages that fault in front, and as many behind
 * @type: memory type of the mapping
 *
 * Return: 0, or -ENOMEM.
 */
int iobmd_kmap_open(struct iobmd_kmap *window, struct page **pages,
		    unsigned long guard, enum iobmd_memory_type type)
{
	unsigned long behind = (guard + window->count) << PAGE_SHIFT;
	struct page **all;

	all = with_guards(pages, window->count, guard);
	if (!all)
		return -ENOMEM;
	window->base = vmap(all, window->count + 2 * guard, VM_MAP,
			    protection(window, type));
	kvfree(all);
	if (!window->base)
		return -ENOMEM;
	window->address = window->base + (guard << PAGE_SHIFT);
	if (guard) {
		iobmd_remap_to(window->base, NULL, guard, __pgprot(0));
		iobmd_remap_to(window->base + behind, NULL, guard, __pgprot(0));
	}
	return 0;
}

/**
 * iobmd_kmap_refresh - other pages, or another type, at the same address
 * @window: the mapping
 * @pages: its pages
 * @type: their memory type
 */
void iobmd_kmap_refresh(struct iobmd_kmap *window, struct page **pages,
			enum iobmd_memory_type type)
{
	iobmd_remap(window->address, pages, window->count,
		    protection(window, type));
}

/**
 * iobmd_kmap_blank - a page of zeros in the place of every page
 * @window: the mapping
 * @blank: the page, write-back
 */
void iobmd_kmap_blank(struct iobmd_kmap *window, struct page *blank)
{
	iobmd_remap_to(window->address, blank, window->count,
		       protection(window, IOBMD_TYPE_WB));
}

/**
 * iobmd_kmap_close - unmap
 * @window: what iobmd_kmap_open() made
 */
void iobmd_kmap_close(struct iobmd_kmap *window)
{
	vunmap(window->base);
}
