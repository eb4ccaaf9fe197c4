// SPDX-License-Identifier: GPL-2.0
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <asm/tlbflush.h>

#include "iobmd_remap.h"

/*
 * vmap() and vunmap() move the address, and the functions that change a
 * mapping in place are not for modules.  vmap() maps single pages, so every
 * entry of the range exists and can be written like any other.
 */
static void write_entry(unsigned long address, struct page *page,
			pgprot_t protection)
{
	unsigned int level;
	pte_t *entry = lookup_address(address, &level);

	if (WARN_ON_ONCE(!entry || level != PG_LEVEL_4K))
		return;
	set_pte(entry, page ? mk_pte(page, protection) : __pte(0));
}

static void flush_this_cpu(void *unused)
{
	__flush_tlb_all();
}

static void flush(void)
{
	on_each_cpu(flush_this_cpu, NULL, 1);
}

/**
 * iobmd_remap - other pages, or another type, at the same address
 * @address: what vmap() returned, or a page inside
 * @pages: what to map there; a NULL is left to fault
 * @count: pages, inside the range
 * @protection: of every page
 *
 * May sleep.
 */
void iobmd_remap(void *address, struct page **pages, unsigned long count,
		 pgprot_t protection)
{
	unsigned long at = (unsigned long)address;
	unsigned long i;

	for (i = 0; i < count; i++, at += PAGE_SIZE) {
		write_entry(at, pages[i], protection);
		cond_resched();
	}
	flush();
}

/**
 * iobmd_remap_to - one page everywhere
 * @address: what vmap() returned, or a page inside
 * @page: what to map there; NULL leaves the range to fault
 * @count: pages, inside the range
 * @protection: of every page
 *
 * May sleep.
 */
void iobmd_remap_to(void *address, struct page *page, unsigned long count,
		    pgprot_t protection)
{
	unsigned long at = (unsigned long)address;
	unsigned long i;

	for (i = 0; i < count; i++, at += PAGE_SIZE) {
		write_entry(at, page, protection);
		cond_resched();
	}
	flush();
}
