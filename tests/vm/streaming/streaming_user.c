// SPDX-License-Identifier: GPL-2.0
/* Every way into a process: which one, the offset that is mapped says. */
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pfn_t.h>

#include "streaming.h"

enum way {
	COHERENT,
	PAGE,
	TWO_PAGES,
	RANGE,
	FAULT,
	FAULT_PROT,
	FAULT_MIXED
};

static struct device *owner;
static void *coherent;
static dma_addr_t coherent_bus;
static struct page *pages[2];

/* The second page of the mapping, when it is touched. */
static vm_fault_t faulted(struct vm_fault *fault)
{
	struct vm_area_struct *vma = fault->vma;
	unsigned long pfn = page_to_pfn(pages[1]);

	switch ((enum way)vma->vm_pgoff) {
	case FAULT:
		return vmf_insert_pfn(vma, fault->address, pfn);
	case FAULT_PROT:
		return vmf_insert_pfn_prot(vma, fault->address, pfn,
					   vma->vm_page_prot);
	case FAULT_MIXED:
		return vmf_insert_mixed(vma, fault->address,
					__pfn_to_pfn_t(pfn, PFN_DEV));
	default:
		return VM_FAULT_SIGBUS;
	}
}

static const struct vm_operations_struct faults = { .fault = faulted };

static int map_coherent(struct vm_area_struct *vma)
{
	vma->vm_pgoff = 0;
	return dma_mmap_coherent(owner, vma, coherent, coherent_bus,
				 2 * PAGE_SIZE);
}

static int map_two(struct vm_area_struct *vma)
{
	unsigned long count = 2;

	return vm_insert_pages(vma, vma->vm_start, pages, &count);
}

static int map_range(struct vm_area_struct *vma)
{
	return remap_pfn_range(vma, vma->vm_start, page_to_pfn(pages[0]),
			       PAGE_SIZE, vma->vm_page_prot);
}

/* Mapping the first page makes it a mapping of that kind. */
static int map_it(struct file *file, struct vm_area_struct *vma)
{
	switch ((enum way)vma->vm_pgoff) {
	case COHERENT:
		return map_coherent(vma);
	case TWO_PAGES:
		return map_two(vma);
	case FAULT_MIXED:
		vma->vm_ops = &faults;
		fallthrough;
	case PAGE:
		/* A jump, and this module is on nobody's stack. */
		return vm_insert_page(vma, vma->vm_start, pages[0]);
	case FAULT:
	case FAULT_PROT:
		vma->vm_ops = &faults;
		fallthrough;
	case RANGE:
		return map_range(vma);
	default:
		return -EINVAL;
	}
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.mmap = map_it,
};
static struct miscdevice node = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = KBUILD_MODNAME,
	.fops = &operations,
};

static void give_back(void *unused)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++)
		if (pages[i])
			__free_page(pages[i]);
	if (coherent)
		dma_free_coherent(owner, 2 * PAGE_SIZE, coherent, coherent_bus);
}

static void close_node(void *unused)
{
	misc_deregister(&node);
}

int streaming_user(struct device *device)
{
	unsigned int i;
	int error;

	owner = device;
	coherent = dma_alloc_coherent(device, 2 * PAGE_SIZE, &coherent_bus,
				      GFP_KERNEL);
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		pages[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
	error = devm_add_action_or_reset(device, give_back, NULL);
	if (error)
		return error;
	if (!coherent || !pages[0] || !pages[1])
		return -ENOMEM;
	error = misc_register(&node);
	if (error)
		return error;
	return devm_add_action_or_reset(device, close_node, NULL);
}
