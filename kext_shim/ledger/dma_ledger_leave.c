// SPDX-License-Identifier: GPL-2.0
/*
 * What the result of a watched function tells.  Each of these runs when the
 * function has returned, and puts the record into the ring.
 */
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/string.h>

#include "dma_ledger_leave.h"

static bool failed(struct ledger_call *call, unsigned long result)
{
	if (result)
		return false;
	call->record.error = -ENOMEM;
	ledger_record_write(&call->record);
	return true;
}

/* Every byte, in gulps: fresh memory begins at a page, and is all zero. */
static bool is_zeroed(const void *memory, u64 size)
{
	const u64 *word = memory, *end = memory + round_down(size, 64);

	for (; word < end; word += 8)
		if (word[0] | word[1] | word[2] | word[3] | word[4] | word[5] |
		    word[6] | word[7])
			return false;
	return !memchr_inv(word, 0, size % 64);
}

static void look_for_zeros(struct dma_ledger_record *record)
{
	if (!is_zeroed((const void *)record->virtual_address, record->size))
		record->flags |= DMA_LEDGER_NOT_ZEROED;
}

void ledger_leave_alloc(struct ledger_call *call, unsigned long result)
{
	struct dma_ledger_record *record = &call->record;

	if (failed(call, result))
		return;
	record->bus = *(dma_addr_t *)call->argument;
	if (record->attrs & DMA_ATTR_NO_KERNEL_MAPPING) {
		record->virtual_address = result;
		ledger_record_write(record);
		return;
	}
	ledger_record_virtual(record, (void *)result);
	look_for_zeros(record);
	ledger_record_write_runs(record);
}

void ledger_leave_alloc_pages(struct ledger_call *call, unsigned long result)
{
	if (failed(call, result))
		return;
	call->record.bus = *(dma_addr_t *)call->argument;
	ledger_record_physical(&call->record,
			       page_to_phys((struct page *)result));
	look_for_zeros(&call->record);
	ledger_record_write(&call->record);
}

void ledger_leave_alloc_noncontiguous(struct ledger_call *call,
				      unsigned long result)
{
	const struct sg_table *table = (const struct sg_table *)result;

	if (failed(call, result))
		return;
	call->record.virtual_address = result;
	call->record.bus = sg_dma_address(table->sgl);
	call->record.physical = sg_phys(table->sgl);
	ledger_record_write_list(&call->record, table->sgl, table->orig_nents,
				 table->nents);
}

void ledger_leave_map(struct ledger_call *call, unsigned long result)
{
	call->record.bus = result;
	if (result == DMA_MAPPING_ERROR)
		call->record.error = -EIO;
	ledger_record_write(&call->record);
}

static void write_list(struct ledger_call *call, unsigned int mapped)
{
	struct scatterlist *list =
		(struct scatterlist *)call->record.virtual_address;

	if (mapped)
		call->record.bus = sg_dma_address(list);
	ledger_record_write_list(&call->record, list, call->entries, mapped);
}

void ledger_leave_list(struct ledger_call *call, unsigned long result)
{
	if (!(unsigned int)result)
		call->record.error = -EIO;
	write_list(call, result);
}

void ledger_leave_sgtable(struct ledger_call *call, unsigned long result)
{
	const struct sg_table *table = (const void *)call->argument;

	call->record.error = (int)result;
	write_list(call, (int)result ? 0 : table->nents);
}

void ledger_leave_pool_create(struct ledger_call *call, unsigned long result)
{
	if (failed(call, result))
		return;
	call->record.owner = result;
	ledger_record_write(&call->record);
}

void ledger_leave_pool_alloc(struct ledger_call *call, unsigned long result)
{
	if (failed(call, result))
		return;
	call->record.bus = *(dma_addr_t *)call->argument;
	ledger_record_virtual(&call->record, (void *)result);
	ledger_record_write(&call->record);
}

/*
 * A device that needs no sync is remembered as such since 6.10, and drivers'
 * calls then never reach the DMA API: undo it, to see them.
 */
static void want_syncs(struct device *device)
{
#ifdef CONFIG_DMA_NEED_SYNC
	device->dma_skip_sync = false;
#endif
}

void ledger_leave_mask(struct ledger_call *call, unsigned long result)
{
	call->record.error = (int)result;
	if (call->record.device && !call->record.error)
		want_syncs((struct device *)call->record.device);
	ledger_record_write(&call->record);
}

void ledger_leave_mmap(struct ledger_call *call, unsigned long result)
{
	const struct vm_area_struct *area = (const void *)call->argument;

	call->record.error = (int)result;
	call->record.owner = area->vm_start;
	call->record.gfp = pgprot_val(area->vm_page_prot);
	ledger_record_write(&call->record);
}

void ledger_leave_status(struct ledger_call *call, unsigned long result)
{
	call->record.error = (int)result;
	ledger_record_write(&call->record);
}

void ledger_leave_pages_array(struct ledger_call *call, unsigned long result)
{
	struct page **pages = (struct page **)call->record.virtual_address;

	call->record.error = (int)result;
	ledger_record_write_pages(&call->record, pages, call->record.size);
}

void ledger_leave_user_pages(struct ledger_call *call, unsigned long result)
{
	struct page **pages = (struct page **)call->record.virtual_address;
	unsigned long mapped = call->entries - *(unsigned long *)call->argument;

	call->record.error = (int)result;
	call->record.size = mapped * PAGE_SIZE;
	ledger_record_write_pages(&call->record, pages, mapped);
}

void ledger_leave_fault(struct ledger_call *call, unsigned long result)
{
	if ((vm_fault_t)result & VM_FAULT_ERROR)
		call->record.error = -EFAULT;
	ledger_record_write(&call->record);
}

/* The masks as the driver left them, however it set them. */
void ledger_leave_bind(struct ledger_call *call, unsigned long result)
{
	const struct device *device = (void *)call->record.device;

	/* The driver core calls an error that is no reason to stop positive. */
	call->record.error = -abs((int)result);
	call->record.mask = device->dma_mask ? *device->dma_mask : 0;
	call->record.coherent_mask = device->coherent_dma_mask;
	ledger_record_write(&call->record);
}

/* It may have been another's driver that was to leave. */
void ledger_leave_unbind(struct ledger_call *call, unsigned long result)
{
	const struct device *device = (void *)call->record.device;

	if (!READ_ONCE(device->driver))
		ledger_record_write(&call->record);
}
