// SPDX-License-Identifier: GPL-2.0
/* Unmaps one entry less than it mapped. */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#define PARTS 3

static void *parts[PARTS];
static struct scatterlist list[PARTS];

static void put_parts(void)
{
	int i;

	for (i = 0; i < PARTS; i++)
		kfree(parts[i]);
}

static int start(struct device *dev)
{
	int i;

	sg_init_table(list, PARTS);
	for (i = 0; i < PARTS; i++) {
		parts[i] = kzalloc(PAGE_SIZE, GFP_KERNEL);
		if (!parts[i])
			goto undo;
		sg_set_buf(&list[i], parts[i], PAGE_SIZE);
	}
	if (dma_map_sg(dev, list, PARTS, DMA_TO_DEVICE) > 0)
		return 0;
undo:
	put_parts();
	return -ENOMEM;
}

static void stop(void *dev)
{
	dma_unmap_sg(dev, list, PARTS - 1, DMA_TO_DEVICE); /* FAULT: unmap-size */
	put_parts();
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
MODULE_DESCRIPTION("Gallery: unmap sg short");
MODULE_LICENSE("GPL");
