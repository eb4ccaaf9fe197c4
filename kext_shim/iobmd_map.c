// SPDX-License-Identifier: GPL-2.0
#include <linux/err.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "iobmd_area.h"
#include "iobmd_descriptor.h"
#include "iobmd_map.h"
#include "iobmd_placement.h"

static bool is_read_only(u32 options)
{
	return options & kIOMapReadOnly;
}

static unsigned long guard_pages(u32 options)
{
	switch (options & kIOMapGuardedMask) {
	case 0:
		return 0;
	case kIOMapGuardedSmall:
		return 1;
	default:
		return IOBMD_MARGIN;
	}
}

/* Bytes in front of the buffer in its first page. */
static unsigned int start_of(const struct iobmd_memory *memory)
{
	return memory->is_pageable ? 0 : memory->backing.start;
}

/**
 * iobmd_map_new - a mapping with one owner that is mapped nowhere yet
 * @descriptor: what it maps; the caller holds its lock
 * @request: the arguments
 *
 * Return: the mapping, or NULL without memory.
 */
struct iobmd_map *iobmd_map_new(struct iobmd_descriptor *descriptor,
				const struct iobmd_map_request *request)
{
	u64 at = start_of(&descriptor->memory) + request->offset;
	struct iobmd_map *map = kzalloc(sizeof(*map), GFP_KERNEL);

	if (!map)
		return NULL;
	kref_init(&map->refs);
	iobmd_descriptor_get(descriptor);
	map->descriptor = descriptor;
	map->owners = 1;
	map->task = request->task;
	map->options = request->options;
	map->offset = request->offset;
	map->length = request->length;
	map->first = at >> PAGE_SHIFT;
	map->count =
		((at + request->length - 1) >> PAGE_SHIFT) - map->first + 1;
	map->in_page = offset_in_page(at);
	map->guard = guard_pages(request->options);
	map->writable = !is_read_only(request->options);
	map->mm = iobmd_map_mm(request->task);
	if (map->mm)
		mmgrab(map->mm);
	INIT_LIST_HEAD(&map->range);
	list_add_tail(&map->link, &descriptor->maps);
	return map;
}

static void destroy(struct kref *refs)
{
	struct iobmd_map *map = container_of(refs, struct iobmd_map, refs);

	if (map->mm)
		mmdrop(map->mm);
	iobmd_descriptor_put(map->descriptor);
	if (map->source)
		fput(map->source);
	kfree(map);
}

/**
 * iobmd_map_get - one more area shows the mapping
 * @map: the mapping
 */
void iobmd_map_get(struct iobmd_map *map)
{
	kref_get(&map->refs);
}

/**
 * iobmd_map_put - undo iobmd_map_get()
 * @map: the mapping
 */
void iobmd_map_put(struct iobmd_map *map)
{
	kref_put(&map->refs, destroy);
}

/* It has no owner any more, and with the last area it is gone. */
static void close_map(struct iobmd_map *map)
{
	struct iobmd_memory *memory = &map->descriptor->memory;

	mutex_lock(&memory->lock);
	map->closed = true;
	mutex_unlock(&memory->lock);
	if (map->super)
		iobmd_map_release(map->super);
	else if (map->window.base)
		iobmd_memory_unmap(memory, &map->window);
	else if (map->mm)
		iobmd_area_destroy(map);
	iobmd_map_put(map);
}

/**
 * iobmd_map_release - one owner less; the last one unmaps
 * @map: the mapping
 */
void iobmd_map_release(struct iobmd_map *map)
{
	struct iobmd_descriptor *descriptor = map->descriptor;
	bool last;

	mutex_lock(&descriptor->lock);
	last = !--map->owners;
	if (last)
		list_del(&map->link);
	mutex_unlock(&descriptor->lock);
	if (last)
		close_map(map);
}

/**
 * iobmd_map_abandon - undo iobmd_map_new()
 * @map: the mapping; the caller holds the descriptor's lock
 */
void iobmd_map_abandon(struct iobmd_map *map)
{
	list_del(&map->link);
	iobmd_map_put(map);
}

static int map_into_kernel(struct iobmd_map *map, const char **reason)
{
	int error;

	if (!(map->options & kIOMapAnywhere))
		return iobmd_refuse(
			reason, -EADDRNOTAVAIL,
			"the kernel's own address space has no place to choose");
	map->window = (struct iobmd_kmap){
		.first = map->first,
		.count = map->count,
		.writable = map->writable,
	};
	error = iobmd_memory_map(&map->descriptor->memory, &map->window,
				 map->guard);
	if (error)
		return iobmd_refuse(reason, error,
				    "no kernel mapping for the buffer");
	map->address = (unsigned long)map->window.address + map->in_page;
	return 0;
}

static int map_into_process(struct iobmd_map *map, u64 address,
			    const char **reason)
{
	struct iobmd_memory *memory = &map->descriptor->memory;
	bool fixed = !(map->options & kIOMapAnywhere);
	unsigned long base;
	int error;

	if (fixed && offset_in_page(address) != map->in_page)
		return iobmd_refuse(
			reason, -EINVAL,
			"address and offset differ in their place in a page");
	error = iobmd_memory_open_space(memory);
	if (error)
		return iobmd_refuse(reason, error,
				    "no address space for user mappings");
	base = iobmd_area_create(map, address & PAGE_MASK, fixed,
				 map->options & kIOMapOverwrite);
	if (IS_ERR_VALUE(base))
		return iobmd_refuse(
			reason, (int)base,
			"the process cannot have the mapping at that address");
	map->address = base + map->in_page;
	return 0;
}

/**
 * iobmd_map_open - give a new mapping an address of its own
 * @map: from iobmd_map_new(); the caller holds the descriptor's lock
 * @address: where to, without kIOMapAnywhere
 * @reason: on failure a sentence for a person, static
 *
 * Return: 0, or a negative errno.
 */
int iobmd_map_open(struct iobmd_map *map, u64 address, const char **reason)
{
	return map->task == IOBMD_TASK_KERNEL ?
		       map_into_kernel(map, reason) :
		       map_into_process(map, address, reason);
}

/**
 * iobmd_map_release_ranges - the descriptor's own mappings lose it as an owner
 * @descriptor: self, being released
 */
void iobmd_map_release_ranges(struct iobmd_descriptor *descriptor)
{
	struct iobmd_map *map, *next;
	LIST_HEAD(ranges);

	mutex_lock(&descriptor->lock);
	list_splice_init(&descriptor->ranges, &ranges);
	mutex_unlock(&descriptor->lock);
	list_for_each_entry_safe(map, next, &ranges, range) {
		list_del_init(&map->range);
		iobmd_map_release(map);
	}
}

/**
 * iobmd_map_count - how many mappings have an owner besides the descriptor
 * @descriptor: self
 */
u32 iobmd_map_count(struct iobmd_descriptor *descriptor)
{
	struct iobmd_map *map;
	u32 count = 0;

	mutex_lock(&descriptor->lock);
	list_for_each_entry(map, &descriptor->maps, link)
		count += list_empty(&map->range);
	mutex_unlock(&descriptor->lock);
	return count;
}
