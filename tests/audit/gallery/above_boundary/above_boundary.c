// SPDX-License-Identifier: GPL-2.0
/* Maps 8 KiB across the 64 KiB boundary its device counts in. */
#include <linux/dma-mapping.h>
#include <linux/gfp.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/sizes.h>

static unsigned long va;
module_param(va, ulong, 0444);

static unsigned long dma;
module_param(dma, ulong, 0444);

#define SIZE 8192

static void *pages;
static dma_addr_t bus;

static int start(struct device *dev)
{
	void *from;

	/* 128 KiB lie at a multiple of 128 KiB. */
	pages = (void *)__get_free_pages(GFP_KERNEL, get_order(SZ_128K));
	if (!pages)
		return -ENOMEM;
	from = pages + SZ_64K - 4096;
	dma_set_seg_boundary(dev, SZ_64K - 1);
	bus = dma_map_single(dev, from, SIZE, DMA_TO_DEVICE); /* FAULT: above-boundary */
	if (dma_mapping_error(dev, bus)) {
		free_pages((unsigned long)pages, get_order(SZ_128K));
		return -EIO;
	}
	va = (unsigned long)from;
	dma = bus;
	return 0;
}

static void stop(void *dev)
{
	dma_unmap_single(dev, bus, SIZE, DMA_TO_DEVICE);
	free_pages((unsigned long)pages, get_order(SZ_128K));
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
MODULE_DESCRIPTION("Gallery: above boundary");
MODULE_LICENSE("GPL");
