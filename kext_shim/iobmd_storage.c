// SPDX-License-Identifier: GPL-2.0
#include <linux/io.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "iobmd_chunk.h"
#include "iobmd_device.h"
#include "iobmd_memtype.h"
#include "iobmd_storage.h"

/*
 * Memory is given away one buffer at a time, so that the check for room and
 * the allocation it vouches for are not separated.
 */
static DEFINE_MUTEX(allocating);

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
		.run = IS_ENABLED(CONFIG_DMA_CMA) ? memory : IOBMD_BLOCK_MAX,
		.wired = max_t(u64, 2ull * SZ_1G, memory / 64),
	};
}

/*
 * The OOM killer would end the agent rather than refuse the buffer: leave
 * what page tables, the page array and the rest of the machine need.
 */
static bool room_for(u64 storage)
{
	u64 reserve = SZ_16M + storage / 64;

	return si_mem_available() > (long)((storage + reserve) >> PAGE_SHIFT);
}

static void add_chunk(struct iobmd_backing *backing, struct iobmd_chunk *chunk)
{
	struct page *page = virt_to_page(chunk->address);
	unsigned long left = chunk->bytes >> PAGE_SHIFT;

	list_add_tail(&chunk->link, &backing->chunks);
	backing->chunk_count++;
	while (left--)
		backing->pages[backing->page_count++] = page++;
}

static int allocate_run(struct iobmd_backing *backing,
			const struct iobmd_plan *plan, struct device *device,
			const char **reason)
{
	struct iobmd_chunk *chunk;

	/* CMA, where it exists, aligns to less, and serves sleepers only. */
	chunk = iobmd_chunk_alloc(device, plan->storage, GFP_NOWAIT);
	if (!chunk)
		chunk = iobmd_chunk_alloc(device, plan->storage,
					  GFP_KERNEL | __GFP_RETRY_MAYFAIL);
	if (!chunk)
		return iobmd_refuse(
			reason, -ENOMEM,
			"no physically contiguous block of that size is free");
	add_chunk(backing, chunk);
	if (!IS_ALIGNED(virt_to_phys(chunk->address), plan->alignment) ||
	    !IS_ALIGNED((unsigned long)chunk->address, plan->alignment))
		return iobmd_refuse(
			reason, -ENOMEM,
			"the physically contiguous block is not aligned as asked");
	return 0;
}

/* Largest blocks first; a size that failed once is not tried again. */
static int allocate_chunks(struct iobmd_backing *backing,
			   const struct iobmd_plan *plan, struct device *device,
			   const char **reason)
{
	u64 largest = IOBMD_BLOCK_MAX;
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
		chunk = iobmd_chunk_alloc(device, bytes, GFP_KERNEL | how_hard);
		if (!chunk && bytes == PAGE_SIZE)
			return iobmd_refuse(reason, -ENOMEM,
					    "the machine's memory is used up");
		if (!chunk) {
			largest = rounddown_pow_of_two(bytes - 1);
			continue;
		}
		add_chunk(backing, chunk);
		left -= bytes;
		cond_resched();
	}
	return 0;
}

static int allocate(struct iobmd_backing *backing,
		    const struct iobmd_plan *plan, const char **reason)
{
	struct device *device = iobmd_device_for(plan->address_bits);

	if (!room_for(plan->storage))
		return iobmd_refuse(
			reason, -ENOMEM,
			"the machine has not that much memory left");
	backing->pages = kvmalloc_array(plan->storage >> PAGE_SHIFT,
					sizeof(*backing->pages),
					GFP_KERNEL | __GFP_NOWARN);
	if (!backing->pages)
		return iobmd_refuse(reason, -ENOMEM,
				    "no memory for the list of pages");
	if (plan->contiguous)
		return allocate_run(backing, plan, device, reason);
	return allocate_chunks(backing, plan, device, reason);
}

/* The blocks first and the window last, so that no two aliases disagree. */
static int set_types(struct iobmd_backing *backing, enum iobmd_memory_type type,
		     const char **reason)
{
	struct iobmd_chunk *chunk;

	list_for_each_entry(chunk, &backing->chunks, link) {
		int error;

		if (fatal_signal_pending(current))
			return iobmd_refuse(reason, -EINTR,
					    "the caller is being killed");
		error = iobmd_chunk_set_type(chunk, type);
		if (error)
			return iobmd_refuse(
				reason, error,
				"the kernel did not give the pages the memory type of the cache mode");
		cond_resched();
	}
	return 0;
}

static int open_window(struct iobmd_backing *backing,
		       enum iobmd_memory_type type, const char **reason)
{
	backing->window = vmap(backing->pages, backing->page_count, VM_MAP,
			       iobmd_memtype_pgprot(type));
	if (!backing->window)
		return iobmd_refuse(reason, -ENOMEM,
				    "no kernel mapping for the buffer");
	backing->address = backing->window;
	if (iobmd_backing_type(backing) != type)
		return iobmd_refuse(
			reason, -EIO,
			"the buffer's kernel mapping did not get the memory type of the cache mode");
	return 0;
}

static int create(struct iobmd_backing *backing, const struct iobmd_plan *plan,
		  const char **reason)
{
	const struct iobmd_chunk *only;
	int error;

	if (mutex_lock_killable(&allocating))
		return iobmd_refuse(reason, -EINTR,
				    "the caller is being killed");
	error = allocate(backing, plan, reason);
	mutex_unlock(&allocating);
	if (error)
		return error;
	error = set_types(backing, plan->type, reason);
	if (error)
		return error;
	if (backing->chunk_count > 1)
		return open_window(backing, plan->type, reason);
	only = list_first_entry(&backing->chunks, struct iobmd_chunk, link);
	backing->address = only->address;
	return 0;
}

/**
 * iobmd_backing_create - make storage
 * @backing: filled in
 * @plan: what it has to be like
 * @reason: on failure a sentence for a person, static
 *
 * Every byte of it reads as zero, every mapping of it has the planned type.
 * May sleep.
 *
 * Return: 0, or a negative errno with nothing left behind.
 */
int iobmd_backing_create(struct iobmd_backing *backing,
			 const struct iobmd_plan *plan, const char **reason)
{
	int error;

	*backing = (struct iobmd_backing){
		.chunks = LIST_HEAD_INIT(backing->chunks),
	};
	if (!(iobmd_memtype_available() & BIT(plan->type)))
		return iobmd_refuse(
			reason, -EOPNOTSUPP,
			"this machine's PAT has no entry for the memory type of the cache mode");
	error = create(backing, plan, reason);
	if (error)
		iobmd_backing_destroy(backing);
	return error;
}

/**
 * iobmd_backing_destroy - give everything back, write-back again
 * @backing: what iobmd_backing_create() made
 */
void iobmd_backing_destroy(struct iobmd_backing *backing)
{
	struct iobmd_chunk *chunk, *next;

	if (backing->window)
		vunmap(backing->window);
	list_for_each_entry_safe(chunk, next, &backing->chunks, link) {
		list_del(&chunk->link);
		iobmd_chunk_free(chunk);
		cond_resched();
	}
	kvfree(backing->pages);
}

/**
 * iobmd_backing_type - the memory type of every mapping of the storage
 * @backing: the storage
 *
 * Return: the type the page tables have, IOBMD_TYPE_OTHER if they disagree.
 */
enum iobmd_memory_type iobmd_backing_type(const struct iobmd_backing *backing)
{
	enum iobmd_memory_type type = IOBMD_TYPE_OTHER;
	const struct iobmd_chunk *chunk;

	list_for_each_entry(chunk, &backing->chunks, link) {
		enum iobmd_memory_type own = iobmd_chunk_type(chunk);

		if (type == IOBMD_TYPE_OTHER)
			type = own;
		if (own != type || own == IOBMD_TYPE_OTHER)
			return IOBMD_TYPE_OTHER;
	}
	if (backing->window &&
	    iobmd_memtype_of(backing->window,
			     (u64)backing->page_count << PAGE_SHIFT) != type)
		return IOBMD_TYPE_OTHER;
	return type;
}

static bool follows(struct page *page, struct page *next)
{
	return page_to_pfn(next) == page_to_pfn(page) + 1;
}

/**
 * iobmd_backing_segment - the physical run that starts at an offset
 * @backing: the storage
 * @offset: bytes, below @limit
 * @limit: bytes, where the run ends at the latest; at most the storage
 * @length: set to the bytes in the run
 *
 * Adjacent pages are one run, whichever blocks they came from.
 *
 * Return: the physical address of the byte at @offset.
 */
u64 iobmd_backing_segment(const struct iobmd_backing *backing, u64 offset,
			  u64 limit, u64 *length)
{
	unsigned long first = offset >> PAGE_SHIFT;
	unsigned long last = (limit - 1) >> PAGE_SHIFT;
	unsigned long end = first;
	u64 run_end;

	while (end < last &&
	       follows(backing->pages[end], backing->pages[end + 1]))
		end++;
	run_end = min((u64)(end + 1) << PAGE_SHIFT, limit);
	*length = run_end - offset;
	return page_to_phys(backing->pages[first]) + offset_in_page(offset);
}
