// SPDX-License-Identifier: GPL-2.0
#include <linux/bitops.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>

#include "compat.h"
#include "iobmd_chunk.h"
#include "iobmd_hunt.h"

/* A hunt keeps at most so much memory from others, and leaves them an eighth. */
#define HELD_MAX (2ull * SZ_1G)
#define LEFT_MIN SZ_64M

/* Address bits up to which ZONE_DMA is a good part of all there is. */
#define NARROW 26

/**
 * struct hunt - one search
 * @plan: what is needed
 * @chunks: where to put it
 * @left: bytes still needed
 * @barren: blocks without a usable page; kept, or they would come back.  Linked
 *	by page->lru, with the order in page_private()
 * @held: bytes in @barren
 */
struct hunt {
	const struct iobmd_plan *plan;
	struct list_head *chunks;
	u64 left;
	struct list_head barren;
	u64 held;
};

static bool may_hold_more(const struct hunt *hunt)
{
	u64 spared =
		max_t(u64, LEFT_MIN, ((u64)totalram_pages() << PAGE_SHIFT) / 8);

	return hunt->held < HELD_MAX &&
	       si_mem_available() > (long)(spared >> PAGE_SHIFT);
}

static void hold(struct hunt *hunt, struct page *page, unsigned int order)
{
	set_page_private(page, order);
	list_add(&page->lru, &hunt->barren);
	hunt->held += PAGE_SIZE << order;
}

static void let_go(struct hunt *hunt)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &hunt->barren, lru) {
		unsigned int order = page_private(page);

		list_del(&page->lru);
		set_page_private(page, 0);
		__free_pages(page, order);
		cond_resched();
	}
	hunt->held = 0;
}

static void free_stretch(u64 start, u64 end)
{
	if (start < end)
		free_pages_exact(phys_to_virt(start), end - start);
}

/* Take what is usable out of a block whose pages are split; free the rest. */
static int carve(struct hunt *hunt, u64 start, u64 end)
{
	while (hunt->left) {
		struct iobmd_chunk *chunk;
		u64 bytes, at;

		bytes = iobmd_usable(hunt->plan, start, end, hunt->left, &at);
		if (!bytes)
			break;
		chunk = iobmd_chunk_adopt(at, bytes);
		if (!chunk) {
			free_stretch(start, end);
			return -ENOMEM;
		}
		list_add_tail(&chunk->link, hunt->chunks);
		free_stretch(start, at);
		start = at + bytes;
		hunt->left -= bytes;
	}
	free_stretch(start, end);
	return 0;
}

static int inspect(struct hunt *hunt, struct page *page, unsigned int order)
{
	u64 start = page_to_phys(page);
	u64 end = start + (PAGE_SIZE << order);
	u64 at;

	if (!iobmd_usable(hunt->plan, start, end, hunt->left, &at)) {
		hold(hunt, page, order);
		return 0;
	}
	split_page(page, order);
	return carve(hunt, start, end);
}

/*
 * Large blocks first: most of a zone is seen, and kept if it is of no use, in a
 * few steps.  Only the last and smallest size makes the kernel reclaim memory.
 */
static int hunt_zone(struct hunt *hunt, gfp_t zone)
{
	unsigned int smallest = 0;
	unsigned int order = get_order(IOBMD_BLOCK_MAX);
	int error = 0;

	if (hunt->plan->contiguous)
		smallest = get_order(hunt->plan->storage);
	while (!error && hunt->left && may_hold_more(hunt)) {
		gfp_t how_hard = order > smallest ? 0 :
						    GFP_KERNEL | __GFP_NORETRY;
		struct page *page;

		if (fatal_signal_pending(current)) {
			error = -EINTR;
			break;
		}
		page = alloc_pages(zone | how_hard | __GFP_NOWARN, order);
		if (page)
			error = inspect(hunt, page, order);
		else if (order > smallest)
			order--;
		else
			break;
		cond_resched();
	}
	let_go(hunt);
	return error;
}

/**
 * iobmd_hunt - find memory by address, not by zone
 * @chunks: what is found is added here, in order, zeroed and write-back
 * @wanted: bytes, whole pages; for a contiguous plan its storage
 * @plan: the plan
 * @reason: on failure a sentence for a person, static
 *
 * The page allocator has no search by address inside a zone, so this takes free
 * blocks one after the other, keeps those without a single usable page until
 * the end, and cuts the usable pages out of the others.  Killable; may sleep.
 *
 * Return: 0, or a negative errno with whatever was found still in @chunks.
 */
int iobmd_hunt(struct list_head *chunks, u64 wanted,
	       const struct iobmd_plan *plan, const char **reason)
{
	/* The widest zone is the slowest to search, the narrowest is rare. */
	static const struct {
		gfp_t gfp;
		unsigned int above;
	} zones[] = { { GFP_DMA32, 24 }, { 0, 32 }, { GFP_DMA, 0 } };
	unsigned int bits = fls64(plan->mask);
	unsigned int first = bits > NARROW ? 0 : 2;
	unsigned int i;
	struct hunt hunt = {
		.plan = plan,
		.chunks = chunks,
		.left = wanted,
		.barren = LIST_HEAD_INIT(hunt.barren),
	};

	for (i = 0; i < ARRAY_SIZE(zones) && hunt.left; i++) {
		unsigned int zone = (first + i) % ARRAY_SIZE(zones);
		int error = 0;

		if (bits > zones[zone].above)
			error = hunt_zone(&hunt, zones[zone].gfp);
		if (error == -EINTR)
			return iobmd_refuse(reason, error,
					    "the caller is being killed");
		if (error)
			return iobmd_refuse(reason, error,
					    "no memory for the list of blocks");
	}
	if (!hunt.left)
		return 0;
	return iobmd_refuse(
		reason, -ENOMEM,
		"too little free memory has addresses with only bits of the mask");
}
