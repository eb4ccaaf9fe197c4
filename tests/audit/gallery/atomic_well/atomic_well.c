// SPDX-License-Identifier: GPL-2.0
/* Allocates with GFP_ATOMIC while it holds a spinlock, and frees without one. */
/* TWIN: sleeping-in-atomic */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/spinlock.h>

static DEFINE_SPINLOCK(lock);
static void *ring;
static dma_addr_t bus;

static int start(struct device *dev)
{
	spin_lock(&lock);
	ring = dma_alloc_coherent(dev, 4096, &bus, GFP_ATOMIC);
	spin_unlock(&lock);
	return ring ? 0 : -ENOMEM;
}

static void stop(void *dev)
{
	dma_free_coherent(dev, 4096, ring, bus);
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
MODULE_DESCRIPTION("Gallery: atomic well");
MODULE_LICENSE("GPL");
