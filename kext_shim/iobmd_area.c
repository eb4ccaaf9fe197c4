// SPDX-License-Identifier: GPL-2.0
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "iobmd_area.h"
#include "iobmd_descriptor.h"

static void area_open(struct vm_area_struct *vma)
{
	struct iobmd_map *map = vma->vm_private_data;
	struct iobmd_memory *memory = &map->descriptor->memory;

	iobmd_map_get(map);
	mutex_lock(&memory->lock);
	map->areas++;
	memory->areas++;
	mutex_unlock(&memory->lock);
}

static void area_close(struct vm_area_struct *vma)
{
	struct iobmd_map *map = vma->vm_private_data;
	struct iobmd_memory *memory = &map->descriptor->memory;

	mutex_lock(&memory->lock);
	map->areas--;
	memory->areas--;
	mutex_unlock(&memory->lock);
	iobmd_memory_settle(memory);
	iobmd_map_put(map);
}

/* Guards are pages of the area that belong to nothing. */
static vm_fault_t area_fault(struct vm_fault *vmf)
{
	struct iobmd_map *map = vmf->vma->vm_private_data;
	struct iobmd_memory *memory = &map->descriptor->memory;
	unsigned long index = vmf->pgoff - IOBMD_MARGIN;
	vm_fault_t result;

	if (index - map->first >= map->count)
		return VM_FAULT_SIGSEGV;
	mutex_lock(&memory->lock);
	result = map->closed ? VM_FAULT_SIGBUS :
			       iobmd_memory_fault(memory, index, vmf);
	mutex_unlock(&memory->lock);
	return result;
}

/* A mapping knows its address: it does not move. */
static int area_mremap(struct vm_area_struct *vma)
{
	return -EINVAL;
}

static const struct vm_operations_struct area_operations = {
	.open = area_open,
	.close = area_close,
	.fault = area_fault,
	.mremap = area_mremap,
};

/**
 * iobmd_area_mmap - make an area that is being mapped show a mapping
 * @map: the mapping, one of a process
 * @vma: the area, as long as the mapping and its guards
 *
 * VM_MIXEDMAP: pages that stay are entered without being counted, loose ones
 * as what they are.  The memory's own address space finds them all again.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_area_mmap(struct iobmd_map *map, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_pgoff || vma_pages(vma) != map->count + 2 * map->guard)
		return -EINVAL;
	if (!map->writable && (vma->vm_flags & VM_WRITE))
		return -EACCES;
	vma_set_file(vma, map->descriptor->memory.space);
	vma->vm_pgoff = IOBMD_MARGIN + map->first - map->guard;
	vma->vm_private_data = map;
	vma->vm_ops = &area_operations;
	iobmd_vma_init_flags(vma, VM_MIXEDMAP | VM_DONTEXPAND | VM_DONTDUMP,
			     VM_MAYEXEC | (map->writable ? 0 : VM_MAYWRITE));
	area_open(vma);
	return 0;
}

static int source_mmap(struct file *file, struct vm_area_struct *vma)
{
	return iobmd_area_mmap(file->private_data, vma);
}

static const struct file_operations source_operations = {
	.owner = THIS_MODULE,
	.mmap = source_mmap,
};

/**
 * iobmd_area_create - show a mapping in the calling process
 * @map: the mapping; the memory has its address space
 * @address: where to, or 0
 * @fixed: there or nowhere
 * @replace: what is there already goes
 *
 * Return: the address of the first page, or a negative errno.
 */
unsigned long iobmd_area_create(struct iobmd_map *map, u64 address, bool fixed,
				bool replace)
{
	unsigned long bytes = (map->count + 2 * map->guard) << PAGE_SHIFT;
	unsigned long margin = map->guard << PAGE_SHIFT;
	unsigned long protection = PROT_READ;
	unsigned long flags = MAP_SHARED;
	unsigned long base;
	struct file *source;

	if (fixed)
		flags |= replace ? MAP_FIXED : MAP_FIXED_NOREPLACE;
	if (map->writable)
		protection |= PROT_WRITE;
	source = anon_inode_getfile("[iobmd-source]", &source_operations, map,
				    O_RDWR);
	if (IS_ERR(source))
		return PTR_ERR(source);
	base = vm_mmap(source, fixed ? address - margin : 0, bytes, protection,
		       flags, 0);
	if (IS_ERR_VALUE(base)) {
		fput(source);
		return base;
	}
	map->source = source;
	return base + margin;
}

static bool shows(const struct vm_area_struct *vma, const struct iobmd_map *map)
{
	return vma->vm_ops == &area_operations && vma->vm_private_data == map;
}

/* One area of the mapping that is still where it was made, or an empty one. */
static void find_area(const struct iobmd_map *map, unsigned long *start,
		      unsigned long *bytes)
{
	unsigned long margin = map->guard << PAGE_SHIFT;
	unsigned long from = (map->address & PAGE_MASK) - margin;
	unsigned long to = from + (map->count << PAGE_SHIFT) + 2 * margin;
	struct vm_area_struct *vma;

	*bytes = 0;
	mmap_read_lock(current->mm);
	vma = find_vma(current->mm, from);
	while (vma && vma->vm_start < to && !shows(vma, map))
		vma = find_vma(current->mm, vma->vm_end);
	if (vma && vma->vm_start < to) {
		*start = vma->vm_start;
		*bytes = vma->vm_end - vma->vm_start;
	}
	mmap_read_unlock(current->mm);
}

/* Out of the calling process. */
static void unmap_here(const struct iobmd_map *map)
{
	unsigned long start, bytes;

	do {
		find_area(map, &start, &bytes);
	} while (bytes && !vm_munmap(start, bytes));
}

/* A kernel thread on its way through another process's address space. */
struct visit {
	struct work_struct work;
	const struct iobmd_map *map;
};

static void unmap_there(struct work_struct *work)
{
	const struct iobmd_map *map =
		container_of(work, struct visit, work)->map;

	if (!mmget_not_zero(map->mm))
		return;
	kthread_use_mm(map->mm);
	unmap_here(map);
	kthread_unuse_mm(map->mm);
	mmput(map->mm);
}

/**
 * iobmd_area_destroy - take a mapping out of the processes
 * @map: the mapping, closed
 *
 * The process it was made for gets its addresses back, and so does the caller.
 * Others that show it, since a fork() or by mmap(), have nothing there any more.
 */
void iobmd_area_destroy(struct iobmd_map *map)
{
	struct address_space *space = map->descriptor->memory.space->f_mapping;
	struct visit visit = { .map = map };

	if (current->mm)
		unmap_here(map);
	if (current->mm != map->mm) {
		INIT_WORK_ONSTACK(&visit.work, unmap_there);
		schedule_work(&visit.work);
		flush_work(&visit.work);
		destroy_work_on_stack(&visit.work);
	}
	if (READ_ONCE(map->areas))
		unmap_mapping_pages(space, IOBMD_MARGIN + map->first,
				    map->count, false);
}

/**
 * iobmd_area_populate - fault a mapping in before it is touched
 * @map: a mapping of the calling process
 */
void iobmd_area_populate(const struct iobmd_map *map)
{
	unsigned long at = map->address & PAGE_MASK;
	unsigned long end = at + (map->count << PAGE_SHIFT);

	for (; at < end; at += PAGE_SIZE) {
		if (fatal_signal_pending(current))
			return;
		fault_in_readable((const char __user *)at, 1);
		cond_resched();
	}
}
