// SPDX-License-Identifier: GPL-2.0
/*
 * What the arguments of a watched function tell.  Each of these runs at the
 * function's first instruction, and is named in the table of probes.
 */
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/ptrace.h>

#include "dma_ledger_enter.h"
#include "dma_ledger_modules.h"

#define ARGUMENT(n) regs_get_kernel_argument(regs, n)

/* Of what comes often, only what was asked for. */
bool ledger_wanted_device(struct pt_regs *regs)
{
	const struct device *device = (const struct device *)ARGUMENT(0);
	const struct device_driver *driver =
		device ? READ_ONCE(device->driver) : NULL;

	return ledger_modules_chosen(
		*(unsigned long *)kernel_stack_pointer(regs),
		driver ? driver->owner : NULL);
}

/* A pool does not tell whose it is. */
bool ledger_wanted_pool(struct pt_regs *regs)
{
	return ledger_modules_chosen(
		*(unsigned long *)kernel_stack_pointer(regs), NULL);
}

static void take_device(struct ledger_call *call, struct pt_regs *regs)
{
	ledger_record_device(&call->record, (struct device *)ARGUMENT(0));
}

/* (dev, size, dma_handle, gfp, attrs) */
void ledger_enter_alloc(struct ledger_call *call, struct pt_regs *regs)
{
	take_device(call, regs);
	call->record.size = ARGUMENT(1);
	call->argument = ARGUMENT(2);
	call->record.gfp = ARGUMENT(3);
	call->record.attrs = ARGUMENT(4);
}

/* (dev, size, cpu_addr, dma_handle, attrs) */
void ledger_enter_free(struct ledger_call *call, struct pt_regs *regs)
{
	take_device(call, regs);
	call->record.size = ARGUMENT(1);
	call->record.bus = ARGUMENT(3);
	call->record.attrs = ARGUMENT(4);
	if (call->record.attrs & DMA_ATTR_NO_KERNEL_MAPPING)
		call->record.virtual_address = ARGUMENT(2);
	else
		ledger_record_virtual(&call->record, (void *)ARGUMENT(2));
}

/* (dev, size, dma_handle, dir, gfp) */
void ledger_enter_alloc_pages(struct ledger_call *call, struct pt_regs *regs)
{
	take_device(call, regs);
	call->record.size = ARGUMENT(1);
	call->argument = ARGUMENT(2);
	call->record.direction = ARGUMENT(3);
	call->record.gfp = ARGUMENT(4);
}

/* (dev, size, page, dma_handle, dir) */
void ledger_enter_free_pages(struct ledger_call *call, struct pt_regs *regs)
{
	take_device(call, regs);
	call->record.size = ARGUMENT(1);
	ledger_record_physical(&call->record,
			       page_to_phys((struct page *)ARGUMENT(2)));
	call->record.bus = ARGUMENT(3);
	call->record.direction = ARGUMENT(4);
}

/* (dev, size, dir, gfp, attrs) */
void ledger_enter_alloc_noncontiguous(struct ledger_call *call,
				      struct pt_regs *regs)
{
	take_device(call, regs);
	call->record.size = ARGUMENT(1);
	call->record.direction = ARGUMENT(2);
	call->record.gfp = ARGUMENT(3);
	call->record.attrs = ARGUMENT(4);
}

/* (dev, size, sgt, dir) */
void ledger_enter_free_noncontiguous(struct ledger_call *call,
				     struct pt_regs *regs)
{
	const struct sg_table *table = (void *)ARGUMENT(2);

	take_device(call, regs);
	call->record.size = ARGUMENT(1);
	call->record.virtual_address = (unsigned long)table;
	if (table && table->sgl)
		call->record.bus = sg_dma_address(table->sgl);
	call->record.direction = ARGUMENT(3);
}

/* (dev, page, offset, size, dir, attrs) */
void ledger_enter_map_page(struct ledger_call *call, struct pt_regs *regs)
{
	take_device(call, regs);
	ledger_record_physical(&call->record,
			       page_to_phys((struct page *)ARGUMENT(1)) +
				       ARGUMENT(2));
	call->record.size = ARGUMENT(3);
	call->record.direction = ARGUMENT(4);
	call->record.attrs = ARGUMENT(5);
}

/* (dev, phys_addr, size, dir, attrs) */
void ledger_enter_map_resource(struct ledger_call *call, struct pt_regs *regs)
{
	take_device(call, regs);
	call->record.physical = ARGUMENT(1);
	call->record.size = ARGUMENT(2);
	call->record.direction = ARGUMENT(3);
	call->record.attrs = ARGUMENT(4);
}

/* (dev, addr, size, dir[, attrs]): unmap and sync */
void ledger_enter_address(struct ledger_call *call, struct pt_regs *regs)
{
	u16 kind = call->record.kind;

	take_device(call, regs);
	call->record.bus = ARGUMENT(1);
	call->record.size = ARGUMENT(2);
	call->record.direction = ARGUMENT(3);
	if (kind == DMA_LEDGER_UNMAP_PAGE || kind == DMA_LEDGER_UNMAP_RESOURCE)
		call->record.attrs = ARGUMENT(4);
}

static void take_list(struct ledger_call *call, struct scatterlist *list,
		      unsigned int entries)
{
	struct scatterlist *entry;
	unsigned int i;

	call->record.virtual_address = (unsigned long)list;
	call->entries = entries;
	if (!list || !entries)
		return;
	call->record.bus = sg_dma_address(list);
	for_each_sg(list, entry, entries, i)
	{
		call->record.size += entry->length;
		ledger_record_look(&call->record, sg_phys(entry));
	}
	call->record.physical = sg_phys(list);
}

/* (dev, sg, nents, dir[, attrs]): map, unmap and sync */
void ledger_enter_list(struct ledger_call *call, struct pt_regs *regs)
{
	u16 kind = call->record.kind;

	take_device(call, regs);
	take_list(call, (struct scatterlist *)ARGUMENT(1), (int)ARGUMENT(2));
	call->record.direction = ARGUMENT(3);
	if (kind == DMA_LEDGER_MAP_SG || kind == DMA_LEDGER_UNMAP_SG)
		call->record.attrs = ARGUMENT(4);
}

/* (dev, sgt, dir, attrs) */
void ledger_enter_sgtable(struct ledger_call *call, struct pt_regs *regs)
{
	const struct sg_table *table = (void *)ARGUMENT(1);

	take_device(call, regs);
	take_list(call, table->sgl, table->orig_nents);
	call->argument = (unsigned long)table;
	call->record.direction = ARGUMENT(2);
	call->record.attrs = ARGUMENT(3);
}

/* (name, dev, size, align, boundary); its name takes the device's place */
void ledger_enter_pool_create(struct ledger_call *call, struct pt_regs *regs)
{
	const char *name = (const char *)ARGUMENT(0);

	ledger_record_device(&call->record, (struct device *)ARGUMENT(1));
	call->record.size = ARGUMENT(2);
	call->record.bus = ARGUMENT(3);
	call->record.boundary = ARGUMENT(4);
	strscpy(call->record.name, name ? name : "", sizeof(call->record.name));
}

/* (pool, gfp, dma_handle) */
void ledger_enter_pool_alloc(struct ledger_call *call, struct pt_regs *regs)
{
	call->record.owner = ARGUMENT(0);
	call->record.gfp = ARGUMENT(1);
	call->argument = ARGUMENT(2);
}

/* (pool, vaddr, dma) */
void ledger_enter_pool_free(struct ledger_call *call, struct pt_regs *regs)
{
	call->record.owner = ARGUMENT(0);
	ledger_record_virtual(&call->record, (void *)ARGUMENT(1));
	call->record.bus = ARGUMENT(2);
}

/* (pool) */
void ledger_enter_pool_destroy(struct ledger_call *call, struct pt_regs *regs)
{
	call->record.owner = ARGUMENT(0);
}

/* (dev, mask); the record has the masks before, and the new one as its size */
void ledger_enter_mask(struct ledger_call *call, struct pt_regs *regs)
{
	take_device(call, regs);
	call->record.size = ARGUMENT(1);
}

/*
 * Is it a module's doing?  The driver is not on the stack when its mmap ends
 * in the call; the file that is mapped names it then.
 */
static u32 mapper_of(const struct vm_area_struct *area)
{
	const struct file *file = area->vm_file;

	return file ? ledger_module_of((unsigned long)file->f_op->mmap) : 0;
}

/* (dev, vma, cpu_addr, dma_addr, size, attrs) */
void ledger_enter_mmap(struct ledger_call *call, struct pt_regs *regs)
{
	take_device(call, regs);
	call->argument = ARGUMENT(1);
	if (!call->record.module)
		call->record.module = mapper_of((void *)ARGUMENT(1));
	ledger_record_virtual(&call->record, (void *)ARGUMENT(2));
	call->record.bus = ARGUMENT(3);
	call->record.size = ARGUMENT(4);
	call->record.attrs = ARGUMENT(5);
}

/* (addr, numpages) */
void ledger_enter_memory(struct ledger_call *call, struct pt_regs *regs)
{
	ledger_record_virtual(&call->record, (void *)ARGUMENT(0));
	call->record.size = (int)ARGUMENT(1);
}

/* (page, numpages) */
void ledger_enter_pages(struct ledger_call *call, struct pt_regs *regs)
{
	ledger_record_physical(&call->record,
			       page_to_phys((struct page *)ARGUMENT(0)));
	call->record.size = (int)ARGUMENT(1);
}

/* (pages, addrinarray) */
void ledger_enter_pages_array(struct ledger_call *call, struct pt_regs *regs)
{
	call->record.virtual_address = ARGUMENT(0);
	call->record.size = (int)ARGUMENT(1);
}

/* Processes are made of mappings that are of no interest here. */
bool ledger_wanted_user(struct pt_regs *regs)
{
	return ledger_module_of(*(unsigned long *)kernel_stack_pointer(regs)) ||
	       mapper_of((const struct vm_area_struct *)ARGUMENT(0));
}

static void take_area(struct ledger_call *call, struct pt_regs *regs)
{
	const struct vm_area_struct *area = (const void *)ARGUMENT(0);

	call->record.bus = virt_to_phys(area->vm_mm->pgd);
	call->record.owner = ARGUMENT(1);
	call->record.gfp = pgprot_val(area->vm_page_prot);
	if (!call->record.module)
		call->record.module = mapper_of(area);
}

/* (vma, addr, page) */
void ledger_enter_user_page(struct ledger_call *call, struct pt_regs *regs)
{
	take_area(call, regs);
	ledger_record_physical(&call->record,
			       page_to_phys((struct page *)ARGUMENT(2)));
	call->record.size = PAGE_SIZE;
}

/* (vma, addr, pages, num); what is left of num is told on the way out */
void ledger_enter_user_pages(struct ledger_call *call, struct pt_regs *regs)
{
	take_area(call, regs);
	call->record.virtual_address = ARGUMENT(2);
	call->argument = ARGUMENT(3);
	call->entries = *(unsigned long *)ARGUMENT(3);
}

/* (vma, addr, pfn, size, prot) */
void ledger_enter_user_range(struct ledger_call *call, struct pt_regs *regs)
{
	take_area(call, regs);
	ledger_record_physical(&call->record, PFN_PHYS(ARGUMENT(2)));
	call->record.size = ARGUMENT(3);
	call->record.gfp = ARGUMENT(4);
}

/* (vma, addr, pfn[, pgprot]); a pfn_t has flags above its frame number */
void ledger_enter_user_frame(struct ledger_call *call, struct pt_regs *regs)
{
	u64 physical = PFN_PHYS(ARGUMENT(2)) & __PHYSICAL_MASK;

	take_area(call, regs);
	ledger_record_physical(&call->record, physical);
	call->record.size = PAGE_SIZE;
	if (call->record.kind == DMA_LEDGER_USER_FRAME_PROT)
		call->record.gfp = ARGUMENT(3);
}

/* (dev, drv) */
void ledger_enter_bind(struct ledger_call *call, struct pt_regs *regs)
{
	const struct device_driver *driver = (const void *)ARGUMENT(1);

	take_device(call, regs);
	strscpy(call->record.driver, driver->name, sizeof(call->record.driver));
	call->record.module = ledger_module_id(driver->owner);
}

/* A device without a driver has nothing to leave. */
bool ledger_wanted_unbind(struct pt_regs *regs)
{
	return READ_ONCE(((struct device *)ARGUMENT(0))->driver);
}

/* (dev, drv, parent) */
void ledger_enter_unbind(struct ledger_call *call, struct pt_regs *regs)
{
	const struct device *device = (const void *)ARGUMENT(0);
	const struct device_driver *driver = READ_ONCE(device->driver);

	take_device(call, regs);
	if (driver)
		call->record.module = ledger_module_id(driver->owner);
}
