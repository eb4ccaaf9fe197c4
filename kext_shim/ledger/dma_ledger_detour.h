/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_DETOUR_H
#define DMA_LEDGER_DETOUR_H

#include <linux/types.h>

/* Any function whose arguments, six at most, and result fit registers. */
typedef unsigned long ledger_function(unsigned long, unsigned long,
				      unsigned long, unsigned long,
				      unsigned long, unsigned long);

/* How many functions can have a detour. */
#define LEDGER_DETOURS 64

unsigned long ledger_detour_find(const char *name);
ledger_function *ledger_detour_past(unsigned long address);
int ledger_detours_open(void);
int ledger_detour_add(unsigned long address, ledger_function *instead);
void ledger_detours_close(void);
void ledger_detour_entered(void);
void ledger_detour_left(void);
u64 ledger_detours_missed(void);

#endif /* DMA_LEDGER_DETOUR_H */
