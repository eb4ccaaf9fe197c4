// SPDX-License-Identifier: GPL-2.0
/* Maps half of a cache line for the device to write, next to a counter of its own. */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

struct shared {
	u32 packets; /* the driver counts here while the device writes below */
	u8 status[28];
};

static struct shared *shared;
static dma_addr_t bus;

static int start(struct device *dev)
{
	void *status;

	shared = kzalloc(sizeof(*shared), GFP_KERNEL);
	if (!shared)
		return -ENOMEM;
	status = shared->status;
	bus = dma_map_single(dev, status, 28, DMA_FROM_DEVICE); /* FAULT: misaligned */
	if (dma_mapping_error(dev, bus)) {
		kfree(shared);
		return -EIO;
	}
	shared->packets++;
	return 0;
}

static void stop(void *dev)
{
	dma_unmap_single(dev, bus, 28, DMA_FROM_DEVICE);
	kfree(shared);
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
MODULE_DESCRIPTION("Gallery: misaligned");
MODULE_LICENSE("GPL");
