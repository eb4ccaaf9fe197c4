// SPDX-License-Identifier: GPL-2.0
/*
 * Drives edu well, with every kind of memory a device can be given, and keeps
 * it all until it is told to undo what is streaming, or until it goes.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#define SOURCE 0x80
#define TARGET 0x88
#define COUNT 0x90
#define COMMAND 0x98
#define INSIDE 0x40000 /* the device's own 4096 bytes */
#define START 1
#define TO_RAM 2

#define RING_SIZE (5 * PAGE_SIZE)
#define OFFSET 256
#define LENGTH 1024
#define PARTS 3

static unsigned int many;
module_param(many, uint, 0444);
MODULE_PARM_DESC(many, "pages mapped to the device besides");

static struct device *device;
static void __iomem *registers;
static void *ring;
static dma_addr_t ring_bus;
static void *memory[3];
static dma_addr_t mapped[3];
static void *parts[PARTS];
static struct scatterlist list[PARTS];
static void **pages;
static dma_addr_t *page_buses;
static bool streaming;

static const enum dma_data_direction directions[3] = {
	DMA_BIDIRECTIONAL,
	DMA_TO_DEVICE,
	DMA_FROM_DEVICE,
};

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

static void undo(void)
{
	unsigned int i;

	if (!streaming)
		return;
	streaming = false;
	for (i = 0; i < ARRAY_SIZE(memory); i++)
		dma_unmap_single(device, mapped[i], LENGTH, directions[i]);
	dma_unmap_sg(device, list, PARTS, DMA_TO_DEVICE);
	for (i = 0; i < many; i++)
		dma_unmap_single(device, page_buses[i], PAGE_SIZE,
				 DMA_TO_DEVICE);
}

static void stop(void *unused)
{
	unsigned int i;

	undo();
	for (i = 0; i < ARRAY_SIZE(memory); i++)
		kfree(memory[i]);
	for (i = 0; i < PARTS; i++)
		free_page((unsigned long)parts[i]);
	for (i = 0; pages && i < many; i++)
		free_page((unsigned long)pages[i]);
	kvfree(pages);
	kvfree(page_buses);
	if (ring)
		dma_free_coherent(device, RING_SIZE, ring, ring_bus);
}

static bool get_memory(void)
{
	unsigned int i;
	bool got = true;

	ring = dma_alloc_coherent(device, RING_SIZE, &ring_bus, GFP_KERNEL);
	pages = kvcalloc(many + 1, sizeof(*pages), GFP_KERNEL);
	page_buses = kvcalloc(many + 1, sizeof(*page_buses), GFP_KERNEL);
	if (!ring || !pages || !page_buses)
		return false;
	for (i = 0; i < ARRAY_SIZE(memory); i++)
		got &= !!(memory[i] = kzalloc(PAGE_SIZE, GFP_KERNEL));
	for (i = 0; i < PARTS; i++)
		got &= !!(parts[i] = (void *)get_zeroed_page(GFP_KERNEL));
	for (i = 0; i < many; i++)
		got &= !!(pages[i] = (void *)__get_free_page(GFP_KERNEL));
	return got;
}

static int map_memory(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(memory); i++) {
		mapped[i] = dma_map_single(device, memory[i] + OFFSET, LENGTH,
					   directions[i]);
		if (dma_mapping_error(device, mapped[i]))
			return -EIO;
	}
	sg_init_table(list, PARTS);
	for (i = 0; i < PARTS; i++)
		sg_set_buf(&list[i], parts[i], PAGE_SIZE);
	if (!dma_map_sg(device, list, PARTS, DMA_TO_DEVICE))
		return -EIO;
	for (i = 0; i < many; i++) {
		page_buses[i] = dma_map_single(device, pages[i], PAGE_SIZE,
					       DMA_TO_DEVICE);
		if (dma_mapping_error(device, page_buses[i]))
			return -EIO;
	}
	streaming = true;
	return 0;
}

static int set_undone(const char *value, const struct kernel_param *unused)
{
	undo();
	return 0;
}

static const struct kernel_param_ops undo_operations = { .set = set_undone };

module_param_cb(undo, &undo_operations, NULL, 0200);
MODULE_PARM_DESC(undo, "write anything to unmap what is streaming");

/* The driver's own proof: what it has written comes back through the device. */
static int copy_through_the_device(void)
{
	int error;

	memset(ring, 0xa5, 64);
	error = move(ring_bus, INSIDE, 64, 0);
	if (!error)
		error = move(INSIDE, ring_bus + RING_SIZE - 64, 64, TO_RAM);
	if (!error)
		error = move(INSIDE, mapped[2], 64, TO_RAM);
	return error;
}

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int error = pcim_enable_device(pdev);

	if (error)
		return error;
	device = &pdev->dev;
	registers = pcim_iomap(pdev, 0, 0);
	if (!registers)
		return -ENOMEM;
	pci_set_master(pdev);
	error = dma_set_mask_and_coherent(device, DMA_BIT_MASK(64));
	if (error)
		return error;
	error = devm_add_action_or_reset(device, stop, NULL);
	if (error)
		return error;
	if (!get_memory())
		return -ENOMEM;
	error = map_memory();
	return error ? error : copy_through_the_device();
}

static const struct pci_device_id ids[] = { { PCI_DEVICE(0x1234, 0x11e8) },
					    {} };
static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = ids,
	.probe = probe,
};

module_pci_driver(edu_driver);
MODULE_DESCRIPTION("Drives edu well, for witnesses outside");
MODULE_LICENSE("GPL");
