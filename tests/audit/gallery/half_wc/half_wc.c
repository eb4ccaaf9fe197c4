// SPDX-License-Identifier: GPL-2.0
/* Counts pages wrong: only the first half of its ring becomes write-combined. */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/set_memory.h>

static unsigned long va;
module_param(va, ulong, 0444);

#define PAGES 4
#define SIZE (PAGES * PAGE_SIZE)

static void *ring;
static dma_addr_t bus;

static int start(struct device *dev)
{
	int error;

	ring = dma_alloc_coherent(dev, SIZE, &bus, GFP_KERNEL);
	if (!ring)
		return -ENOMEM;
	va = (unsigned long)ring;
	error = set_memory_wc(va, PAGES / 2); /* FAULT: mixed-types */
	if (error)
		dma_free_coherent(dev, SIZE, ring, bus);
	return error;
}

static void stop(void *dev)
{
	set_memory_wb(va, PAGES);
	dma_free_coherent(dev, SIZE, ring, bus);
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
MODULE_DESCRIPTION("Gallery: half wc");
MODULE_LICENSE("GPL");
