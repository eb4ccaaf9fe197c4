/* SPDX-License-Identifier: GPL-2.0 */
/* A descriptor as a file descriptor. */
#ifndef IOBMD_HANDLE_H
#define IOBMD_HANDLE_H

#include <linux/fs.h>

#include "iobmd_descriptor.h"

struct file *iobmd_descriptor_handle(struct iobmd_descriptor *descriptor);
long iobmd_hand_out(struct file *file, s32 *fd, const void *reply, size_t size,
		    void __user *user);

#endif /* IOBMD_HANDLE_H */
