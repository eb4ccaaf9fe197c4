// SPDX-License-Identifier: GPL-2.0
#include <linux/bitmap.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "iobmd_chunk.h"
#include "iobmd_device.h"
#include "iobmd_mapper.h"
#include "iobmd_placement.h"
#include "iobmd_slot.h"

#define UNITS (PAGE_SIZE / IOBMD_PACKED_UNIT)

/**
 * struct iobmd_slot_page - a page that buffers share
 * @link: on the list of all of them
 * @chunk: the page
 * @io: where devices see it
 * @used: a bit per unit of IOBMD_PACKED_UNIT bytes
 */
struct iobmd_slot_page {
	struct list_head link;
	struct iobmd_chunk *chunk;
	struct iobmd_io_range io;
	DECLARE_BITMAP(used, UNITS);
};

static LIST_HEAD(slot_pages);
static DEFINE_MUTEX(slot_lock);

static void free_page_of_slots(struct iobmd_slot_page *page)
{
	iobmd_io_unmap(&page->io);
	iobmd_chunk_free(page->chunk);
	kfree(page);
}

static struct iobmd_slot_page *new_page_of_slots(void)
{
	struct iobmd_slot_page *page;
	struct page *first;

	page = kzalloc(sizeof(*page), GFP_KERNEL | __GFP_NOWARN);
	if (!page)
		return NULL;
	page->chunk = iobmd_chunk_alloc(iobmd_device_for(64), PAGE_SIZE,
					GFP_KERNEL | __GFP_RETRY_MAYFAIL);
	if (!page->chunk) {
		kfree(page);
		return NULL;
	}
	first = virt_to_page(page->chunk->address);
	if (iobmd_chunk_set_type(page->chunk, IOBMD_TYPE_WB) ||
	    iobmd_io_map(&page->io, &first, 1, 64)) {
		free_page_of_slots(page);
		return NULL;
	}
	list_add(&page->link, &slot_pages);
	return page;
}

static bool take(struct iobmd_slot_page *page, struct iobmd_slot *slot,
		 unsigned int bytes, unsigned int alignment)
{
	unsigned int count = bytes / IOBMD_PACKED_UNIT;
	unsigned long at;

	at = bitmap_find_next_zero_area(page->used, UNITS, 0, count,
					alignment / IOBMD_PACKED_UNIT - 1);
	if (at >= UNITS)
		return false;
	bitmap_set(page->used, at, count);
	*slot = (struct iobmd_slot){
		.page = page,
		.start = at * IOBMD_PACKED_UNIT,
		.bytes = bytes,
	};
	memset(page->chunk->address + slot->start, 0, bytes);
	return true;
}

/**
 * iobmd_slot_get - find room in a page
 * @slot: filled in
 * @bytes: a multiple of IOBMD_PACKED_UNIT, less than a page
 * @alignment: a power of two from IOBMD_PACKED_UNIT up, less than a page
 *
 * Reads as zero; write-back.  May sleep.
 *
 * Return: 0 or -ENOMEM.
 */
int iobmd_slot_get(struct iobmd_slot *slot, unsigned int bytes,
		   unsigned int alignment)
{
	struct iobmd_slot_page *page;
	bool taken = false;

	mutex_lock(&slot_lock);
	list_for_each_entry(page, &slot_pages, link) {
		taken = take(page, slot, bytes, alignment);
		if (taken)
			break;
	}
	if (!taken) {
		page = new_page_of_slots();
		taken = page && take(page, slot, bytes, alignment);
	}
	mutex_unlock(&slot_lock);
	return taken ? 0 : -ENOMEM;
}

/**
 * iobmd_slot_put - undo iobmd_slot_get()
 * @slot: a slot, or none
 *
 * The page goes with the last of its slots.
 */
void iobmd_slot_put(struct iobmd_slot *slot)
{
	struct iobmd_slot_page *page = slot->page;

	if (!page)
		return;
	mutex_lock(&slot_lock);
	bitmap_clear(page->used, slot->start / IOBMD_PACKED_UNIT,
		     slot->bytes / IOBMD_PACKED_UNIT);
	if (bitmap_empty(page->used, UNITS)) {
		list_del(&page->link);
		free_page_of_slots(page);
	}
	mutex_unlock(&slot_lock);
	slot->page = NULL;
}

/**
 * iobmd_slot_chunk - the page a slot is in
 * @slot: the slot
 *
 * Return: the page.
 */
const struct iobmd_chunk *iobmd_slot_chunk(const struct iobmd_slot *slot)
{
	return slot->page->chunk;
}

/**
 * iobmd_slot_io_address - where devices see a slot
 * @slot: the slot
 *
 * Return: the I/O address of its first byte.
 */
u64 iobmd_slot_io_address(const struct iobmd_slot *slot)
{
	return slot->page->io.address + slot->start;
}
