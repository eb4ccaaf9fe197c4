// SPDX-License-Identifier: GPL-2.0
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/kernel.h>
#include <linux/platform_device.h>

#include "iobmd_device.h"

/*
 * A DMA mask belongs to a device, not to an allocation, hence one device per
 * zone of the page allocator, which is all that a mask makes a difference for
 * (dma_direct_optimal_gfp_mask() in kernel/dma/direct.c).  Platform devices stay outside every IOMMU group: what they get is
 * always an address of the memory itself.
 */
static const unsigned int widths[] = { 24, 32, 64 };
static struct platform_device *devices[ARRAY_SIZE(widths)];

static int register_width(unsigned int i)
{
	struct platform_device *pdev;
	int error;

	pdev = platform_device_register_simple("iobmd", widths[i], NULL, 0);
	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	error = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(widths[i]));
	if (error)
		platform_device_unregister(pdev);
	else
		devices[i] = pdev;
	/* Without CONFIG_ZONE_DMA there is nothing for the narrowest. */
	return i ? error : 0;
}

/**
 * iobmd_devices_register - make the device of every width
 *
 * Return: 0, or a negative errno with nothing left registered.
 */
int iobmd_devices_register(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(widths); i++) {
		int error = register_width(i);

		if (error) {
			iobmd_devices_unregister();
			return error;
		}
	}
	return 0;
}

/** iobmd_devices_unregister - undo iobmd_devices_register(), or half of it */
void iobmd_devices_unregister(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(widths); i++) {
		if (devices[i])
			platform_device_unregister(devices[i]);
		devices[i] = NULL;
	}
}

/**
 * iobmd_device_for - the device for memory within that many address bits
 * @address_bits: 64 at most
 *
 * Return: the narrowest device that has them all; what it gets may have more.
 */
struct device *iobmd_device_for(unsigned int address_bits)
{
	unsigned int i = 0;

	while (!devices[i] || widths[i] < address_bits)
		i++;
	return &devices[i]->dev;
}

/**
 * iobmd_device_narrower - the next zone to look into
 * @device: one of these devices
 *
 * Return: the next narrower device, or NULL.
 */
struct device *iobmd_device_narrower(const struct device *device)
{
	unsigned int i = ARRAY_SIZE(widths) - 1;

	while (i && &devices[i]->dev != device)
		i--;
	return i && devices[i - 1] ? &devices[i - 1]->dev : NULL;
}
