/* SPDX-License-Identifier: GPL-2.0 */
/* setPurgeable(): contents the machine may take back. */
#ifndef IOBMD_PURGEABLE_H
#define IOBMD_PURGEABLE_H

#include "iobmd_abi.h"
#include "iobmd_memory.h"

int iobmd_purgeable_init(void);
void iobmd_purgeable_exit(void);
void iobmd_purgeable_forget(struct iobmd_memory *memory);
u32 iobmd_purgeable_set(struct iobmd_memory *memory, u32 state, u32 *old_state);

#endif /* IOBMD_PURGEABLE_H */
