// SPDX-License-Identifier: GPL-2.0
/*
 * A well-behaved module that makes every kind of streaming mapping once, and
 * uses a pool.
 */
#include <linux/dma-mapping.h>
#include <linux/dmapool.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

static struct platform_device *pdev;

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

static int __init streaming_init(void)
{
	void *memory;

	pdev = platform_device_register_simple("streaming", -1, NULL, 0);
	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	memory = (void *)get_zeroed_page(GFP_KERNEL);
	if (memory &&
	    !dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64))) {
		map_one(&pdev->dev, memory);
		map_list(&pdev->dev, memory);
		use_pool(&pdev->dev);
	}
	free_page((unsigned long)memory);
	return 0;
}

static void __exit streaming_exit(void)
{
	platform_device_unregister(pdev);
}

module_init(streaming_init);
module_exit(streaming_exit);
MODULE_DESCRIPTION("Streaming mappings, well-behaved");
MODULE_LICENSE("GPL");
