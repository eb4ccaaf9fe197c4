/* SPDX-License-Identifier: GPL-2.0 */
/* Searches free memory for addresses no zone of the page allocator stands for. */
#ifndef IOBMD_HUNT_H
#define IOBMD_HUNT_H

#include <linux/list.h>

#include "iobmd_placement.h"

int iobmd_hunt(struct list_head *chunks, u64 wanted,
	       const struct iobmd_plan *plan, const char **reason);

#endif /* IOBMD_HUNT_H */
