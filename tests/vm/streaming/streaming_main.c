// SPDX-License-Identifier: GPL-2.0
/*
 * A module that calls every function of the DMA API that is watched, for a
 * platform device or for QEMU's edu.
 */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/string.h>

#include "streaming.h"

static char *what = "lists";
module_param(what, charp, 0400);
MODULE_PARM_DESC(what, "lists, memory, flags, user, storm or paths");

static bool pci;
module_param(pci, bool, 0400);
MODULE_PARM_DESC(pci, "for edu instead of a platform device");

static const struct {
	const char *name;
	streaming_fn *run;
} parts[] = {
	{ "lists", streaming_lists }, { "memory", streaming_memory },
	{ "flags", streaming_flags }, { "user", streaming_user },
	{ "storm", streaming_storm }, { "paths", streaming_paths },
};

static int run(struct device *device)
{
	unsigned int i;
	int error;

	error = dma_set_mask_and_coherent(device, DMA_BIT_MASK(64));
	if (error)
		return error;
	for (i = 0; i < ARRAY_SIZE(parts); i++)
		if (!strcmp(parts[i].name, what))
			return parts[i].run(device);
	return -EINVAL;
}

static int probe_platform(struct platform_device *device)
{
	return run(&device->dev);
}

static struct platform_driver platform = {
	.driver = { .name = "streaming" },
	.probe = probe_platform,
};

static int probe_pci(struct pci_dev *device, const struct pci_device_id *id)
{
	int error = pcim_enable_device(device);

	if (error)
		return error;
	pci_set_master(device);
	return run(&device->dev);
}

static const struct pci_device_id ids[] = { { PCI_DEVICE(0x1234, 0x11e8) },
					    {} };
static struct pci_driver edu = {
	.name = "streaming",
	.id_table = ids,
	.probe = probe_pci,
};

static struct platform_device *pdev;

static int __init streaming_init(void)
{
	int error;

	if (pci)
		return pci_register_driver(&edu);
	pdev = platform_device_register_simple("streaming", -1, NULL, 0);
	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	error = platform_driver_register(&platform);
	if (error)
		platform_device_unregister(pdev);
	return error;
}

static void __exit streaming_exit(void)
{
	if (pci) {
		pci_unregister_driver(&edu);
		return;
	}
	platform_driver_unregister(&platform);
	platform_device_unregister(pdev);
}

module_init(streaming_init);
module_exit(streaming_exit);
MODULE_DESCRIPTION("Every call of the DMA API");
MODULE_LICENSE("GPL");
