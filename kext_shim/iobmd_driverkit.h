/* SPDX-License-Identifier: GPL-2.0 */
/* DriverKit's face of the same object: methods that return codes. */
#ifndef IOBMD_DRIVERKIT_H
#define IOBMD_DRIVERKIT_H

#include "iobmd_abi.h"
#include "iobmd_descriptor.h"

bool iobmd_driverkit_accepts(const struct iobmd_create *call);
u32 iobmd_create_code(const struct iobmd_create *call, int error);
int iobmd_driverkit_set_length(struct iobmd_descriptor *descriptor,
			       struct iobmd_driverkit_length *length);
int iobmd_driverkit_get_length(struct iobmd_descriptor *descriptor,
			       struct iobmd_driverkit_length *length);
int iobmd_driverkit_get_range(struct iobmd_descriptor *descriptor,
			      struct iobmd_driverkit_range *range);
struct iobmd_map *
iobmd_driverkit_create_mapping(struct iobmd_descriptor *descriptor,
			       struct iobmd_driverkit_mapping *mapping,
			       const char **reason);

#endif /* IOBMD_DRIVERKIT_H */
