// SPDX-License-Identifier: GPL-2.0
/* Has DMA operations of its own, as a bus has, and hands pages out as they are. */
#include <linux/dma-map-ops.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/platform_device.h>

static unsigned long va;
module_param(va, ulong, 0444);

static unsigned long dma;
module_param(dma, ulong, 0444);

static void *ring;
static dma_addr_t bus;

static void *take(struct device *dev, size_t size, dma_addr_t *handle, gfp_t gfp, unsigned long attrs)
{
	void *memory = (void *)__get_free_pages(gfp, get_order(size));

	if (!memory)
		return NULL;
	memset(memory, 0xa5, size); /* what its last user has left */
	*handle = virt_to_phys(memory);
	return memory;
}

static void give(struct device *dev, size_t size, void *memory, dma_addr_t handle, unsigned long attrs)
{
	free_pages((unsigned long)memory, get_order(size));
}

static const struct dma_map_ops operations = { .alloc = take, .free = give };

static int start(struct device *dev)
{
	set_dma_ops(dev, &operations);
	ring = dma_alloc_coherent(dev, 8192, &bus, GFP_KERNEL); /* FAULT: not-zeroed */
	if (!ring)
		return -ENOMEM;
	va = (unsigned long)ring;
	dma = bus;
	return 0;
}

static void stop(void *dev)
{
	dma_free_coherent(dev, 8192, ring, bus);
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
MODULE_DESCRIPTION("Gallery: not zeroed");
MODULE_LICENSE("GPL");
