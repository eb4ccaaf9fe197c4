// SPDX-License-Identifier: GPL-2.0
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/sched/task_stack.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "dma_ledger_modules.h"
#include "dma_ledger_record.h"
#include "dma_ledger_ring.h"
#include "dma_ledger_stack.h"

/* Up to here a record is written always; behind it are as many as it says. */
#define HEAD_WORDS (offsetof(struct dma_ledger_record, stack) / sizeof(u64))

/* memset() and memcpy() are for more than a few words. */
static void clear_head(struct dma_ledger_record *record)
{
	u64 *word = (u64 *)record;
	unsigned int i;

	for (i = 0; i < HEAD_WORDS; i++)
		WRITE_ONCE(word[i], 0);
}

static void copy_record(struct dma_ledger_record *to,
			const struct dma_ledger_record *from)
{
	const u64 *source = (const u64 *)from;
	u64 *target = (u64 *)to;
	unsigned int i;

	for (i = 0; i < HEAD_WORDS + from->frames; i++)
		WRITE_ONCE(target[i], source[i]);
}

/**
 * ledger_record_begin - write down who calls
 * @record: to be filled in
 * @kind: enum dma_ledger_kind
 * @regs: at the function's entry, its return address on top of the stack
 */
void ledger_record_begin(struct dma_ledger_record *record, u16 kind,
			 struct pt_regs *regs)
{
	clear_head(record);
	record->kind = kind;
	record->direction = DMA_LEDGER_NO_FIELD;
	record->cpu = raw_smp_processor_id();
	record->pid = current->pid;
	record->preempt = preempt_count() & (PREEMPT_MASK | SOFTIRQ_MASK |
					     HARDIRQ_MASK | NMI_MASK);
	if (!(regs->flags & X86_EFLAGS_IF))
		record->flags |= DMA_LEDGER_IRQS_OFF;
	if (record->preempt)
		record->flags |= DMA_LEDGER_ATOMIC;
	ledger_stack_record(record, regs);
}

/**
 * ledger_record_device - write down for which device
 * @record: to be filled in
 * @device: the device, or NULL
 */
void ledger_record_device(struct dma_ledger_record *record,
			  struct device *device)
{
	record->device = (unsigned long)device;
	if (!device)
		return;
	record->mask = device->dma_mask ? *device->dma_mask : 0;
	record->coherent_mask = device->coherent_dma_mask;
	if (device->dma_parms)
		record->boundary = device->dma_parms->segment_boundary_mask;
	if (dev_name(device))
		strscpy(record->name, dev_name(device), sizeof(record->name));
	if (device->driver)
		strscpy(record->driver, device->driver->name,
			sizeof(record->driver));
	if (device->bus)
		strscpy(record->subsystem, device->bus->name,
			sizeof(record->subsystem));
}

static bool is_on_stack(unsigned long address)
{
	unsigned long stack = (unsigned long)task_stack_page(current);

	return address >= stack && address < stack + THREAD_SIZE;
}

/* A stack lies in vmalloc() space, and its pages in the direct map as well. */
static bool is_page_of_stack(u64 physical)
{
	const struct vm_struct *area = task_stack_vm_area(current);
	unsigned int i;

	if (!area || !area->pages)
		return false;
	for (i = 0; i < THREAD_SIZE / PAGE_SIZE; i++)
		if (page_to_pfn(area->pages[i]) == PHYS_PFN(physical))
			return true;
	return false;
}

static u64 physical_of(const void *address)
{
	if (is_vmalloc_addr(address)) {
		const struct page *page = vmalloc_to_page(address);

		return page ? page_to_phys(page) + offset_in_page(address) : 0;
	}
	return virt_addr_valid(address) ? virt_to_phys((void *)address) : 0;
}

/**
 * ledger_record_virtual - write down a kernel address and what is behind it
 * @record: to be filled in
 * @address: of the first byte
 */
void ledger_record_virtual(struct dma_ledger_record *record,
			   const void *address)
{
	record->virtual_address = (unsigned long)address;
	record->physical = physical_of(address);
	if (is_vmalloc_addr(address))
		record->flags |= DMA_LEDGER_VMALLOC;
	else if (!virt_addr_valid(address))
		record->flags |= DMA_LEDGER_NO_RAM;
	if (is_on_stack((unsigned long)address))
		record->flags |= DMA_LEDGER_STACK;
}

/**
 * ledger_record_look - write down what is wrong with a physical address
 * @record: its flags are filled in
 * @physical: of a page that is mapped
 *
 * virt_to_page() of an address outside the direct map is a page that does not
 * exist; __va() of it is that address again, or it is no memory's.
 */
void ledger_record_look(struct dma_ledger_record *record, u64 physical)
{
	unsigned long address = (unsigned long)__va(physical);

	if (pfn_valid(PHYS_PFN(physical))) {
		if (is_page_of_stack(physical))
			record->flags |= DMA_LEDGER_STACK;
		return;
	}
	record->flags |= DMA_LEDGER_NO_RAM;
	if (is_vmalloc_addr((void *)address))
		record->flags |= DMA_LEDGER_VMALLOC;
	if (is_on_stack(address))
		record->flags |= DMA_LEDGER_STACK;
}

/**
 * ledger_record_physical - write down what a page stands for
 * @record: to be filled in
 * @physical: of the first byte
 */
void ledger_record_physical(struct dma_ledger_record *record, u64 physical)
{
	record->physical = physical;
	record->virtual_address = (unsigned long)__va(physical);
	ledger_record_look(record, physical);
}

static void put(struct dma_ledger_record *record, u64 number)
{
	struct dma_ledger_record *slot = ledger_ring_slot(number);

	record->time = local_clock();
	/* Sequence 0, no record's, until it is committed. */
	copy_record(slot, record);
	ledger_ring_commit(slot, number);
}

/**
 * ledger_record_write - put a record into the ring, or count it as lost
 * @record: the record
 */
void ledger_record_write(struct dma_ledger_record *record)
{
	u64 number = ledger_ring_reserve(1);

	if (number != LEDGER_NO_ROOM)
		put(record, number);
}

static void put_piece(const struct dma_ledger_piece *piece, u64 number)
{
	struct dma_ledger_piece *slot = ledger_ring_slot(number);

	/* Sequence 0, no record's, until it is committed. */
	*slot = *piece;
	ledger_ring_commit(slot, number);
}

static void begin_piece(struct dma_ledger_piece *piece, u64 parent, u64 time,
			u32 index)
{
	memset(piece, 0, sizeof(*piece));
	piece->kind = DMA_LEDGER_PIECE;
	piece->parent = parent;
	piece->time = time;
	piece->index = index;
}

/* The physical run that begins so many bytes into a vmalloc() area. */
static u64 run_at(const struct dma_ledger_record *record, u64 offset,
		  u64 *physical)
{
	const char *start = (const char *)record->virtual_address;
	u64 length = PAGE_SIZE - offset_in_page(start + offset);

	*physical = physical_of(start + offset);
	while (offset + length < record->size &&
	       physical_of(start + offset + length) == *physical + length)
		length += PAGE_SIZE;
	return min(length, record->size - offset);
}

static u32 count_runs(const struct dma_ledger_record *record)
{
	u64 offset = 0, physical;
	u32 runs = 0;

	for (; offset < record->size; runs++)
		offset += run_at(record, offset, &physical);
	return runs;
}

/**
 * ledger_record_write_runs - the same, with the physical runs of its memory
 * @record: the record; its virtual address has @size bytes
 *
 * One run, which is all that the direct map has, needs no piece.
 */
void ledger_record_write_runs(struct dma_ledger_record *record)
{
	u32 runs = record->flags & DMA_LEDGER_VMALLOC ? count_runs(record) : 1;
	struct dma_ledger_piece piece;
	u64 number, offset = 0;
	u32 i;

	record->pieces = runs > 1 ? runs : 0;
	number = ledger_ring_reserve(1 + record->pieces);
	if (number == LEDGER_NO_ROOM)
		return;
	put(record, number);
	for (i = 0; i < record->pieces; i++) {
		begin_piece(&piece, number, record->time, i);
		piece.length = run_at(record, offset, &piece.physical);
		offset += piece.length;
		put_piece(&piece, number + 1 + i);
	}
}

/**
 * ledger_record_write_list - the same, with the entries of a list
 * @record: the record
 * @list: the list
 * @entries: its entries
 * @mapped: how many of them have a DMA address
 */
void ledger_record_write_list(struct dma_ledger_record *record,
			      struct scatterlist *list, unsigned int entries,
			      unsigned int mapped)
{
	struct dma_ledger_piece piece;
	struct scatterlist *entry;
	unsigned int i;
	u64 number;

	record->pieces = entries;
	number = ledger_ring_reserve(1 + (u64)entries);
	if (number == LEDGER_NO_ROOM)
		return;
	put(record, number);
	for_each_sg(list, entry, entries, i)
	{
		begin_piece(&piece, number, record->time, i);
		piece.physical = sg_phys(entry);
		piece.length = entry->length;
		if (i < mapped) {
			piece.bus = sg_dma_address(entry);
			piece.bus_length = sg_dma_len(entry);
		}
		put_piece(&piece, number + 1 + i);
	}
}

/* The pages of an array that lie in a row, from one of them on. */
static unsigned long pages_in_a_row(struct page **pages, unsigned long count)
{
	unsigned long i;

	for (i = 1; i < count; i++)
		if (page_to_pfn(pages[i]) != page_to_pfn(pages[0]) + i)
			break;
	return i;
}

/**
 * ledger_record_write_pages - the same, with the runs of an array of pages
 * @record: the record
 * @pages: the array
 * @count: its entries
 */
void ledger_record_write_pages(struct dma_ledger_record *record,
			       struct page **pages, unsigned long count)
{
	struct dma_ledger_piece piece;
	unsigned long at, run;
	u64 number;
	u32 i;

	for (at = 0; at < count; at += pages_in_a_row(pages + at, count - at))
		record->pieces++;
	if (count)
		record->physical = page_to_phys(pages[0]);
	number = ledger_ring_reserve(1 + (u64)record->pieces);
	if (number == LEDGER_NO_ROOM)
		return;
	put(record, number);
	for (at = 0, i = 0; at < count; at += run, i++) {
		run = pages_in_a_row(pages + at, count - at);
		begin_piece(&piece, number, record->time, i);
		piece.physical = page_to_phys(pages[at]);
		piece.length = run * PAGE_SIZE;
		put_piece(&piece, number + 1 + i);
	}
}
