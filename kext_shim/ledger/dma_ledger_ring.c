// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/build_bug.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/math64.h>
#include <linux/mm.h>

#include "dma_ledger_ring.h"

#define BLOCK_BYTES \
	(DMA_LEDGER_BLOCK_RECORDS * sizeof(struct dma_ledger_record))

static struct dma_ledger_header *header;
/* Where the blocks are: for the host, for us, and how many. */
static u64 *directory;
static u64 capacity, blocks;

static size_t directory_bytes(void)
{
	return PAGE_ALIGN(blocks * sizeof(*directory));
}

/**
 * ledger_ring_create - make the ring
 * @records: how many it holds, 1 at least
 *
 * Return: 0, -EINVAL, or -ENOMEM with nothing left.
 */
int ledger_ring_create(u64 records)
{
	u64 i;

	BUILD_BUG_ON(sizeof(struct dma_ledger_record) != 256);
	BUILD_BUG_ON(sizeof(struct dma_ledger_piece) != 256);
	BUILD_BUG_ON(sizeof(struct dma_ledger_module) != 256);
	if (!records || records > U32_MAX)
		return -EINVAL;
	capacity = records;
	blocks = DIV_ROUND_UP_ULL(records, DMA_LEDGER_BLOCK_RECORDS);
	header = (void *)get_zeroed_page(GFP_KERNEL);
	directory =
		alloc_pages_exact(directory_bytes(), GFP_KERNEL | __GFP_ZERO);
	if (!header || !directory)
		goto failed;
	for (i = 0; i < blocks; i++) {
		void *block =
			alloc_pages_exact(BLOCK_BYTES, GFP_KERNEL | __GFP_ZERO);

		if (!block)
			goto failed;
		directory[i] = virt_to_phys(block);
	}
	return 0;

failed:
	ledger_ring_destroy();
	return -ENOMEM;
}

/** ledger_ring_destroy - undo ledger_ring_create(), or half of it */
void ledger_ring_destroy(void)
{
	u64 i;

	for (i = 0; directory && i < blocks; i++)
		if (directory[i])
			free_pages_exact(phys_to_virt(directory[i]),
					 BLOCK_BYTES);
	if (directory)
		free_pages_exact(directory, directory_bytes());
	free_page((unsigned long)header);
	directory = NULL;
	header = NULL;
}

/**
 * ledger_ring_reserve - number records that belong together
 * @records: how many, one after the other
 *
 * From any context.  All find room, or all are counted as lost.
 *
 * Return: the number of the first, or LEDGER_NO_ROOM.
 */
u64 ledger_ring_reserve(u64 records)
{
	u64 at;

	do {
		at = READ_ONCE(header->produced);
		/* Not before the reader is through with the slots. */
		if (at + records - smp_load_acquire(&header->consumed) >
		    capacity) {
			atomic64_add(records, (atomic64_t *)&header->lost);
			return LEDGER_NO_ROOM;
		}
	} while (cmpxchg64(&header->produced, at, at + records) != at);
	return at;
}

/**
 * ledger_ring_slot - where a record goes
 * @number: a reserved number
 *
 * Return: room for one record.
 */
void *ledger_ring_slot(u64 number)
{
	u64 slot;

	div64_u64_rem(number, capacity, &slot);
	return phys_to_virt(directory[slot / DMA_LEDGER_BLOCK_RECORDS]) +
	       slot % DMA_LEDGER_BLOCK_RECORDS *
		       sizeof(struct dma_ledger_record);
}

/**
 * ledger_ring_commit - let the reader see a record
 * @slot: the record, all but its sequence written
 * @number: its number
 */
void ledger_ring_commit(void *slot, u64 number)
{
	smp_store_release((u64 *)slot, number + 1);
}

/** ledger_ring_count_stale - count one more, from any context */
void ledger_ring_count_stale(void)
{
	atomic64_inc((atomic64_t *)&header->stale);
}

/**
 * ledger_ring_describe - say where the ring is and how full
 * @info: its fields about the ring are filled in
 */
void ledger_ring_describe(struct dma_ledger_info *info)
{
	info->record_size = sizeof(struct dma_ledger_record);
	info->capacity = capacity;
	info->header = virt_to_phys(header);
	info->directory = virt_to_phys(directory);
	info->blocks = blocks;
	info->produced = READ_ONCE(header->produced);
	info->consumed = READ_ONCE(header->consumed);
	info->lost = READ_ONCE(header->lost);
}
