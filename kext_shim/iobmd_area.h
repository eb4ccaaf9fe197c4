/* SPDX-License-Identifier: GPL-2.0 */
/* User-space areas (VMAs) that show a mapping. */
#ifndef IOBMD_AREA_H
#define IOBMD_AREA_H

#include "iobmd_map.h"

struct vm_area_struct;

int iobmd_area_mmap(struct iobmd_map *map, struct vm_area_struct *vma);
unsigned long iobmd_area_create(struct iobmd_map *map, u64 address, bool fixed,
				bool replace);
void iobmd_area_destroy(struct iobmd_map *map);
void iobmd_area_populate(const struct iobmd_map *map);

#endif /* IOBMD_AREA_H */
