// SPDX-License-Identifier: GPL-2.0
/* createMappingInTask(): a mapping that is there already, or a new one. */
#include <linux/err.h>
#include <linux/mm.h>

#include "iobmd_area.h"
#include "iobmd_descriptor.h"
#include "iobmd_map.h"
#include "iobmd_placement.h"

static struct iobmd_map *refuse(const char **reason, int error,
				const char *sentence)
{
	*reason = sentence;
	return ERR_PTR(error);
}

/* Where the calling process has the buffer by itself, or NULL. */
static struct iobmd_map *range_here(struct iobmd_descriptor *descriptor)
{
	struct iobmd_map *map;

	list_for_each_entry(map, &descriptor->ranges, range)
		if (map->mm == current->mm)
			return map;
	return NULL;
}

static bool lives_in(struct iobmd_descriptor *descriptor, u32 task)
{
	if (task == IOBMD_TASK_KERNEL)
		return iobmd_memory_address(&descriptor->memory);
	return range_here(descriptor);
}

/*
 * What lives in the task already is not mapped there again: neither its type
 * nor its protection changes.
 */
static bool is_own(struct iobmd_descriptor *descriptor,
		   const struct iobmd_map_request *request)
{
	return (request->options & kIOMapAnywhere) &&
	       !(request->options & (kIOMapUnique | kIOMapGuardedMask)) &&
	       !request->offset && lives_in(descriptor, request->task);
}

static void share(struct iobmd_map *map, struct iobmd_map *super)
{
	super->owners++;
	map->super = super;
	map->writable = super->writable;
	map->address = super->address + (map->offset - super->offset);
}

static void map_own(struct iobmd_map *map)
{
	struct iobmd_memory *memory = &map->descriptor->memory;

	map->own = true;
	map->writable = true;
	if (map->task == IOBMD_TASK_KERNEL)
		map->address = (unsigned long)iobmd_memory_address(memory);
	else
		share(map, range_here(map->descriptor));
}

/* A default cache mode goes with any other. */
static bool agree_on_mode(u32 wanted, u32 had)
{
	u32 mode = wanted & kIOMapCacheMask;

	return !mode || mode == (had & kIOMapCacheMask);
}

static bool is_compatible(const struct iobmd_map *map,
			  const struct iobmd_map_request *request)
{
	const u32 same = kIOMapReadOnly | kIOMapGuardedMask;
	u64 at = map->address + (request->offset - map->offset);

	return !map->super && !map->own && map->task == request->task &&
	       map->mm == iobmd_map_mm(request->task) &&
	       (!map->mm || map->areas) &&
	       !((map->options ^ request->options) & same) &&
	       agree_on_mode(request->options, map->options) &&
	       request->offset >= map->offset &&
	       request->offset + request->length <= map->offset + map->length &&
	       ((request->options & kIOMapAnywhere) || request->address == at);
}

static struct iobmd_map *
find_compatible(struct iobmd_descriptor *descriptor,
		const struct iobmd_map_request *request)
{
	struct iobmd_map *map;

	if (request->options & kIOMapUnique)
		return NULL;
	list_for_each_entry(map, &descriptor->maps, link)
		if (is_compatible(map, request))
			return map;
	return NULL;
}

/* An explicit mode is for all mappings, those that exist included. */
static int adopt_mode(struct iobmd_descriptor *descriptor, u32 options,
		      const char **reason)
{
	if (!(options & kIOMapCacheMask))
		return 0;
	return iobmd_memory_set_type(&descriptor->memory,
				     iobmd_type_of_map(options), reason);
}

static struct iobmd_map *create(struct iobmd_descriptor *descriptor,
				const struct iobmd_map_request *request,
				const char **reason)
{
	struct iobmd_map *super, *map;
	bool own = is_own(descriptor, request);
	int error = 0;

	super = own ? NULL : find_compatible(descriptor, request);
	if (!own)
		error = adopt_mode(descriptor, request->options, reason);
	if (error)
		return ERR_PTR(error);
	map = iobmd_map_new(descriptor, request);
	if (!map)
		return refuse(reason, -ENOMEM, "no memory for the mapping");
	if (own)
		map_own(map);
	else if (super)
		share(map, super);
	else
		error = iobmd_map_open(map, request->address, reason);
	if (error) {
		iobmd_map_abandon(map);
		return ERR_PTR(error);
	}
	if (map->mm && (request->options & kIOMapPrefault))
		iobmd_area_populate(map);
	return map;
}

static bool is_inside(const struct iobmd_descriptor *descriptor,
		      const struct iobmd_map_request *request)
{
	return request->length && request->offset < descriptor->length &&
	       request->length <= descriptor->length - request->offset;
}

static struct iobmd_map *check_and_create(struct iobmd_descriptor *descriptor,
					  struct iobmd_map_request *request,
					  const char **reason)
{
	if (!request->length)
		request->length = descriptor->length;
	if (!is_inside(descriptor, request))
		return refuse(
			reason, -EINVAL,
			"offset and length leave the descriptor's current length");
	if ((request->options & kIOMapPrefault) && !descriptor->prepared)
		return refuse(reason, -EINVAL,
			      "kIOMapPrefault needs a prepared buffer");
	return create(descriptor, request, reason);
}

/**
 * iobmd_map_create - createMappingInTask()
 * @descriptor: self
 * @request: the arguments; a @length of 0 is the whole current length, with
 *	whichever @offset
 * @reason: on failure a sentence for a person, static
 *
 * Return: the mapping, for iobmd_map_release(), or an ERR_PTR.
 */
struct iobmd_map *iobmd_map_create(struct iobmd_descriptor *descriptor,
				   const struct iobmd_map_request *request,
				   const char **reason)
{
	struct iobmd_map_request checked = *request;
	struct iobmd_map *map;

	if (request->task != IOBMD_TASK_KERNEL &&
	    request->task != IOBMD_TASK_CURRENT)
		return refuse(reason, -EINVAL, "no task to map into");
	if (mutex_lock_killable(&descriptor->lock))
		return refuse(reason, -EINTR, "the caller is being killed");
	map = check_and_create(descriptor, &checked, reason);
	mutex_unlock(&descriptor->lock);
	return map;
}

/**
 * iobmd_map_range - have the descriptor itself live in the calling process
 * @descriptor: self
 * @writable: writes do not fault
 * @reason: on failure a sentence for a person, static
 *
 * All of the capacity, whatever the length.  The descriptor owns the mapping
 * until it is released; a second call finds the first one's.
 *
 * Return: the mapping, or an ERR_PTR.
 */
struct iobmd_map *iobmd_map_range(struct iobmd_descriptor *descriptor,
				  bool writable, const char **reason)
{
	const struct iobmd_map_request request = {
		.task = IOBMD_TASK_CURRENT,
		.options = kIOMapAnywhere | (writable ? 0 : kIOMapReadOnly),
		.length = descriptor->capacity,
	};
	struct iobmd_map *map;
	int error;

	if (mutex_lock_killable(&descriptor->lock))
		return refuse(reason, -EINTR, "the caller is being killed");
	map = range_here(descriptor);
	if (map)
		goto out;
	map = iobmd_map_new(descriptor, &request);
	if (!map) {
		map = refuse(reason, -ENOMEM, "no memory for the mapping");
		goto out;
	}
	map->own = true;
	error = iobmd_map_open(map, 0, reason);
	if (error) {
		iobmd_map_abandon(map);
		map = ERR_PTR(error);
	} else {
		list_add_tail(&map->range, &descriptor->ranges);
	}
out:
	mutex_unlock(&descriptor->lock);
	return map;
}

/**
 * iobmd_map_first_range - where the descriptor lives in the process it is in
 * @descriptor: self
 *
 * Return: the address of its first byte there, or 0.
 */
u64 iobmd_map_first_range(struct iobmd_descriptor *descriptor)
{
	struct iobmd_map *map;
	u64 address;

	mutex_lock(&descriptor->lock);
	map = list_first_entry_or_null(&descriptor->ranges, struct iobmd_map,
				       range);
	address = map ? map->address : 0;
	mutex_unlock(&descriptor->lock);
	return address;
}
