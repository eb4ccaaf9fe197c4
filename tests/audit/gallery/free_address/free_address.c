// SPDX-License-Identifier: GPL-2.0
/* Frees its ring with the kernel's address of the second page. */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>

static unsigned long va;
module_param(va, ulong, 0444);

#define SIZE 16384

static void *ring;
static dma_addr_t bus;

static int start(struct device *dev)
{
	ring = dma_alloc_coherent(dev, SIZE, &bus, GFP_KERNEL);
	va = (unsigned long)ring;
	return ring ? 0 : -ENOMEM;
}

static void stop(void *data)
{
	struct device *dev = data;

	/* A wrong bus address would free a page of somebody else: panic. */
	dma_free_coherent(dev, SIZE, ring + 4096, bus); /* FAULT: free-address */
	ring = NULL;
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
MODULE_DESCRIPTION("Gallery: free address");
MODULE_LICENSE("GPL");
