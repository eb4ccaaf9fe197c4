/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A buffer's memory, wired or pageable, and every mapping of it.
 *
 * Locks: a descriptor's lock, then mmap_lock, then iobmd_memory.lock, then page
 * locks.  User memory is touched under the first, never under the third: a
 * fault may need the third.
 */
#ifndef IOBMD_MEMORY_H
#define IOBMD_MEMORY_H

#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/types.h>

#include "iobmd_abi.h"
#include "iobmd_pageable.h"
#include "iobmd_placement.h"
#include "iobmd_storage.h"
#include "iobmd_kmap.h"

/**
 * struct iobmd_memory - memory
 * @lock: protects what changes
 * @is_pageable: @pageable is valid, else @backing
 * @backing: wired storage
 * @pageable: pageable storage
 * @space: address space of user mappings; for wired storage made with the first
 * @page_count: pages
 * @type: memory type of every mapping
 * @wired: reasons to hold every page, besides @own: prepare(), kernel mappings
 * @areas: user-space areas (VMAs) that show it
 * @windows: kernel mappings besides the storage's own
 * @own: where pageable storage is in the kernel's address space, or NULL
 * @own_is_live: @own shows the pages, not @blank
 * @blank: what @own shows while the contents are purged
 * @purgeable: made with kIOMemoryPurgeable
 * @state: enum iobmd_purgeable_state
 * @volatile_link: on the list of what may be purged
 */
struct iobmd_memory {
	struct mutex lock;
	bool is_pageable;
	struct iobmd_backing backing;
	struct iobmd_pageable pageable;
	struct file *space;
	unsigned long page_count;
	enum iobmd_memory_type type;
	unsigned int wired;
	unsigned int areas;
	struct list_head windows;
	struct iobmd_kmap *own;
	bool own_is_live;
	struct page *blank;
	bool purgeable;
	u32 state;
	struct list_head volatile_link;
};

int iobmd_memory_create(struct iobmd_memory *memory,
			const struct iobmd_plan *plan, u32 options,
			const char **reason);
void iobmd_memory_destroy(struct iobmd_memory *memory);

int iobmd_memory_wire(struct iobmd_memory *memory);
void iobmd_memory_unwire(struct iobmd_memory *memory);
void iobmd_memory_settle(struct iobmd_memory *memory);
int iobmd_memory_set_type(struct iobmd_memory *memory,
			  enum iobmd_memory_type type, const char **reason);
int iobmd_memory_open_space(struct iobmd_memory *memory);
vm_fault_t iobmd_memory_fault(struct iobmd_memory *memory, unsigned long index,
			      struct vm_fault *vmf);

int iobmd_memory_map(struct iobmd_memory *memory, struct iobmd_kmap *window,
		     unsigned long guard);
void iobmd_memory_unmap(struct iobmd_memory *memory, struct iobmd_kmap *window);
int iobmd_memory_open_own(struct iobmd_memory *memory);
int iobmd_memory_revive(struct iobmd_memory *memory);
bool iobmd_memory_purge(struct iobmd_memory *memory);

void *iobmd_memory_get(struct iobmd_memory *memory, u64 offset, u64 *length,
		       struct page **page);
void iobmd_memory_put(struct iobmd_memory *memory, struct page *page,
		      bool written);
u64 iobmd_memory_segment(const struct iobmd_memory *memory, u64 offset,
			 u64 limit, u64 *length);
void *iobmd_memory_address(const struct iobmd_memory *memory);
enum iobmd_memory_type iobmd_memory_type(struct iobmd_memory *memory);

#endif /* IOBMD_MEMORY_H */
