// SPDX-License-Identifier: GPL-2.0
#include <linux/acpi.h>
#include <linux/dma-mapping.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pci.h>

#include "iobmd_mapper.h"

/*
 * QEMU's teaching device stands for every device of the machine: it is the one
 * that can be made to read and write the addresses given out here.
 */
#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8

static struct pci_dev *edu;

/* How wide an I/O address may be is the device's property, not a mapping's. */
static DEFINE_MUTEX(mapping);

/*
 * A device that no driver wants is left alone by an IOMMU that firmware tables
 * describe (VIOT): it comes under it when a driver is bound.  This is what the
 * PCI bus does then (pci_dma_configure() in drivers/pci/pci-driver.c).
 */
static void configure(struct pci_dev *device)
{
	if (!device_iommu_mapped(&device->dev))
		acpi_dma_configure(&device->dev, DEV_DMA_COHERENT);
}

/** iobmd_mapper_init - look for a device that is behind an IOMMU */
void iobmd_mapper_init(void)
{
	edu = pci_get_device(EDU_VENDOR, EDU_DEVICE, NULL);
	if (edu)
		configure(edu);
	if (edu && device_iommu_mapped(&edu->dev))
		return;
	pci_dev_put(edu);
	edu = NULL;
}

/** iobmd_mapper_exit - undo iobmd_mapper_init() */
void iobmd_mapper_exit(void)
{
	pci_dev_put(edu);
	edu = NULL;
}

/**
 * iobmd_mapper_present - do devices see other addresses than the processor?
 *
 * Return: true if there is an IOMMU with a device behind it.
 */
bool iobmd_mapper_present(void)
{
	return edu;
}

/* The DMA API may describe one range in several pieces. */
static bool is_gapless(const struct sg_table *table)
{
	u64 next = sg_dma_address(table->sgl);
	struct scatterlist *piece;
	unsigned int i;

	for_each_sgtable_dma_sg(table, piece, i)
	{
		if (sg_dma_address(piece) != next)
			return false;
		next += sg_dma_len(piece);
	}
	return true;
}

static int map_table(struct sg_table *table, unsigned int address_bits)
{
	int error;

	mutex_lock(&mapping);
	error = dma_set_mask(&edu->dev, DMA_BIT_MASK(address_bits));
	if (!error)
		error = dma_map_sgtable(&edu->dev, table, DMA_BIDIRECTIONAL,
					DMA_ATTR_SKIP_CPU_SYNC);
	mutex_unlock(&mapping);
	return error;
}

static void unmap_table(struct sg_table *table)
{
	dma_unmap_sgtable(&edu->dev, table, DMA_BIDIRECTIONAL,
			  DMA_ATTR_SKIP_CPU_SYNC);
}

/**
 * iobmd_io_map - make pages one range of I/O addresses
 * @range: filled in; left unmapped on failure
 * @pages: the pages
 * @count: how many
 * @address_bits: no I/O address may be wider
 *
 * There has to be a mapper.  May sleep.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_io_map(struct iobmd_io_range *range, struct page **pages,
		 unsigned long count, unsigned int address_bits)
{
	u64 bytes = (u64)count << PAGE_SHIFT;
	int error;

	range->is_mapped = false;
	/*
	 * Ranges are aligned to their size and do not start at 0.  The DMA API
	 * is not asked in vain: one refusal makes it refuse wider masks too
	 * (max32_alloc_size in drivers/iommu/iova.c).
	 */
	if (roundup_pow_of_two(bytes) > BIT_ULL(address_bits - 1))
		return -ENOMEM;
	error = sg_alloc_table_from_pages(&range->table, pages, count, 0, bytes,
					  GFP_KERNEL | __GFP_NOWARN);
	if (error)
		return error;
	error = map_table(&range->table, address_bits);
	if (error)
		goto free_table;
	if (!is_gapless(&range->table)) {
		error = -EIO;
		goto unmap;
	}
	range->address = sg_dma_address(range->table.sgl);
	range->is_mapped = true;
	return 0;

unmap:
	unmap_table(&range->table);
free_table:
	sg_free_table(&range->table);
	return error;
}

/**
 * iobmd_io_unmap - undo iobmd_io_map()
 * @range: mapped or not
 */
void iobmd_io_unmap(struct iobmd_io_range *range)
{
	if (!range->is_mapped)
		return;
	unmap_table(&range->table);
	sg_free_table(&range->table);
	range->is_mapped = false;
}
