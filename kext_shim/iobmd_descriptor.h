/* SPDX-License-Identifier: GPL-2.0 */
/* IOBufferMemoryDescriptor: its life, its simple methods. */
#ifndef IOBMD_DESCRIPTOR_H
#define IOBMD_DESCRIPTOR_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/types.h>

#include "iobmd_abi.h"
#include "iobmd_memory.h"

struct iobmd_map;

/**
 * struct iobmd_descriptor - one IOBufferMemoryDescriptor
 * @refs: its handle, and one per mapping
 * @lock: held by a transfer, and to change anything below it here
 * @length: bytes in use
 * @refused_lengths: setLength() calls beyond @capacity
 * @direction: the current IODirection
 * @prepared: prepare() calls not yet completed; wired buffers are born with one
 * @read_only: the driver's copies must not write
 * @maps: mappings that have an owner
 * @ranges: mappings the descriptor itself owns: where it lives in a process
 * @memory: the memory
 * @capacity: bytes, as asked at creation
 * @alignment: bytes, from the plan
 * @mask: physical addresses, from the plan; 0 for any
 * @options: IOOptionBits, as asked
 * @task: enum iobmd_task
 * @kernel_tag: 16 bits
 * @user_tag: 16 bits
 * @creator: the process
 *
 * @memory has its own lock; what follows it is constant.
 */
struct iobmd_descriptor {
	struct kref refs;
	struct mutex lock;
	u64 length;
	u64 refused_lengths;
	u32 direction;
	u32 prepared;
	bool read_only;
	struct list_head maps;
	struct list_head ranges;
	struct iobmd_memory memory;
	u64 capacity;
	u64 alignment;
	u64 mask;
	u32 options;
	u32 task;
	u16 kernel_tag;
	u16 user_tag;
	struct pid *creator;
};

int iobmd_descriptor_create(const struct iobmd_create *call,
			    struct iobmd_descriptor **descriptor,
			    const char **reason);
void iobmd_descriptor_release(struct iobmd_descriptor *descriptor);
void iobmd_descriptor_get(struct iobmd_descriptor *descriptor);
void iobmd_descriptor_put(struct iobmd_descriptor *descriptor);
u32 iobmd_descriptors_live(void);

u64 iobmd_get_capacity(const struct iobmd_descriptor *descriptor);
u64 iobmd_get_length(const struct iobmd_descriptor *descriptor);
int iobmd_set_length(struct iobmd_descriptor *descriptor, u64 length,
		     bool *accepted);
u32 iobmd_get_direction(const struct iobmd_descriptor *descriptor);
int iobmd_set_direction(struct iobmd_descriptor *descriptor, u32 direction);
bool iobmd_is_out_only(u32 direction);
u64 iobmd_get_bytes_no_copy(struct iobmd_descriptor *descriptor);
void iobmd_get_bytes_no_copy_at(struct iobmd_descriptor *descriptor,
				struct iobmd_window *window);
void iobmd_get_physical_segment(struct iobmd_descriptor *descriptor,
				struct iobmd_segment *segment);
void iobmd_describe(struct iobmd_descriptor *descriptor,
		    struct iobmd_description *description);

#endif /* IOBMD_DESCRIPTOR_H */
