// SPDX-License-Identifier: GPL-2.0
/* Unmaps one page beyond what it mapped, before it unmaps that. */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

#define SIZE 2048

static void *packet;
static dma_addr_t bus;

static int start(struct device *dev)
{
	packet = kzalloc(SIZE, GFP_KERNEL);
	if (!packet)
		return -ENOMEM;
	bus = dma_map_single(dev, packet, SIZE, DMA_TO_DEVICE);
	if (dma_mapping_error(dev, bus)) {
		kfree(packet);
		return -EIO;
	}
	return 0;
}

static void stop(void *dev)
{
	dma_unmap_single(dev, bus + PAGE_SIZE, SIZE, DMA_TO_DEVICE); /* FAULT: unmap-address */
	dma_unmap_single(dev, bus, SIZE, DMA_TO_DEVICE);
	kfree(packet);
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
MODULE_DESCRIPTION("Gallery: unmap address");
MODULE_LICENSE("GPL");
