// SPDX-License-Identifier: GPL-2.0
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/set_memory.h>

#include "iobmd_memtype.h"
#include "iobmd_scatter.h"

/* As for a chunk: reserved RAM is what ioremap_wt() takes. */
static int make_write_through(struct iobmd_scatter *scatter)
{
	SetPageReserved(scatter->page);
	scatter->write_through =
		ioremap_wt(page_to_phys(scatter->page), PAGE_SIZE);
	if (scatter->write_through)
		return 0;
	ClearPageReserved(scatter->page);
	return -ENOMEM;
}

static enum iobmd_memory_type type_of(const struct iobmd_scatter *scatter)
{
	return iobmd_memtype_of(page_address(scatter->page), PAGE_SIZE);
}

/**
 * iobmd_scatter_write_back - take a page's type away
 * @scatter: the page, which nothing but the kernel maps
 *
 * Return: 0, or -EIO if it cannot be made write-back and must never be freed.
 */
int iobmd_scatter_write_back(struct iobmd_scatter *scatter)
{
	unsigned long address = (unsigned long)page_address(scatter->page);

	/* Drops the tracking, but leaves the direct map write-through. */
	if (scatter->write_through) {
		iounmap(scatter->write_through);
		scatter->write_through = NULL;
		set_memory_wb(address, 1);
		ClearPageReserved(scatter->page);
	}
	if (type_of(scatter) != IOBMD_TYPE_WB)
		set_memory_wb(address, 1);
	return type_of(scatter) == IOBMD_TYPE_WB ? 0 : -EIO;
}

/**
 * iobmd_scatter_set_type - give a write-back page its type
 * @scatter: the page, which nothing but the kernel maps
 * @type: an available type
 *
 * Return: 0, or a negative errno with the page write-back again.
 */
int iobmd_scatter_set_type(struct iobmd_scatter *scatter,
			   enum iobmd_memory_type type)
{
	unsigned long address = (unsigned long)page_address(scatter->page);
	int error;

	switch (type) {
	case IOBMD_TYPE_WB:
		return iobmd_scatter_write_back(scatter);
	case IOBMD_TYPE_WC:
		error = set_memory_wc(address, 1);
		break;
	case IOBMD_TYPE_UC_MINUS:
		error = set_memory_uc(address, 1);
		break;
	case IOBMD_TYPE_WT:
		error = make_write_through(scatter);
		break;
	default:
		return -EINVAL;
	}
	if (!error && type_of(scatter) != type)
		error = -EIO;
	if (error)
		iobmd_scatter_write_back(scatter);
	return error;
}
