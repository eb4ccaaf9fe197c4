// SPDX-License-Identifier: GPL-2.0
/* Gives its write-combined page to user space write-back. */
/* NEEDS: mmap */
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/set_memory.h>

static unsigned long va;
module_param(va, ulong, 0444);

static struct page *page;

static int map_it(struct file *file, struct vm_area_struct *vma)
{
	int error;

	error = vm_insert_page(vma, vma->vm_start, page); /* FAULT: user-mapping-type */
	if (error)
		pr_info("no page for user space: %d\n", error);
	return error;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.mmap = map_it,
};
static struct miscdevice node = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = KBUILD_MODNAME,
	.fops = &operations,
};

static int start(struct device *dev)
{
	int error;

	page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!page)
		return -ENOMEM;
	va = (unsigned long)page_address(page);
	error = set_memory_wc(va, 1);
	if (!error) {
		error = misc_register(&node);
		if (!error)
			return 0;
		set_memory_wb(va, 1);
	}
	__free_page(page);
	return error;
}

static void stop(void *dev)
{
	misc_deregister(&node);
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
MODULE_DESCRIPTION("Gallery: user mapping type");
MODULE_LICENSE("GPL");
