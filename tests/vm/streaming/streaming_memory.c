// SPDX-License-Identifier: GPL-2.0
/* Every kind of memory, once, and every change of its type. */
#include <linux/dma-mapping.h>
#include <linux/dmapool.h>
#include <linux/gfp.h>
#include <linux/set_memory.h>

#include "streaming.h"

#define PAGES 3

static void use_pool(struct device *device)
{
	struct dma_pool *pool = dma_pool_create("blocks", device, 64, 64, 0);
	dma_addr_t bus;
	void *block;

	if (!pool)
		return;
	block = dma_pool_alloc(pool, GFP_KERNEL, &bus);
	if (block)
		dma_pool_free(pool, block, bus);
	dma_pool_destroy(pool);
}

static void use_coherent(struct device *device)
{
	dma_addr_t bus;
	void *memory =
		dma_alloc_coherent(device, 5 * PAGE_SIZE, &bus, GFP_KERNEL);

	if (memory)
		dma_free_coherent(device, 5 * PAGE_SIZE, memory, bus);
}

/* Given back by the driver core, when the driver leaves. */
static void use_managed(struct device *device)
{
	dma_addr_t bus;

	dmam_alloc_coherent(device, 7 * PAGE_SIZE, &bus, GFP_KERNEL);
}

static void use_pages(struct device *device)
{
	dma_addr_t bus;
	struct page *page = dma_alloc_pages(device, 2 * PAGE_SIZE, &bus,
					    DMA_FROM_DEVICE, GFP_KERNEL);

	if (page)
		dma_free_pages(device, 2 * PAGE_SIZE, page, bus,
			       DMA_FROM_DEVICE);
}

static void use_noncontiguous(struct device *device)
{
	struct sg_table *table = dma_alloc_noncontiguous(
		device, 4 * PAGE_SIZE, DMA_TO_DEVICE, GFP_KERNEL, 0);

	if (table)
		dma_free_noncontiguous(device, 4 * PAGE_SIZE, table,
				       DMA_TO_DEVICE);
}

static void change_types(void)
{
	struct page *page = alloc_page(GFP_KERNEL);
	unsigned long address = (unsigned long)page_address(page);

	if (!page)
		return;
	set_memory_uc(address, 1);
	set_memory_wb(address, 1);
	set_memory_wc(address, 1);
	set_memory_wb(address, 1);
	set_pages_uc(page, 1);
	set_pages_wb(page, 1);
	__free_page(page);
}

/* The first and the last of four in a row, and another one. */
static void change_arrays(void)
{
	struct page *row = alloc_pages(GFP_KERNEL, 2);
	struct page *lone = alloc_page(GFP_KERNEL);
	struct page *pages[PAGES];

	if (row && lone) {
		pages[0] = row;
		pages[1] = row + 1;
		pages[2] = lone;
		set_pages_array_uc(pages, PAGES);
		set_pages_array_wb(pages, PAGES);
		set_pages_array_wc(pages, PAGES);
		set_pages_array_wb(pages, PAGES);
	}
	if (lone)
		__free_page(lone);
	if (row)
		__free_pages(row, 2);
}

int streaming_memory(struct device *device)
{
	use_pool(device);
	use_coherent(device);
	use_managed(device);
	use_pages(device);
	use_noncontiguous(device);
	change_types();
	change_arrays();
	return 0;
}
