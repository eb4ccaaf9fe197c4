/* SPDX-License-Identifier: GPL-2.0 */
/* A mapping as a file descriptor. */
#ifndef IOBMD_MAP_HANDLE_H
#define IOBMD_MAP_HANDLE_H

#include <linux/fs.h>

#include "iobmd_map.h"

struct file *iobmd_map_handle(struct iobmd_map *map);

#endif /* IOBMD_MAP_HANDLE_H */
