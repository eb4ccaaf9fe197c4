/* SPDX-License-Identifier: GPL-2.0 */
/* What memory there is, and the part of it that a plan asks for. */
#ifndef IOBMD_GATHER_H
#define IOBMD_GATHER_H

#include <linux/list.h>

#include "iobmd_placement.h"

void iobmd_storage_limits(struct iobmd_limits *limits);
int iobmd_gather(struct list_head *chunks, const struct iobmd_plan *plan,
		 const char **reason);

#endif /* IOBMD_GATHER_H */
