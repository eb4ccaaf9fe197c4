/* SPDX-License-Identifier: GPL-2.0 */
/* Memory types of single pages that are anywhere. */
#ifndef IOBMD_SCATTER_H
#define IOBMD_SCATTER_H

#include <linux/mm_types.h>
#include <linux/types.h>

#include "iobmd_abi.h"

/**
 * struct iobmd_scatter - a page that may have a type
 * @page: the page, or NULL
 * @write_through: the second mapping that makes it write-through
 */
struct iobmd_scatter {
	struct page *page;
	void __iomem *write_through;
};

int iobmd_scatter_set_type(struct iobmd_scatter *scatter,
			   enum iobmd_memory_type type);
int iobmd_scatter_write_back(struct iobmd_scatter *scatter);

#endif /* IOBMD_SCATTER_H */
