// SPDX-License-Identifier: GPL-2.0
/* Gives its device physical addresses; behind an IOMMU they are none of the device's. */
/* NEEDS: edu iommu */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>

static unsigned long va;
module_param(va, ulong, 0444);

static unsigned long dma;
module_param(dma, ulong, 0444);

#define SOURCE 0x80
#define TARGET 0x88
#define COUNT 0x90
#define COMMAND 0x98
#define INSIDE 0x40000 /* the device's own 4096 bytes */
#define START 1
#define TO_RAM 2

static void __iomem *registers;

static int move(u64 source, u64 target, u64 count, u64 command)
{
	int tries;

	writeq(source, registers + SOURCE);
	writeq(target, registers + TARGET);
	writeq(count, registers + COUNT);
	writeq(command | START, registers + COMMAND);
	for (tries = 0; tries < 500; tries++) {
		if (!(readq(registers + COMMAND) & START))
			return 0;
		msleep(10);
	}
	return -ETIMEDOUT;
}

static void *buffer;
static dma_addr_t bus;

static void stop(void *dev)
{
	dma_free_coherent(dev, PAGE_SIZE, buffer, bus);
}

static int start(struct device *dev)
{
	struct page *page;
	int error = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));

	if (error)
		return error;
	buffer = dma_alloc_coherent(dev, PAGE_SIZE, &bus, GFP_KERNEL); /* FAULT: virt-to-phys-as-bus */
	if (!buffer)
		return -ENOMEM;
	va = (unsigned long)buffer;
	dma = bus;
	memset(buffer, 0x5a, 64);
	page = is_vmalloc_addr(buffer) ? vmalloc_to_page(buffer) : virt_to_page(buffer);
	error = move(page_to_phys(page), INSIDE, 64, 0);
	if (!error)
		error = move(INSIDE, bus + 2048, 64, TO_RAM);
	if (error)
		stop(dev);
	return error;
}

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int error = pcim_enable_device(pdev);

	if (error)
		return error;
	registers = pcim_iomap(pdev, 0, 0);
	if (!registers)
		return -ENOMEM;
	pci_set_master(pdev);
	error = start(&pdev->dev);
	if (error)
		return error;
	return devm_add_action_or_reset(&pdev->dev, stop, &pdev->dev);
}

static const struct pci_device_id ids[] = { { PCI_DEVICE(0x1234, 0x11e8) }, {} };
static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = ids,
	.probe = probe,
};

module_pci_driver(edu_driver);
MODULE_DESCRIPTION("Gallery: virt to phys");
MODULE_LICENSE("GPL");
