// SPDX-License-Identifier: GPL-2.0
/*
 * Allocates in every way in which a call can be on a stack, or not.  What was
 * allocated is told by its size, which the line says that has to be found.
 */
#include <linux/dma-mapping.h>
#include <linux/dmapool.h>
#include <linux/module.h>
#include <linux/platform_device.h>

#include "calls.h"

#define COUNT 8

static struct platform_device *device;
static struct dma_pool *pool;
static void *block;
static dma_addr_t block_bus;
static void *kept[COUNT];
static dma_addr_t bus[COUNT];
static int count;

#define allocate(dev, size) \
	dma_alloc_coherent(dev, size, &bus[count], GFP_KERNEL)

static inline void keep(void *what)
{
	kept[count++] = what;
}

static void *inlined(struct device *dev)
{
	return allocate(dev, 101); /* HERE: 101 */
}

static noinline void *last(struct device *dev)
{
	might_sleep();
	return allocate(dev, 103); /* HERE: 103 */
}

static noinline void *either(struct device *dev, bool which)
{
	if (which)
		return allocate(dev, 104); /* HERE: 104 */
	might_sleep();
	return allocate(dev, 105); /* HERE: 105 */
}

static noinline void *by_register(struct device *dev)
{
	might_sleep();
	return allocate(dev, 106); /* HERE: 106 */
}

static void *(*volatile operation)(struct device *dev) = by_register;

static void release(void *data)
{
	dma_pool_free(pool, block, block_bus);
	while (--count)
		dma_free_coherent(data, 100 + count, kept[count], bus[count]);
}

static void stop(void *data)
{
	might_sleep();
	dma_free_coherent(data, 100, kept[0], bus[0]); /* HERE: 100 */
}

static int probe(struct platform_device *pdev)
{
	struct device *dev = &pdev->dev;
	int error;

	keep(allocate(dev, 100));
	keep(inlined(dev));
	keep(from_header(dev, &bus[count]));
	keep(last(dev));
	keep(either(dev, true));
	keep(either(dev, false));
	keep(operation(dev));
	pool = dmam_pool_create("blocks", dev, 64, 64, 0);
	if (!pool)
		return -ENOMEM;
	block = dma_pool_alloc(pool, GFP_KERNEL, &block_bus); /* HERE: 4096 */
	error = devm_add_action_or_reset(dev, release, dev);
	return error ?: devm_add_action_or_reset(dev, stop, dev);
}

static struct platform_driver driver = {
	.driver = { .name = KBUILD_MODNAME },
	.probe = probe,
};

static void *early;
static dma_addr_t at;

static int __init load(void)
{
	struct device *dev;
	int error;

	device = platform_device_register_simple(KBUILD_MODNAME, -1, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	dev = &device->dev;
	early = dma_alloc_coherent(dev, 107, &at, GFP_KERNEL); /* HERE: 107 */
	error = platform_driver_register(&driver);
	if (error)
		platform_device_unregister(device);
	return error;
}

static void __exit unload(void)
{
	dma_free_coherent(&device->dev, 107, early, at);
	platform_driver_unregister(&driver);
	platform_device_unregister(device);
}

module_init(load);
module_exit(unload);
MODULE_DESCRIPTION(
	"Calls of the DMA API, in every way that a stack shows or hides");
MODULE_LICENSE("GPL");
