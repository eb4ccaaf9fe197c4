// SPDX-License-Identifier: GPL-2.0
/*
 * A driver for QEMU's teaching device "edu", as the tutorial beside it has it:
 * what is written to the attribute "message" is carried into the device's own
 * memory by DMA, and what is read from it is carried back.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/iopoll.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>

#define EDU_SOURCE 0x80
#define EDU_TARGET 0x88
#define EDU_COUNT 0x90
#define EDU_COMMAND 0x98
#define EDU_START 0x1
#define EDU_TO_MEMORY 0x2
#define EDU_BUFFER 0x40000 /* where its own memory begins, for its own DMA */

#define MESSAGE_SIZE 512

struct courier {
	struct device *dev;
	void __iomem *registers;
	void *message;
};

/* Have the device copy the message, and wait for it. */
static int transfer(struct courier *courier, u64 from, u64 to, u64 command)
{
	u32 busy;

	writeq(from, courier->registers + EDU_SOURCE);
	writeq(to, courier->registers + EDU_TARGET);
	writeq(MESSAGE_SIZE, courier->registers + EDU_COUNT);
	writeq(command | EDU_START, courier->registers + EDU_COMMAND);
	return readl_poll_timeout(courier->registers + EDU_COMMAND, busy,
				  !(busy & EDU_START), 1000, 5000000);
}

static int send(struct courier *courier)
{
	dma_addr_t bus;
	int error;

	bus = dma_map_single(courier->dev, courier->message, MESSAGE_SIZE,
			     DMA_TO_DEVICE);
	if (dma_mapping_error(courier->dev, bus))
		return -EIO;
	error = transfer(courier, bus, EDU_BUFFER, 0);
	dma_unmap_single(courier->dev, bus, MESSAGE_SIZE, DMA_FROM_DEVICE);
	return error;
}

static int fetch(struct courier *courier)
{
	dma_addr_t bus;
	int error;

	bus = dma_map_single(courier->dev, courier->message, MESSAGE_SIZE,
			     DMA_FROM_DEVICE);
	if (dma_mapping_error(courier->dev, bus))
		return -EIO;
	error = transfer(courier, EDU_BUFFER, bus, EDU_TO_MEMORY);
	dma_unmap_single(courier->dev, bus, MESSAGE_SIZE, DMA_FROM_DEVICE);
	return error;
}

static ssize_t message_store(struct device *dev, struct device_attribute *attr,
			     const char *text, size_t count)
{
	struct courier *courier = dev_get_drvdata(dev);
	int error;

	if (count >= MESSAGE_SIZE)
		return -EFBIG;
	memset(courier->message, 0, MESSAGE_SIZE);
	memcpy(courier->message, text, count);
	error = send(courier);
	return error ? error : count;
}

static ssize_t message_show(struct device *dev, struct device_attribute *attr,
			    char *text)
{
	struct courier *courier = dev_get_drvdata(dev);
	int error;

	error = fetch(courier);
	if (error)
		return error;
	return sysfs_emit(text, "%.*s", MESSAGE_SIZE, (char *)courier->message);
}
static DEVICE_ATTR_RW(message);

static struct attribute *courier_attrs[] = { &dev_attr_message.attr, NULL };
ATTRIBUTE_GROUPS(courier);

static int courier_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct courier *courier;
	int error;

	courier = devm_kzalloc(&pdev->dev, sizeof(*courier), GFP_KERNEL);
	if (!courier)
		return -ENOMEM;
	courier->dev = &pdev->dev;
	courier->message = (void *)devm_get_free_pages(
		&pdev->dev, GFP_KERNEL | __GFP_ZERO, 0);
	if (!courier->message)
		return -ENOMEM;
	error = pcim_enable_device(pdev);
	if (error)
		return error;
	error = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(28));
	if (error)
		return error;
	courier->registers = pcim_iomap(pdev, 0, 0);
	if (!courier->registers)
		return -ENOMEM;
	pci_set_master(pdev);
	pci_set_drvdata(pdev, courier);
	return 0;
}

static const struct pci_device_id courier_ids[] = { { PCI_DEVICE(0x1234,
								 0x11e8) },
						    {} };
MODULE_DEVICE_TABLE(pci, courier_ids);

static struct pci_driver courier_driver = {
	.name = KBUILD_MODNAME,
	.id_table = courier_ids,
	.probe = courier_probe,
	.dev_groups = courier_groups,
};
module_pci_driver(courier_driver);

MODULE_DESCRIPTION("Carries messages into a teaching device and back");
MODULE_LICENSE("GPL");
