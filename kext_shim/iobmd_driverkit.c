// SPDX-License-Identifier: GPL-2.0
#include <linux/err.h>
#include <linux/sched.h>

#include "iobmd_driverkit.h"
#include "iobmd_map.h"
#include "iobmd_placement.h"

/**
 * iobmd_driverkit_accepts - Create() takes a direction and nothing else
 * @call: the arguments
 */
bool iobmd_driverkit_accepts(const struct iobmd_create *call)
{
	return !(call->options & ~(u64)kIODirectionInOut);
}

/**
 * iobmd_create_code - what stands beside the object or NULL
 * @call: the arguments
 * @error: 0, or why it is NULL
 *
 * Return: enum iobmd_return; Create() knows one code for every NULL.
 */
u32 iobmd_create_code(const struct iobmd_create *call, int error)
{
	if (!error)
		return kIOReturnSuccess;
	return call->factory == IOBMD_DRIVERKIT_CREATE ? kIOReturnNoMemory :
							 kIOReturnError;
}

/**
 * iobmd_driverkit_set_length - SetLength()
 * @descriptor: self
 * @length: @length in, at most the capacity; @code out
 *
 * Return: 0, or -EINTR if killed while waiting.
 */
int iobmd_driverkit_set_length(struct iobmd_descriptor *descriptor,
			       struct iobmd_driverkit_length *length)
{
	bool accepted;
	int error;

	error = iobmd_set_length(descriptor, length->length, &accepted);
	length->code = accepted ? kIOReturnSuccess : kIOReturnBadArgument;
	return error;
}

/**
 * iobmd_driverkit_get_length - GetLength()
 * @descriptor: self
 * @length: @length and @code out
 *
 * Return: 0.
 */
int iobmd_driverkit_get_length(struct iobmd_descriptor *descriptor,
			       struct iobmd_driverkit_length *length)
{
	length->length = iobmd_get_length(descriptor);
	length->code = kIOReturnSuccess;
	return 0;
}

/* Memory the device only reads is the creator's alone to write. */
static bool may_write(const struct iobmd_descriptor *descriptor)
{
	return !iobmd_is_out_only(iobmd_get_direction(descriptor)) ||
	       descriptor->creator == task_tgid(current);
}

/**
 * iobmd_driverkit_get_range - GetAddressRange()
 * @descriptor: self
 * @range: @address, @length and @code out
 *
 * The first call in a process gives the buffer an address there.
 *
 * Return: 0.
 */
int iobmd_driverkit_get_range(struct iobmd_descriptor *descriptor,
			      struct iobmd_driverkit_range *range)
{
	struct iobmd_map *map;
	const char *reason;

	map = iobmd_map_range(descriptor, may_write(descriptor), &reason);
	*range = (struct iobmd_driverkit_range){
		.code = IS_ERR(map) ? kIOReturnNoMemory : kIOReturnSuccess,
	};
	if (IS_ERR(map))
		return 0;
	range->address = map->address;
	range->length = iobmd_get_length(descriptor);
	return 0;
}

/* Guards are the default, except where the caller chose the place. */
static u32 guard_option(u64 options)
{
	switch (options & kIOMemoryMapGuardedMask) {
	case kIOMemoryMapGuardedDefault:
		return options & kIOMemoryMapFixedAddress ? 0 :
							    kIOMapGuardedSmall;
	case kIOMemoryMapGuardedSmall:
		return kIOMapGuardedSmall;
	case kIOMemoryMapGuardedLarge:
		return kIOMapGuardedLarge;
	default:
		return 0;
	}
}

/* The same words as the kernel's, other numbers. */
static bool cache_option(u64 options, u32 *mode)
{
	switch (options & kIOMemoryMapCacheModeMask) {
	case kIOMemoryMapCacheModeDefault:
		*mode = kIODefaultCache << kIOMapCacheShift;
		return true;
	case kIOMemoryMapCacheModeInhibit:
		*mode = kIOInhibitCache << kIOMapCacheShift;
		return true;
	case kIOMemoryMapCacheModeCopyback:
		*mode = kIOCopybackCache << kIOMapCacheShift;
		return true;
	case kIOMemoryMapCacheModeWriteThrough:
		*mode = kIOWriteThruCache << kIOMapCacheShift;
		return true;
	case kIOMemoryMapCacheModeRealTime:
		*mode = kIORealTimeCache << kIOMapCacheShift;
		return true;
	default:
		return false;
	}
}

/**
 * iobmd_driverkit_create_mapping - CreateMapping()
 * @descriptor: self
 * @mapping: the arguments in; @code out
 * @reason: on failure a sentence for a person, static
 *
 * Return: the mapping, for iobmd_map_release(), or an ERR_PTR.
 */
struct iobmd_map *
iobmd_driverkit_create_mapping(struct iobmd_descriptor *descriptor,
			       struct iobmd_driverkit_mapping *mapping,
			       const char **reason)
{
	struct iobmd_map_request request = {
		.task = IOBMD_TASK_CURRENT,
		.options = guard_option(mapping->options),
		.address = mapping->address,
		.offset = mapping->offset,
		.length = mapping->length,
	};
	struct iobmd_map *map;
	u32 mode;

	if (!cache_option(mapping->options, &mode)) {
		mapping->code = kIOReturnBadArgument;
		*reason = "not one of DriverKit's cache modes";
		return ERR_PTR(-EINVAL);
	}
	request.options |= mode;
	if (!(mapping->options & kIOMemoryMapFixedAddress))
		request.options |= kIOMapAnywhere;
	if ((mapping->options & kIOMemoryMapReadOnly) || !may_write(descriptor))
		request.options |= kIOMapReadOnly;
	map = iobmd_map_create(descriptor, &request, reason);
	mapping->code = IS_ERR(map) ? kIOReturnError : kIOReturnSuccess;
	return map;
}
