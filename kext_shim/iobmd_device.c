// SPDX-License-Identifier: GPL-2.0
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/kernel.h>
#include <linux/platform_device.h>

#include "iobmd_device.h"

/*
 * A DMA mask belongs to a device, not to an allocation, hence one device per
 * width.  Platform devices stay outside every IOMMU group: what they get is
 * always an address of the memory itself.
 */
static const unsigned int widths[] = { 32, 64 };
static struct platform_device *devices[ARRAY_SIZE(widths)];

/**
 * iobmd_devices_register - make the device of every width
 *
 * Return: 0, or a negative errno with nothing left registered.
 */
int iobmd_devices_register(void)
{
	unsigned int i;
	int error;

	for (i = 0; i < ARRAY_SIZE(widths); i++) {
		struct platform_device *pdev;

		pdev = platform_device_register_simple("iobmd", widths[i], NULL,
						       0);
		if (IS_ERR(pdev)) {
			error = PTR_ERR(pdev);
			goto undo;
		}
		devices[i] = pdev;
		error = dma_set_mask_and_coherent(&pdev->dev,
						  DMA_BIT_MASK(widths[i]));
		if (error)
			goto undo;
	}
	return 0;

undo:
	iobmd_devices_unregister();
	return error;
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
 * iobmd_device_for - the device whose memory fits into that many address bits
 * @address_bits: what struct iobmd_plan says
 *
 * Return: the widest device not wider than @address_bits.
 */
struct device *iobmd_device_for(unsigned int address_bits)
{
	unsigned int i = ARRAY_SIZE(widths) - 1;

	while (i && widths[i] > address_bits)
		i--;
	return &devices[i]->dev;
}
