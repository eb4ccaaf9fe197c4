// SPDX-License-Identifier: GPL-2.0
/* Every kind of streaming mapping, once. */
#include <linux/dma-mapping.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "streaming.h"

/* Of the I/O APIC: what is mapped as a resource must not be memory. */
#define REGISTERS 0xfec00000

static void map_one(struct device *device, void *memory)
{
	dma_addr_t bus = dma_map_single(device, memory, 1000, DMA_FROM_DEVICE);

	if (dma_mapping_error(device, bus))
		return;
	dma_sync_single_for_cpu(device, bus + 100, 50, DMA_FROM_DEVICE);
	dma_sync_single_for_device(device, bus + 100, 50, DMA_FROM_DEVICE);
	dma_unmap_single(device, bus, 1000, DMA_FROM_DEVICE);
}

static void map_list(struct device *device, void *memory)
{
	struct scatterlist list[2];

	sg_init_table(list, 2);
	sg_set_buf(&list[0], memory, 100);
	sg_set_buf(&list[1], memory + 2048, 200);
	if (!dma_map_sg(device, list, 2, DMA_TO_DEVICE))
		return;
	dma_sync_sg_for_cpu(device, list, 2, DMA_TO_DEVICE);
	dma_sync_sg_for_device(device, list, 2, DMA_TO_DEVICE);
	dma_unmap_sg(device, list, 2, DMA_TO_DEVICE);
}

static void map_table(struct device *device, void *memory)
{
	struct sg_table table;

	if (sg_alloc_table(&table, 3, GFP_KERNEL))
		return;
	sg_set_buf(&table.sgl[0], memory, 1024);
	sg_set_buf(&table.sgl[1], memory + 1024, 1024);
	sg_set_buf(&table.sgl[2], memory + 3072, 512);
	if (!dma_map_sgtable(device, &table, DMA_BIDIRECTIONAL, 0))
		dma_unmap_sgtable(device, &table, DMA_BIDIRECTIONAL, 0);
	sg_free_table(&table);
}

static void map_registers(struct device *device)
{
	dma_addr_t bus = dma_map_resource(device, REGISTERS, PAGE_SIZE,
					  DMA_TO_DEVICE, 0);

	if (!dma_mapping_error(device, bus))
		dma_unmap_resource(device, bus, PAGE_SIZE, DMA_TO_DEVICE, 0);
}

int streaming_lists(struct device *device)
{
	void *memory = (void *)get_zeroed_page(GFP_KERNEL);

	if (!memory)
		return -ENOMEM;
	map_one(device, memory);
	map_list(device, memory);
	map_table(device, memory);
	map_registers(device);
	free_page((unsigned long)memory);
	return 0;
}
