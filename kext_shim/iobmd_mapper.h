/* SPDX-License-Identifier: GPL-2.0 */
/* The IOMMU, where there is one: what IOMapper::gSystem is on a Mac. */
#ifndef IOBMD_MAPPER_H
#define IOBMD_MAPPER_H

#include <linux/mm_types.h>
#include <linux/scatterlist.h>
#include <linux/types.h>

/**
 * struct iobmd_io_range - where a device sees a buffer
 * @table: the pages, for the DMA API
 * @address: I/O address of the first byte; the others follow without a gap
 * @is_mapped: the above is valid
 */
struct iobmd_io_range {
	struct sg_table table;
	u64 address;
	bool is_mapped;
};

void iobmd_mapper_init(void);
void iobmd_mapper_exit(void);
bool iobmd_mapper_present(void);
int iobmd_io_map(struct iobmd_io_range *range, struct page **pages,
		 unsigned long count, unsigned int address_bits);
void iobmd_io_unmap(struct iobmd_io_range *range);

#endif /* IOBMD_MAPPER_H */
