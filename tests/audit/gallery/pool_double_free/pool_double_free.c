// SPDX-License-Identifier: GPL-2.0
/* Gives the same block back to its pool twice. */
#include <linux/dma-mapping.h>
#include <linux/dmapool.h>
#include <linux/module.h>
#include <linux/platform_device.h>

static struct dma_pool *pool;
static void *block;
static dma_addr_t bus;

static int start(struct device *dev)
{
	pool = dma_pool_create(KBUILD_MODNAME, dev, 64, 64, 0);
	if (!pool)
		return -ENOMEM;
	block = dma_pool_alloc(pool, GFP_KERNEL, &bus);
	if (!block) {
		dma_pool_destroy(pool);
		return -ENOMEM;
	}
	return 0;
}

static void stop(void *dev)
{
	dma_pool_free(pool, block, bus);
	dma_pool_free(pool, block, bus); /* FAULT: pool-double-free */
	dma_pool_destroy(pool);
	pool = NULL;
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
MODULE_DESCRIPTION("Gallery: pool double free");
MODULE_LICENSE("GPL");
