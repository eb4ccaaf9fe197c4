/* SPDX-License-Identifier: GPL-2.0 */
#ifndef STREAMING_H
#define STREAMING_H

#include <linux/device.h>

/* Each calls some of the DMA API for a device, and leaves nothing behind. */
typedef int streaming_fn(struct device *device);

streaming_fn streaming_lists;
streaming_fn streaming_memory;
streaming_fn streaming_flags;
streaming_fn streaming_storm;
streaming_fn streaming_paths;

/* What can be mapped by a process, from now on until the device goes. */
int streaming_user(struct device *device);

#endif /* STREAMING_H */
