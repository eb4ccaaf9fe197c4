// SPDX-License-Identifier: GPL-2.0
#include <linux/bitops.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>

#include "compat.h"
#include "iobmd_chunk.h"
#include "iobmd_device.h"
#include "iobmd_gather.h"
#include "iobmd_hunt.h"
#include "iobmd_mapper.h"

/*
 * Blocks of one size that are asked for before giving up on that size.  Only a
 * mask makes a block unfit, and then its neighbours in the free list mostly are
 * as well: finding better ones is iobmd_hunt()'s job.
 */
#define TRIES 8

/* Largest blocks that a mask with holes does not get to cut up. */
#define SPARED 4

/* Up to here a buffer may use the zone that 24-bit masks have nothing beside. */
#define SMALL SZ_256K

/*
 * Memory is given away one buffer at a time, so that the check for room and
 * the allocation it vouches for are not separated.
 */
static DEFINE_MUTEX(allocating);

/* RAM that is hot-plugged later lies behind it. */
static u64 top_of_memory(void)
{
	unsigned long top = 0;
	int node;

	for_each_online_node(node)
		top = max(top, pgdat_end_pfn(NODE_DATA(node)));
	return (u64)top << PAGE_SHIFT;
}

/**
 * iobmd_storage_limits - what this machine can give at most
 * @limits: filled in
 *
 * Without CMA a physical run is a block of the page allocator.
 */
void iobmd_storage_limits(struct iobmd_limits *limits)
{
	u64 memory = (u64)totalram_pages() << PAGE_SHIFT;

	*limits = (struct iobmd_limits){
		.memory = memory,
		.top = top_of_memory(),
		.run = IS_ENABLED(CONFIG_DMA_CMA) ? memory : IOBMD_BLOCK_MAX,
		.wired = max_t(u64, 2ull * SZ_1G, memory / 64),
		.pageable = MAX_LFS_FILESIZE & PAGE_MASK,
		.mapper = iobmd_mapper_present(),
	};
}

/*
 * The OOM killer would end the agent rather than refuse the buffer: leave
 * what page tables, the lists of blocks and pages and the rest of the machine
 * need.
 */
static bool room_for(u64 storage)
{
	u64 reserve = SZ_16M + storage / 32;

	return si_mem_available() > (long)((storage + reserve) >> PAGE_SHIFT);
}

static bool has_mask(const struct iobmd_plan *plan)
{
	return plan->mask != IOBMD_ANY_ADDRESS;
}

/*
 * A mask with holes leaves the pages around its own in single pieces, which no
 * compaction moves together again while the buffer lives.  A few large blocks
 * are kept out of its way: a kernel without any comes to a stop sooner than it
 * runs out of pages.
 */
static void set_aside(struct list_head *spared)
{
	int i;

	for (i = 0; i < SPARED; i++) {
		struct page *page =
			alloc_pages(__GFP_NOWARN, get_order(IOBMD_BLOCK_MAX));

		if (!page)
			break;
		list_add(&page->lru, spared);
	}
}

static void give_back(struct list_head *spared)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, spared, lru) {
		list_del(&page->lru);
		__free_pages(page, get_order(IOBMD_BLOCK_MAX));
	}
}

/* Unfit blocks are kept meanwhile, or the same ones would come back. */
static struct iobmd_chunk *pick(struct device *device, u64 bytes, gfp_t gfp,
				const struct iobmd_plan *plan)
{
	struct iobmd_chunk *chunk = NULL, *unfit, *next;
	LIST_HEAD(kept);
	int tries;

	for (tries = 0; tries < TRIES; tries++) {
		chunk = iobmd_chunk_alloc(device, bytes, gfp);
		if (!chunk || iobmd_chunk_is_usable(chunk, plan))
			break;
		list_add(&chunk->link, &kept);
		chunk = NULL;
	}
	list_for_each_entry_safe(unfit, next, &kept, link)
		iobmd_chunk_free(unfit);
	return chunk;
}

/* The widest zone the mask reaches into first; large buffers spare the last. */
static struct iobmd_chunk *find_block(u64 bytes, gfp_t gfp,
				      const struct iobmd_plan *plan)
{
	struct device *device = iobmd_device_for(fls64(plan->mask));
	struct iobmd_chunk *chunk = pick(device, bytes, gfp, plan);

	while (!chunk && has_mask(plan)) {
		device = iobmd_device_narrower(device);
		if (!device ||
		    (plan->storage > SMALL && !iobmd_device_narrower(device)))
			break;
		chunk = pick(device, bytes, gfp, plan);
	}
	return chunk;
}

static int gather_run(struct list_head *chunks, const struct iobmd_plan *plan,
		      const char **reason)
{
	struct iobmd_chunk *chunk;
	u64 left = plan->storage;

	/* CMA, where it exists, aligns to less, and serves sleepers only. */
	chunk = find_block(left, GFP_NOWAIT, plan);
	if (!chunk)
		chunk = find_block(left, GFP_KERNEL | __GFP_RETRY_MAYFAIL,
				   plan);
	if (chunk) {
		list_add(&chunk->link, chunks);
		return 0;
	}
	if (has_mask(plan))
		return iobmd_hunt(chunks, left, plan, reason);
	return iobmd_refuse(
		reason, -ENOMEM,
		"no physically contiguous block of that size and alignment is free");
}

/* Largest blocks first; a size that failed once is not tried again. */
static int gather_blocks(struct list_head *chunks,
			 const struct iobmd_plan *plan, const char **reason)
{
	u64 longest = iobmd_longest_run(plan->mask);
	u64 largest = longest ? min(longest, IOBMD_BLOCK_MAX) : IOBMD_BLOCK_MAX;
	u64 left = plan->storage;

	while (left) {
		u64 bytes = min(largest, left);
		struct iobmd_chunk *chunk;
		gfp_t how_hard;

		if (fatal_signal_pending(current))
			return iobmd_refuse(reason, -EINTR,
					    "the caller is being killed");
		how_hard = bytes > PAGE_SIZE ? __GFP_NORETRY :
					       __GFP_RETRY_MAYFAIL;
		chunk = find_block(bytes, GFP_KERNEL | how_hard, plan);
		if (chunk) {
			list_add_tail(&chunk->link, chunks);
			left -= bytes;
			cond_resched();
			continue;
		}
		if (bytes > PAGE_SIZE)
			largest = rounddown_pow_of_two(bytes - 1);
		else if (has_mask(plan))
			return iobmd_hunt(chunks, left, plan, reason);
		else
			return iobmd_refuse(reason, -ENOMEM,
					    "the machine's memory is used up");
	}
	return 0;
}

static int gather_scattered(struct list_head *chunks,
			    const struct iobmd_plan *plan, const char **reason)
{
	u64 longest = iobmd_longest_run(plan->mask);
	LIST_HEAD(spared);
	int error;

	if (longest && longest < IOBMD_BLOCK_MAX)
		set_aside(&spared);
	error = gather_blocks(chunks, plan, reason);
	give_back(&spared);
	return error;
}

/**
 * iobmd_gather - allocate what a plan asks for
 * @chunks: the blocks are added here, in order, zeroed and write-back
 * @plan: the plan of a wired buffer
 * @reason: on failure a sentence for a person, static
 *
 * May sleep.
 *
 * Return: 0, or a negative errno with whatever was found still in @chunks.
 */
int iobmd_gather(struct list_head *chunks, const struct iobmd_plan *plan,
		 const char **reason)
{
	int error;

	if (mutex_lock_killable(&allocating))
		return iobmd_refuse(reason, -EINTR,
				    "the caller is being killed");
	if (!room_for(plan->storage))
		error = iobmd_refuse(
			reason, -ENOMEM,
			"the machine has not that much memory left");
	else if (plan->contiguous)
		error = gather_run(chunks, plan, reason);
	else
		error = gather_scattered(chunks, plan, reason);
	mutex_unlock(&allocating);
	return error;
}
