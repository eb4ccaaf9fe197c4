// SPDX-License-Identifier: GPL-2.0
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/set_memory.h>
#include <linux/slab.h>

#include "iobmd_chunk.h"
#include "iobmd_memtype.h"

/* Behind an IOMMU only a forced-contiguous block lies in the direct map. */
#define CHUNK_ATTRS (DMA_ATTR_FORCE_CONTIGUOUS | DMA_ATTR_NO_WARN)

/**
 * iobmd_chunk_alloc - allocate a block, zeroed and write-back
 * @device: whose DMA mask the addresses have to fit
 * @bytes: whole pages
 * @gfp: how hard to try; a failure is never logged
 *
 * A block from the page allocator is aligned, physically and virtually, to its
 * size rounded up to a power of two; one from CMA may be aligned to less.
 *
 * Return: the block, or NULL.
 */
struct iobmd_chunk *iobmd_chunk_alloc(struct device *device, size_t bytes,
				      gfp_t gfp)
{
	struct iobmd_chunk *chunk;

	chunk = kzalloc(sizeof(*chunk), GFP_KERNEL | __GFP_NOWARN);
	if (!chunk)
		return NULL;
	chunk->device = device;
	chunk->bytes = bytes;
	chunk->address = dma_alloc_attrs(device, bytes, &chunk->bus_address,
					 gfp | __GFP_NOWARN, CHUNK_ATTRS);
	if (!chunk->address) {
		kfree(chunk);
		return NULL;
	}
	return chunk;
}

/**
 * iobmd_chunk_adopt - make a block of pages that are there already
 * @physical: address of the first page; each page is free and has a reference
 *	of its own (split_page())
 * @bytes: whole pages
 *
 * Clears them.  On x86 coherent memory is any memory; what the DMA API adds is
 * finding it.
 *
 * Return: the block, or NULL with the pages still the caller's.
 */
struct iobmd_chunk *iobmd_chunk_adopt(u64 physical, size_t bytes)
{
	struct iobmd_chunk *chunk;

	chunk = kzalloc(sizeof(*chunk), GFP_KERNEL | __GFP_NOWARN);
	if (!chunk)
		return NULL;
	chunk->address = phys_to_virt(physical);
	chunk->bus_address = physical;
	chunk->bytes = bytes;
	memset(chunk->address, 0, bytes);
	return chunk;
}

/**
 * iobmd_chunk_is_usable - does a plan accept all of a block?
 * @chunk: the block
 * @plan: the plan
 *
 * Return: true if every page has an address as @plan demands.
 */
bool iobmd_chunk_is_usable(const struct iobmd_chunk *chunk,
			   const struct iobmd_plan *plan)
{
	u64 start = virt_to_phys(chunk->address);
	u64 at;

	return iobmd_usable(plan, start, start + chunk->bytes, chunk->bytes,
			    &at) == chunk->bytes;
}

static int chunk_pages(const struct iobmd_chunk *chunk)
{
	return chunk->bytes >> PAGE_SHIFT;
}

static void mark_reserved(struct iobmd_chunk *chunk, bool reserved)
{
	struct page *page = virt_to_page(chunk->address);
	int left = chunk_pages(chunk);

	for (; left; left--, page++)
		if (reserved)
			SetPageReserved(page);
		else
			ClearPageReserved(page);
	chunk->reserved = reserved;
}

/*
 * No set_memory_wt() exists.  ioremap_wt() takes RAM whose pages are reserved,
 * tracks it as write-through and turns the direct map write-through as well
 * (__ioremap_check_ram() and memtype_kernel_map_sync() in arch/x86/mm), for as
 * long as its own mapping lives.
 */
static int make_write_through(struct iobmd_chunk *chunk)
{
	mark_reserved(chunk, true);
	chunk->write_through =
		ioremap_wt(virt_to_phys(chunk->address), chunk->bytes);
	return chunk->write_through ? 0 : -ENOMEM;
}

/*
 * Neither a zero from set_memory_wb() nor a page handed out by the kernel is
 * believed to be write-back before its page table entries say so.
 */
static int make_write_back(struct iobmd_chunk *chunk)
{
	unsigned long address = (unsigned long)chunk->address;

	if (iobmd_memtype_of(chunk->address, chunk->bytes) == IOBMD_TYPE_WB)
		return 0;
	set_memory_wb(address, chunk_pages(chunk));
	if (iobmd_memtype_of(chunk->address, chunk->bytes) != IOBMD_TYPE_WB)
		return -EIO;
	return 0;
}

/* Undo a type, whichever it is and however far it got. */
static int drop_type(struct iobmd_chunk *chunk)
{
	int error;

	/* Drops the tracking, but leaves the direct map write-through. */
	if (chunk->write_through)
		iounmap(chunk->write_through);
	chunk->write_through = NULL;
	error = make_write_back(chunk);
	if (!error && chunk->reserved)
		mark_reserved(chunk, false);
	return error;
}

/**
 * iobmd_chunk_set_type - give a block its memory type
 * @chunk: a block, fresh or with another type
 * @type: an available type
 *
 * May fail half way; iobmd_chunk_free() undoes whatever was done, and so does
 * setting the type to IOBMD_TYPE_WB.
 *
 * Return: 0 if every page table entry has @type, else a negative errno.
 */
int iobmd_chunk_set_type(struct iobmd_chunk *chunk, enum iobmd_memory_type type)
{
	unsigned long address = (unsigned long)chunk->address;
	int error;

	/* The kernel tracks one type per page and replaces none but WB. */
	error = drop_type(chunk);
	if (error)
		return error;
	switch (type) {
	case IOBMD_TYPE_WB:
		return 0; /* drop_type() has looked */
	case IOBMD_TYPE_WC:
		error = set_memory_wc(address, chunk_pages(chunk));
		break;
	case IOBMD_TYPE_UC_MINUS:
		error = set_memory_uc(address, chunk_pages(chunk));
		break;
	case IOBMD_TYPE_WT:
		error = make_write_through(chunk);
		break;
	default:
		error = -EINVAL;
		break;
	}
	if (error)
		return error;
	return iobmd_chunk_type(chunk) == type ? 0 : -EIO;
}

/**
 * iobmd_chunk_type - the memory type of all mappings of a block
 * @chunk: the block
 *
 * Return: the type, or IOBMD_TYPE_OTHER if its mappings disagree.
 */
enum iobmd_memory_type iobmd_chunk_type(const struct iobmd_chunk *chunk)
{
	enum iobmd_memory_type type;

	type = iobmd_memtype_of(chunk->address, chunk->bytes);
	if (chunk->write_through &&
	    iobmd_memtype_of((__force void *)chunk->write_through,
			     chunk->bytes) != type)
		return IOBMD_TYPE_OTHER;
	return type;
}

/**
 * iobmd_chunk_free - take the type back, then give the pages home
 * @chunk: the block
 *
 * Pages that cannot be made write-back again are kept for good: the next owner
 * would get them with a type nobody knows of.
 */
void iobmd_chunk_free(struct iobmd_chunk *chunk)
{
	if (drop_type(chunk))
		pr_err("iobmd: %zu bytes at %p stay allocated: not write-back\n",
		       chunk->bytes, chunk->address);
	else if (chunk->device)
		dma_free_attrs(chunk->device, chunk->bytes, chunk->address,
			       chunk->bus_address, CHUNK_ATTRS);
	else
		free_pages_exact(chunk->address, chunk->bytes);
	kfree(chunk);
}
