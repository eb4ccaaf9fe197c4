// SPDX-License-Identifier: GPL-2.0
#include <linux/err.h>
#include <linux/file.h>
#include <linux/pagemap.h>
#include <linux/pfn_t.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>

#include "iobmd_memory.h"
#include "iobmd_memtype.h"
#include "iobmd_purgeable.h"

static int create_pageable(struct iobmd_memory *memory,
			   const struct iobmd_plan *plan, const char **reason)
{
	int error;

	if (!(iobmd_memtype_available() & BIT(plan->type)))
		return iobmd_refuse(
			reason, -EOPNOTSUPP,
			"this machine's PAT has no entry for the memory type of the cache mode");
	error = iobmd_pageable_create(&memory->pageable,
				      plan->storage >> PAGE_SHIFT, plan->type);
	if (error)
		return iobmd_refuse(reason, error,
				    "no file in memory of that size");
	memory->is_pageable = true;
	memory->space = memory->pageable.file;
	memory->page_count = memory->pageable.page_count;
	return 0;
}

/**
 * iobmd_memory_create - make memory
 * @memory: filled in
 * @plan: what it has to be like
 * @options: IOOptionBits
 * @reason: on failure a sentence for a person, static
 *
 * Return: 0, or a negative errno with nothing left behind.
 */
int iobmd_memory_create(struct iobmd_memory *memory,
			const struct iobmd_plan *plan, u32 options,
			const char **reason)
{
	int error;

	*memory = (struct iobmd_memory){
		.type = plan->type,
		.windows = LIST_HEAD_INIT(memory->windows),
		.state = kIOMemoryPurgeableNonVolatile,
		.volatile_link = LIST_HEAD_INIT(memory->volatile_link),
	};
	mutex_init(&memory->lock);
	if (plan->kind == IOBMD_PLAN_PAGEABLE) {
		memory->purgeable = options & kIOMemoryPurgeable;
		return create_pageable(memory, plan, reason);
	}
	error = iobmd_backing_create(&memory->backing, plan, reason);
	memory->page_count = memory->backing.page_count;
	return error;
}

/**
 * iobmd_memory_destroy - give everything back
 * @memory: what iobmd_memory_create() made, mapped by nobody but itself
 */
void iobmd_memory_destroy(struct iobmd_memory *memory)
{
	iobmd_purgeable_forget(memory);
	if (memory->own)
		iobmd_kmap_close(memory->own);
	kfree(memory->own);
	if (memory->blank)
		__free_page(memory->blank);
	if (memory->is_pageable) {
		iobmd_pageable_destroy(&memory->pageable);
		return;
	}
	iobmd_backing_destroy(&memory->backing);
	if (memory->space)
		fput(memory->space);
}

/* Loose pages are always write-back: those of a mapped other type must stay. */
static void settle(struct iobmd_memory *memory)
{
	bool typed_and_mapped = memory->type != IOBMD_TYPE_WB && memory->areas;

	lockdep_assert_held(&memory->lock);
	if (memory->is_pageable && !memory->wired && !memory->own_is_live &&
	    !typed_and_mapped)
		iobmd_pageable_let_go(&memory->pageable);
}

/**
 * iobmd_memory_settle - let go of pages nobody needs to stay
 * @memory: the memory
 */
void iobmd_memory_settle(struct iobmd_memory *memory)
{
	mutex_lock(&memory->lock);
	settle(memory);
	mutex_unlock(&memory->lock);
}

/**
 * iobmd_memory_wire - one more reason for every page to exist and stay
 * @memory: the memory
 *
 * Return: 0, or a negative errno with nothing changed.
 */
int iobmd_memory_wire(struct iobmd_memory *memory)
{
	int error = 0;

	mutex_lock(&memory->lock);
	if (memory->is_pageable)
		error = iobmd_pageable_hold_all(&memory->pageable);
	if (!error && memory->own)
		error = iobmd_memory_revive(memory);
	if (!error)
		memory->wired++;
	settle(memory);
	mutex_unlock(&memory->lock);
	return error;
}

/**
 * iobmd_memory_unwire - one reason less
 * @memory: the memory
 */
void iobmd_memory_unwire(struct iobmd_memory *memory)
{
	mutex_lock(&memory->lock);
	memory->wired--;
	settle(memory);
	mutex_unlock(&memory->lock);
}

/* Every page that a kernel mapping shows; they are held. */
static struct page **collect(struct iobmd_memory *memory)
{
	struct page **pages;
	unsigned long i;

	pages = kvmalloc_array(memory->page_count, sizeof(*pages),
			       GFP_KERNEL | __GFP_NOWARN);
	for (i = 0; pages && i < memory->page_count; i++)
		pages[i] = memory->is_pageable ? memory->pageable.held[i].page :
						 memory->backing.pages[i];
	return pages;
}

static bool is_in_kernel(const struct iobmd_memory *memory)
{
	return memory->own_is_live || !list_empty(&memory->windows);
}

static void refresh_windows(struct iobmd_memory *memory, struct page **pages)
{
	struct iobmd_kmap *window;

	if (memory->own_is_live)
		iobmd_kmap_refresh(memory->own, pages, memory->type);
	list_for_each_entry(window, &memory->windows, link)
		iobmd_kmap_refresh(window, pages + window->first, memory->type);
}

static int change_type(struct iobmd_memory *memory, enum iobmd_memory_type type,
		       const char **reason)
{
	int error;

	if (memory->is_pageable) {
		error = iobmd_pageable_set_type(&memory->pageable, type);
		return error ? iobmd_refuse(
				       reason, error,
				       "the kernel did not give the pages the memory type of the cache mode") :
			       0;
	}
	if (memory->space)
		unmap_mapping_pages(memory->space->f_mapping, 0, 0, false);
	return iobmd_backing_set_type(&memory->backing, type, reason);
}

static int set_type(struct iobmd_memory *memory, enum iobmd_memory_type type,
		    const char **reason)
{
	struct page **pages = NULL;
	int error;

	if (type == memory->type)
		return 0;
	if (is_in_kernel(memory)) {
		pages = collect(memory);
		if (!pages)
			return iobmd_refuse(reason, -ENOMEM,
					    "no memory for the list of pages");
	}
	error = change_type(memory, type, reason);
	memory->type = error ? IOBMD_TYPE_WB : type;
	if (pages)
		refresh_windows(memory, pages);
	kvfree(pages);
	settle(memory);
	return error;
}

/**
 * iobmd_memory_set_type - another memory type for every mapping
 * @memory: the memory
 * @type: the type
 * @reason: on failure a sentence for a person, static
 *
 * User mappings are taken away and fault in again with the new type.
 *
 * Return: 0, or a negative errno; the memory may be write-back then.
 */
int iobmd_memory_set_type(struct iobmd_memory *memory,
			  enum iobmd_memory_type type, const char **reason)
{
	int error;

	if (!(iobmd_memtype_available() & BIT(type)))
		return iobmd_refuse(
			reason, -EOPNOTSUPP,
			"this machine's PAT has no entry for the memory type of the cache mode");
	mutex_lock(&memory->lock);
	error = set_type(memory, type, reason);
	mutex_unlock(&memory->lock);
	return error;
}

/**
 * iobmd_memory_open_space - make user mappings possible
 * @memory: the memory
 *
 * An address space of its own finds all of them, whichever process they are in.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_memory_open_space(struct iobmd_memory *memory)
{
	int error = 0;

	mutex_lock(&memory->lock);
	if (!memory->space)
		memory->space = iobmd_pageable_file(memory->page_count);
	if (IS_ERR(memory->space)) {
		error = PTR_ERR(memory->space);
		memory->space = NULL;
	}
	mutex_unlock(&memory->lock);
	return error;
}

/*
 * The area says of which type its entries are to be.  A kernel that tracks the
 * types of pages goes by the page (track_pfn_insert() in arch/x86/mm/pat); one
 * that was started with nopat goes by this.  All faults on the memory hold its
 * lock, and a change of type has taken every older entry away.
 */
static void type_area(struct vm_area_struct *vma, enum iobmd_memory_type type)
{
	WRITE_ONCE(vma->vm_page_prot,
		   iobmd_memtype_retyped(vma->vm_page_prot, type));
}

static vm_fault_t insert(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_mixed(vmf->vma, vmf->address,
				__pfn_to_pfn_t(page_to_pfn(page), PFN_DEV));
}

/* An ordinary page of an ordinary file, to be found again by reclaim. */
static vm_fault_t fault_loose(struct iobmd_memory *memory, unsigned long index,
			      struct vm_fault *vmf)
{
	struct address_space *mapping = memory->space->f_mapping;
	struct page *page;

	page = shmem_read_mapping_page(mapping, IOBMD_MARGIN + index);
	if (IS_ERR(page))
		return vmf_error(PTR_ERR(page));
	lock_page(page);
	vmf->page = page;
	return VM_FAULT_LOCKED;
}

/**
 * iobmd_memory_fault - a process touched its mapping
 * @memory: the memory; the caller holds its lock
 * @index: which page
 * @vmf: the fault
 *
 * Return: as vm_operations_struct.fault has to.
 */
vm_fault_t iobmd_memory_fault(struct iobmd_memory *memory, unsigned long index,
			      struct vm_fault *vmf)
{
	struct page *page;

	lockdep_assert_held(&memory->lock);
	type_area(vmf->vma, memory->type);
	if (!memory->is_pageable)
		return insert(vmf, memory->backing.pages[index]);
	if (memory->type == IOBMD_TYPE_WB)
		return fault_loose(memory, index, vmf);
	page = iobmd_pageable_hold(&memory->pageable, index);
	return IS_ERR(page) ? vmf_error(PTR_ERR(page)) : insert(vmf, page);
}
