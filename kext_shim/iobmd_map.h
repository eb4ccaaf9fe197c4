/* SPDX-License-Identifier: GPL-2.0 */
/* IOMemoryMap: a buffer, or a part of one, in a task's address space. */
#ifndef IOBMD_MAP_H
#define IOBMD_MAP_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm_types.h>
#include <linux/sched.h>
#include <linux/types.h>

#include "iobmd_abi.h"
#include "iobmd_kmap.h"

struct iobmd_descriptor;
struct file;

/**
 * struct iobmd_map - a mapping
 * @refs: one while @owners is not 0, and one per VMA
 * @descriptor: what is mapped; kept alive
 * @link: on the descriptor's list while @owners is not 0
 * @range: on the descriptor's list of mappings it owns itself
 * @owners: handles, and mappings that are part of this one
 * @super: the mapping this one is a part of, or NULL
 * @task: enum iobmd_task
 * @options: what it was asked for with
 * @offset: bytes into the buffer
 * @length: bytes
 * @address: of the first byte, in the task
 * @mm: whose user-space address that is; only ever compared
 * @window: the kernel mapping, if @task is the kernel and it has one
 * @source: holds the module, for areas that outlive every handle; or NULL
 * @in_page: bytes from the start of the first page to @address
 * @first: index of the first page in the buffer
 * @count: pages
 * @guard: pages that fault in front, and as many behind
 * @areas: VMAs that show it
 * @own: aliases the address the buffer lives at
 * @writable: writes do not fault
 * @closed: @owners has become 0: what processes still have of it is dead
 *
 * The descriptor's lock protects @link, @range and @owners, the memory's lock
 * @areas and @closed; the rest is constant.
 */
struct iobmd_map {
	struct kref refs;
	struct iobmd_descriptor *descriptor;
	struct list_head link;
	struct list_head range;
	unsigned int owners;
	struct iobmd_map *super;
	u32 task;
	u32 options;
	u64 offset;
	u64 length;
	u64 address;
	struct mm_struct *mm;
	struct iobmd_kmap window;
	struct file *source;
	unsigned int in_page;
	unsigned long first;
	unsigned long count;
	unsigned long guard;
	unsigned int areas;
	bool own;
	bool writable;
	bool closed;
};

/**
 * struct iobmd_map_request - what createMappingInTask() is asked for
 * @task: enum iobmd_task
 * @options: enum iobmd_map_option and a cache mode
 * @address: bytes, without kIOMapAnywhere
 * @offset: bytes
 * @length: bytes, not 0
 */
struct iobmd_map_request {
	u32 task;
	u32 options;
	u64 address;
	u64 offset;
	u64 length;
};

/* Whose user-space addresses a mapping into @task has. */
static inline struct mm_struct *iobmd_map_mm(u32 task)
{
	return task == IOBMD_TASK_CURRENT ? current->mm : NULL;
}

struct iobmd_map *iobmd_map_new(struct iobmd_descriptor *descriptor,
				const struct iobmd_map_request *request);
int iobmd_map_open(struct iobmd_map *map, u64 address, const char **reason);
void iobmd_map_abandon(struct iobmd_map *map);
struct iobmd_map *iobmd_map_create(struct iobmd_descriptor *descriptor,
				   const struct iobmd_map_request *request,
				   const char **reason);
struct iobmd_map *iobmd_map_range(struct iobmd_descriptor *descriptor,
				  bool writable, const char **reason);
void iobmd_map_release_ranges(struct iobmd_descriptor *descriptor);
u64 iobmd_map_first_range(struct iobmd_descriptor *descriptor);
u32 iobmd_map_count(struct iobmd_descriptor *descriptor);
void iobmd_map_release(struct iobmd_map *map);
void iobmd_map_get(struct iobmd_map *map);
void iobmd_map_put(struct iobmd_map *map);

#endif /* IOBMD_MAP_H */
