/* SPDX-License-Identifier: GPL-2.0 */
/* IOBufferMemoryDescriptor: what each method means. */
#ifndef IOBMD_DESCRIPTOR_H
#define IOBMD_DESCRIPTOR_H

#include <linux/types.h>

#include "iobmd_abi.h"

struct iobmd_descriptor;

int iobmd_descriptor_create(const struct iobmd_create *call,
			    struct iobmd_descriptor **descriptor,
			    const char **reason);
void iobmd_descriptor_destroy(struct iobmd_descriptor *descriptor);
u32 iobmd_descriptors_live(void);

u64 iobmd_get_capacity(const struct iobmd_descriptor *descriptor);
u64 iobmd_get_length(const struct iobmd_descriptor *descriptor);
int iobmd_set_length(struct iobmd_descriptor *descriptor, u64 length);
u32 iobmd_get_direction(const struct iobmd_descriptor *descriptor);
int iobmd_set_direction(struct iobmd_descriptor *descriptor, u32 direction);
int iobmd_append_bytes(struct iobmd_descriptor *descriptor,
		       struct iobmd_transfer *transfer);
int iobmd_read_bytes(struct iobmd_descriptor *descriptor,
		     struct iobmd_transfer *transfer);
int iobmd_write_bytes(struct iobmd_descriptor *descriptor,
		      struct iobmd_transfer *transfer);
u64 iobmd_get_bytes_no_copy(const struct iobmd_descriptor *descriptor);
void iobmd_get_bytes_no_copy_at(const struct iobmd_descriptor *descriptor,
				struct iobmd_window *window);
void iobmd_get_physical_segment(const struct iobmd_descriptor *descriptor,
				struct iobmd_segment *segment);
void iobmd_describe(struct iobmd_descriptor *descriptor,
		    struct iobmd_description *description);

#endif /* IOBMD_DESCRIPTOR_H */
