/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Everything that is not the same in every kernel this module is built for.
 * A new difference belongs here and tests for the feature, not the version.
 */
#ifndef IOBMD_COMPAT_H
#define IOBMD_COMPAT_H

#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/shrinker.h>
#include <linux/version.h>
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

/*
 * A VMA's flags became read-only to all but a few helpers, which are no macros:
 * the one difference that has nothing else to be told by.  For a VMA that
 * mmap() is just making.
 */
static inline void iobmd_vma_init_flags(struct vm_area_struct *vma,
					unsigned long set, unsigned long clear)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_init(vma, (vma->vm_flags | set) & ~clear);
#else
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
#endif
}

/* Shrinkers were part of their owner's data, and are allocated now. */
struct iobmd_shrinker {
#ifdef SHRINKER_ALLOCATED
	struct shrinker *shrinker;
#else
	struct shrinker shrinker;
#endif
};

typedef unsigned long iobmd_shrink_fn(struct shrinker *shrinker,
				      struct shrink_control *control);

static inline int iobmd_shrinker_register(struct iobmd_shrinker *ours,
					  const char *name,
					  iobmd_shrink_fn *count,
					  iobmd_shrink_fn *scan)
{
#ifdef SHRINKER_ALLOCATED
	ours->shrinker = shrinker_alloc(0, "%s", name);
	if (!ours->shrinker)
		return -ENOMEM;
	ours->shrinker->count_objects = count;
	ours->shrinker->scan_objects = scan;
	shrinker_register(ours->shrinker);
	return 0;
#else
	ours->shrinker.count_objects = count;
	ours->shrinker.scan_objects = scan;
	ours->shrinker.seeks = DEFAULT_SEEKS;
	return register_shrinker(&ours->shrinker, "%s", name);
#endif
}

static inline void iobmd_shrinker_unregister(struct iobmd_shrinker *ours)
{
#ifdef SHRINKER_ALLOCATED
	shrinker_free(ours->shrinker);
#else
	unregister_shrinker(&ours->shrinker);
#endif
}

#endif /* IOBMD_COMPAT_H */
