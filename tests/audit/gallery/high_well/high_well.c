// SPDX-License-Identifier: GPL-2.0
/* Keeps the address of its ring as it was given, above 4 GiB too. */
/* TWIN: unmap-address, free-address, above-mask, not-where-claimed */
/* NEEDS: high */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>

static unsigned long va;
module_param(va, ulong, 0444);

static unsigned long dma;
module_param(dma, ulong, 0444);

#define SIZE 16384

static void *ring;
static dma_addr_t bus;

static int start(struct device *dev)
{
	dma_addr_t address;
	int error = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));

	if (error)
		return error;
	ring = dma_alloc_coherent(dev, SIZE, &address, GFP_KERNEL);
	if (!ring)
		return -ENOMEM;
	bus = address;
	va = (unsigned long)ring;
	dma = address;
	return 0;
}

static void stop(void *dev)
{
	dma_free_coherent(dev, SIZE, ring, bus);
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
MODULE_DESCRIPTION("Gallery: a ring above 4 GiB");
MODULE_LICENSE("GPL");
