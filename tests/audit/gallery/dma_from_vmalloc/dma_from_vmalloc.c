// SPDX-License-Identifier: GPL-2.0
/* Maps vmalloc memory as if its pages were neighbours. */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/vmalloc.h>

static void *area;

static int start(struct device *dev)
{
	dma_addr_t bus;

	area = vzalloc(8192);
	if (!area)
		return -ENOMEM;
	bus = dma_map_single(dev, area, 8192, DMA_TO_DEVICE); /* FAULT: dma-from-vmalloc */
	if (dma_mapping_error(dev, bus))
		dev_info(dev, "the table could not be sent\n");
	else
		dma_unmap_single(dev, bus, 8192, DMA_TO_DEVICE);
	return 0;
}

static void stop(void *dev)
{
	vfree(area);
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
MODULE_DESCRIPTION("Gallery: dma from vmalloc");
MODULE_LICENSE("GPL");
