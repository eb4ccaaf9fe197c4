// SPDX-License-Identifier: GPL-2.0
/* Makes one mistake while it probes, and ends as its parameter says: what was found has to survive that. */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

static char *end = "well";
module_param(end, charp, 0444);
MODULE_PARM_DESC(end, "well, refused, stays, warns or crashes");

static struct platform_device *device;
static void *ring;
static dma_addr_t bus;

static bool ends(const char *how)
{
	return !strcmp(end, how);
}

static void crash(void)
{
	*(volatile int *)8 = 1;
}

/* Something an exercise can do: map a buffer and unmap it. */
static int kick(const char *value, const struct kernel_param *param)
{
	struct device *dev = &device->dev;
	dma_addr_t mapped;
	void *data;

	if (sysfs_streq(value, "crash"))
		crash();
	data = kzalloc(512, GFP_KERNEL);
	if (!data)
		return -ENOMEM;
	mapped = dma_map_single(dev, data, 512, DMA_TO_DEVICE);
	if (!dma_mapping_error(dev, mapped))
		dma_unmap_single(dev, mapped, 512, DMA_FROM_DEVICE); /* KICK */
	kfree(data);
	return 0;
}

static const struct kernel_param_ops kick_ops = { .set = kick };
module_param_cb(kick, &kick_ops, NULL, 0200);

static int probe(struct platform_device *pdev)
{
	struct device *dev = &pdev->dev;
	dma_addr_t other;
	void *data;
	int error;

	error = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(32));
	if (error)
		return error;
	data = dma_alloc_coherent(dev, PAGE_SIZE, &other, GFP_KERNEL);
	if (!data)
		return -ENOMEM;
	dma_free_coherent(dev, PAGE_SIZE / 2, data, other); /* MISTAKE */
	ring = dmam_alloc_coherent(dev, 4 * PAGE_SIZE, &bus, GFP_KERNEL);
	if (!ring)
		return -ENOMEM;
	memset(ring, 0x5a, 16);
	return 0;
}

static struct platform_driver driver = {
	.driver = { .name = KBUILD_MODNAME },
	.probe = probe,
};

static int __init load(void)
{
	int error;

	device = platform_device_register_simple(KBUILD_MODNAME, -1, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	error = platform_driver_register(&driver);
	if (!error && ends("refused")) {
		platform_driver_unregister(&driver);
		error = -EINVAL;
	}
	if (error)
		platform_device_unregister(device);
	else if (ends("stays"))
		__module_get(THIS_MODULE);
	return error;
}

static void __exit unload(void)
{
	if (ends("crashes"))
		crash();
	WARN(ends("warns"), "ends: this is what was asked for\n");
	platform_driver_unregister(&driver);
	platform_device_unregister(device);
}

module_init(load);
module_exit(unload);
MODULE_DESCRIPTION("Ends as it is told to");
MODULE_LICENSE("GPL");
