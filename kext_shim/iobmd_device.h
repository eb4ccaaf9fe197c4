/* SPDX-License-Identifier: GPL-2.0 */
/* The devices that memory is allocated for: one per address width. */
#ifndef IOBMD_DEVICE_H
#define IOBMD_DEVICE_H

#include <linux/device.h>

int iobmd_devices_register(void);
void iobmd_devices_unregister(void);
struct device *iobmd_device_for(unsigned int address_bits);
struct device *iobmd_device_narrower(const struct device *device);

#endif /* IOBMD_DEVICE_H */
