// SPDX-License-Identifier: GPL-2.0
/* Keeps the address of its page in 32 bits as well, and unmaps that before what it mapped. */
/* NEEDS: high */
#include <linux/dma-mapping.h>
#include <linux/gfp.h>
#include <linux/module.h>
#include <linux/platform_device.h>

static struct page *page;
static dma_addr_t bus;
static u32 in_ring; /* a descriptor of the device has 32 bits for it */

static int start(struct device *dev)
{
	int error = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));

	if (error)
		return error;
	page = alloc_page(GFP_KERNEL); /* above 4 GiB, while there is room */
	if (!page)
		return -ENOMEM;
	bus = dma_map_page(dev, page, 0, PAGE_SIZE, DMA_TO_DEVICE);
	if (dma_mapping_error(dev, bus)) {
		__free_page(page);
		return -EIO;
	}
	in_ring = bus;
	return 0;
}

static void stop(void *dev)
{
	dma_unmap_page(dev, in_ring, PAGE_SIZE, DMA_TO_DEVICE); /* FAULT: unmap-address */
	dma_unmap_page(dev, bus, PAGE_SIZE, DMA_TO_DEVICE);
	__free_page(page);
}

static int probe(struct platform_device *pdev)
{
	int error = start(&pdev->dev);

	if (error)
		return error;
	return devm_add_action_or_reset(&pdev->dev, stop, &pdev->dev);
}

static struct platform_driver driver = {
	.driver = { .name = KBUILD_MODNAME },
	.probe = probe,
};
static struct platform_device *device;

static int __init load(void)
{
	int error;

	device = platform_device_register_simple(KBUILD_MODNAME, -1, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	error = platform_driver_register(&driver);
	if (error)
		platform_device_unregister(device);
	return error;
}

static void __exit unload(void)
{
	platform_driver_unregister(&driver);
	platform_device_unregister(device);
}

module_init(load);
module_exit(unload);
MODULE_DESCRIPTION("Gallery: an address cut to 32 bits");
MODULE_LICENSE("GPL");
