// SPDX-License-Identifier: GPL-2.0
/* Maps vmalloc memory page by page. */
/* TWIN: dma-from-vmalloc, dma-from-stack */
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/vmalloc.h>

static void *area;
static dma_addr_t bus[2];

static int start(struct device *dev)
{
	int i;

	area = vzalloc(2 * PAGE_SIZE);
	if (!area)
		return -ENOMEM;
	for (i = 0; i < 2; i++) {
		struct page *page = vmalloc_to_page(area + i * PAGE_SIZE);

		bus[i] = dma_map_page(dev, page, 0, PAGE_SIZE, DMA_TO_DEVICE);
		if (dma_mapping_error(dev, bus[i]))
			goto undo;
	}
	return 0;
undo:
	while (i--)
		dma_unmap_page(dev, bus[i], PAGE_SIZE, DMA_TO_DEVICE);
	vfree(area);
	return -EIO;
}

static void stop(void *dev)
{
	dma_unmap_page(dev, bus[0], PAGE_SIZE, DMA_TO_DEVICE);
	dma_unmap_page(dev, bus[1], PAGE_SIZE, DMA_TO_DEVICE);
	vfree(area);
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
MODULE_DESCRIPTION("Gallery: vmalloc well");
MODULE_LICENSE("GPL");
