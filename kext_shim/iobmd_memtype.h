/* SPDX-License-Identifier: GPL-2.0 */
/* Memory types as the page tables have them. */
#ifndef IOBMD_MEMTYPE_H
#define IOBMD_MEMTYPE_H

#include <linux/pgtable.h>
#include <linux/types.h>

#include "iobmd_abi.h"

void iobmd_memtype_init(void);
u32 iobmd_memtype_available(void);
pgprot_t iobmd_memtype_retyped(pgprot_t protection,
			       enum iobmd_memory_type type);
pgprot_t iobmd_memtype_pgprot(enum iobmd_memory_type type);
enum iobmd_memory_type iobmd_memtype_of(const void *address, u64 length);

#endif /* IOBMD_MEMTYPE_H */
