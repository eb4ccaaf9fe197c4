// SPDX-License-Identifier: GPL-2.0
/*
 * What no driver may do, each in a way that harms nothing: no device of this
 * module ever moves a byte.
 */
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/preempt.h>
#include <linux/set_memory.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "streaming.h"

/* Above all memory there is, and below what an address can say. */
#define NOWHERE (1ULL << 45)

static void map(struct device *device, struct page *page, size_t offset)
{
	dma_addr_t bus = dma_map_page(device, page, offset, 16, DMA_TO_DEVICE);

	if (!dma_mapping_error(device, bus))
		dma_unmap_page(device, bus, 16, DMA_TO_DEVICE);
}

/* virt_to_page() is wrong for these; dma_map_single() would refuse them. */
static void map_stack(struct device *device)
{
	char here[16];

	map(device, virt_to_page(here), offset_in_page(here));
}

static void map_list_of_stack(struct device *device)
{
	struct scatterlist list;
	char here[16];

	sg_init_table(&list, 1);
	sg_set_page(&list, virt_to_page(here), 16, offset_in_page(here));
	if (dma_map_sg(device, &list, 1, DMA_TO_DEVICE))
		dma_unmap_sg(device, &list, 1, DMA_TO_DEVICE);
}

/* Its page is a real one: only the kernel's own table of stacks tells. */
static void map_page_of_stack(struct device *device)
{
	char here[16];

	if (is_vmalloc_addr(here))
		map(device, vmalloc_to_page(here), offset_in_page(here));
}

static void map_vmalloc(struct device *device)
{
	char *memory = vmalloc(PAGE_SIZE);

	if (!memory)
		return;
	map(device, virt_to_page(memory), 0);
	set_memory_wb((unsigned long)memory, 1);
	vfree(memory);
}

static void map_in_contexts(struct device *device, struct page *page)
{
	unsigned long flags;

	preempt_disable();
	map(device, page, 0);
	preempt_enable();
	local_irq_save(flags);
	map(device, page, 0);
	local_irq_restore(flags);
}

static void *alloc_dirty(struct device *device, size_t size, dma_addr_t *bus,
			 gfp_t gfp, unsigned long attrs)
{
	char *memory = (char *)get_zeroed_page(gfp);

	if (!memory)
		return NULL;
	memory[size - 1] = 1;
	*bus = virt_to_phys(memory);
	return memory;
}

static void free_dirty(struct device *device, size_t size, void *memory,
		       dma_addr_t bus, unsigned long attrs)
{
	free_page((unsigned long)memory);
}

static const struct dma_map_ops dirty = {
	.alloc = alloc_dirty,
	.free = free_dirty,
};

static void alloc_not_zeroed(struct device *device)
{
	const struct dma_map_ops *before = get_dma_ops(device);
	dma_addr_t bus;
	void *memory;

	set_dma_ops(device, &dirty);
	memory = dma_alloc_coherent(device, 4001, &bus, GFP_KERNEL);
	if (memory)
		dma_free_coherent(device, 4001, memory, bus);
	set_dma_ops(device, before);
}

int streaming_flags(struct device *device)
{
	struct page *page = alloc_page(GFP_KERNEL);

	if (!page)
		return -ENOMEM;
	map_stack(device);
	map_list_of_stack(device);
	map_page_of_stack(device);
	map_vmalloc(device);
	map(device, pfn_to_page(PHYS_PFN(NOWHERE)), 0);
	map_in_contexts(device, page);
	alloc_not_zeroed(device);
	__free_page(page);
	return 0;
}
