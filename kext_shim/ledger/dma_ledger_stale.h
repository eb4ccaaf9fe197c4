/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_STALE_H
#define DMA_LEDGER_STALE_H

int ledger_stale_guard(const unsigned long *addresses, unsigned int count);
void ledger_stale_drop(void);
void ledger_stale_unguard(void);

#endif /* DMA_LEDGER_STALE_H */
