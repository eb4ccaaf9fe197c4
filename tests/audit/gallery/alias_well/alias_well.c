// SPDX-License-Identifier: GPL-2.0
/* Makes its page write-combined, and then a window on it of the same type. */
/* TWIN: alias-conflict, set-memory-on-vmalloc */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/set_memory.h>
#include <linux/vmalloc.h>

static unsigned long va;
module_param(va, ulong, 0444);

static struct page *page;
static void *window;

static int start(struct device *dev)
{
	int error;

	page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!page)
		return -ENOMEM;
	va = (unsigned long)page_address(page);

	error = set_memory_wc(va, 1);
	if (!error) {
		window = vmap(&page, 1, VM_MAP, pgprot_writecombine(PAGE_KERNEL));
		if (window)
			return 0;
		error = -ENOMEM;
		set_memory_wb(va, 1);
	}
	__free_page(page);
	return error;
}

static void stop(void *dev)
{
	vunmap(window);
	set_memory_wb(va, 1);
	__free_page(page);
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
MODULE_DESCRIPTION("Gallery: alias well");
MODULE_LICENSE("GPL");
