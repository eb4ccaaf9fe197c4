// SPDX-License-Identifier: GPL-2.0
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/shrinker.h>
#include <linux/spinlock.h>

#include "compat.h"
#include "iobmd_purgeable.h"

/*
 * Memory whose contents may go, the least recently released first.  Taken
 * inside iobmd_memory.lock, except by the shrinker, which only tries that one.
 */
static DEFINE_SPINLOCK(volatile_lock);
static LIST_HEAD(volatile_list);
static unsigned long volatile_pages;

/* Held by the shrinker while it has memory in its hands. */
static DEFINE_MUTEX(shrinking);

static void unlist(struct iobmd_memory *memory)
{
	spin_lock(&volatile_lock);
	if (!list_empty(&memory->volatile_link)) {
		list_del_init(&memory->volatile_link);
		volatile_pages -= memory->page_count;
	}
	spin_unlock(&volatile_lock);
}

static void enlist(struct iobmd_memory *memory)
{
	unlist(memory);
	spin_lock(&volatile_lock);
	list_add_tail(&memory->volatile_link, &volatile_list);
	volatile_pages += memory->page_count;
	spin_unlock(&volatile_lock);
}

/**
 * iobmd_purgeable_forget - the memory is about to go
 * @memory: the memory
 */
void iobmd_purgeable_forget(struct iobmd_memory *memory)
{
	mutex_lock(&shrinking);
	unlist(memory);
	mutex_unlock(&shrinking);
}

static u32 set_state(struct iobmd_memory *memory, u32 state)
{
	switch (state) {
	case kIOMemoryPurgeableNonVolatile:
		unlist(memory);
		if (iobmd_memory_revive(memory))
			return kIOReturnNoMemory;
		memory->state = kIOMemoryPurgeableNonVolatile;
		break;
	case kIOMemoryPurgeableVolatile:
		if (memory->state == kIOMemoryPurgeableEmpty)
			break;
		memory->state = kIOMemoryPurgeableVolatile;
		enlist(memory);
		break;
	case kIOMemoryPurgeableEmpty:
		unlist(memory);
		iobmd_memory_purge(memory);
		memory->state = kIOMemoryPurgeableEmpty;
		break;
	}
	return kIOReturnSuccess;
}

/**
 * iobmd_purgeable_set - setPurgeable() on pageable memory
 * @memory: the memory
 * @state: enum iobmd_purgeable_state, one of the four
 * @old_state: set to the state before, in the same step
 *
 * Return: enum iobmd_return.
 */
u32 iobmd_purgeable_set(struct iobmd_memory *memory, u32 state, u32 *old_state)
{
	u32 code = KERN_INVALID_ARGUMENT;

	mutex_lock(&memory->lock);
	*old_state = memory->state;
	if (memory->purgeable)
		code = set_state(memory, state);
	mutex_unlock(&memory->lock);
	return code;
}

static unsigned long count_volatile(struct shrinker *shrinker,
				    struct shrink_control *control)
{
	return READ_ONCE(volatile_pages);
}

/* Taken off the list and locked; NULL if every one is in use. */
static struct iobmd_memory *take_one(void)
{
	struct iobmd_memory *memory;

	spin_lock(&volatile_lock);
	list_for_each_entry(memory, &volatile_list, volatile_link) {
		if (!mutex_trylock(&memory->lock))
			continue;
		list_del_init(&memory->volatile_link);
		volatile_pages -= memory->page_count;
		spin_unlock(&volatile_lock);
		return memory;
	}
	spin_unlock(&volatile_lock);
	return NULL;
}

/* Reclaim waits for nothing: what is in use at the moment is left alone. */
static bool try_to_purge(struct iobmd_memory *memory)
{
	if (!iobmd_pageable_is_idle(&memory->pageable) ||
	    !iobmd_memory_purge(memory))
		return false;
	memory->state = kIOMemoryPurgeableEmpty;
	return true;
}

static unsigned long purge_some(unsigned long wanted)
{
	unsigned long freed = 0;

	while (freed < wanted) {
		struct iobmd_memory *memory = take_one();
		bool purged;

		if (!memory)
			break;
		purged = try_to_purge(memory);
		if (purged)
			freed += memory->page_count;
		else
			enlist(memory);
		mutex_unlock(&memory->lock);
		/* It is back at the end of the list: the next scan's. */
		if (!purged)
			break;
	}
	return freed;
}

static unsigned long scan_volatile(struct shrinker *shrinker,
				   struct shrink_control *control)
{
	unsigned long freed;

	if (!mutex_trylock(&shrinking))
		return SHRINK_STOP;
	freed = purge_some(control->nr_to_scan);
	mutex_unlock(&shrinking);
	return freed ? freed : SHRINK_STOP;
}

static struct iobmd_shrinker shrinker;

/**
 * iobmd_purgeable_init - offer volatile memory to reclaim
 *
 * Return: 0, or a negative errno.
 */
int iobmd_purgeable_init(void)
{
	return iobmd_shrinker_register(&shrinker, "iobmd", count_volatile,
				       scan_volatile);
}

/** iobmd_purgeable_exit - undo iobmd_purgeable_init() */
void iobmd_purgeable_exit(void)
{
	iobmd_shrinker_unregister(&shrinker);
}
