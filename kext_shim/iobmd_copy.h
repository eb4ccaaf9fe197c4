/* SPDX-License-Identifier: GPL-2.0 */
/* Copies of any length that can be preempted, and killed. */
#ifndef IOBMD_COPY_H
#define IOBMD_COPY_H

#include <linux/compiler_types.h>
#include <linux/types.h>

int iobmd_copy_in(void *to, const void __user *from, u64 length);
int iobmd_copy_out(void __user *to, const void *from, u64 length);
int iobmd_clear(void *to, u64 length);

#endif /* IOBMD_COPY_H */
