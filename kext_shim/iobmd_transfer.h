/* SPDX-License-Identifier: GPL-2.0 */
/* The methods that move bytes between the caller and the buffer. */
#ifndef IOBMD_TRANSFER_H
#define IOBMD_TRANSFER_H

#include "iobmd_abi.h"
#include "iobmd_descriptor.h"

int iobmd_preload(struct iobmd_descriptor *descriptor, const void __user *from);
int iobmd_append_bytes(struct iobmd_descriptor *descriptor,
		       struct iobmd_transfer *transfer);
int iobmd_read_bytes(struct iobmd_descriptor *descriptor,
		     struct iobmd_transfer *transfer);
int iobmd_write_bytes(struct iobmd_descriptor *descriptor,
		      struct iobmd_transfer *transfer);

#endif /* IOBMD_TRANSFER_H */
