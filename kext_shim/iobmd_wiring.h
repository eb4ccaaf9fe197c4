/* SPDX-License-Identifier: GPL-2.0 */
/* The inherited methods about memory: prepare(), complete(), and reports. */
#ifndef IOBMD_WIRING_H
#define IOBMD_WIRING_H

#include "iobmd_abi.h"
#include "iobmd_descriptor.h"

int iobmd_prepare(struct iobmd_descriptor *descriptor,
		  struct iobmd_wiring *wiring);
int iobmd_complete(struct iobmd_descriptor *descriptor,
		   struct iobmd_wiring *wiring);
u32 iobmd_get_flags(struct iobmd_descriptor *descriptor);
void iobmd_set_purgeable(struct iobmd_descriptor *descriptor,
			 struct iobmd_purge *purge);
void iobmd_get_page_counts(struct iobmd_descriptor *descriptor,
			   struct iobmd_page_counts *counts);
void iobmd_perform_operation(struct iobmd_descriptor *descriptor,
			     struct iobmd_operation *operation);

#endif /* IOBMD_WIRING_H */
