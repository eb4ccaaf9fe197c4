/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Everything that is not the same in every kernel this module is built for.
 * A new difference belongs here and tests for the feature, not the version.
 */
#ifndef IOBMD_COMPAT_H
#define IOBMD_COMPAT_H

#include <linux/mmzone.h>
#include <asm/msr.h>

/* rdmsrl() was renamed to rdmsrq(). */
#ifdef rdmsrq
#define iobmd_rdmsr(msr, value) rdmsrq(msr, value)
#else
#define iobmd_rdmsr(msr, value) rdmsrl(msr, value)
#endif

/*
 * MAX_ORDER was exclusive, then inclusive, then MAX_PAGE_ORDER.  This constant
 * has meant the pages of the largest block in all three.
 */
#define IOBMD_BLOCK_MAX ((u64)MAX_ORDER_NR_PAGES << PAGE_SHIFT)

#endif /* IOBMD_COMPAT_H */
