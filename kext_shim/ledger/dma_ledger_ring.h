/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_RING_H
#define DMA_LEDGER_RING_H

#include <linux/types.h>

#include "dma_ledger_abi.h"

#define LEDGER_NO_ROOM (~0ULL)

int ledger_ring_create(u64 records);
void ledger_ring_destroy(void);
u64 ledger_ring_reserve(u64 records);
void *ledger_ring_slot(u64 number);
void ledger_ring_commit(void *slot, u64 number);
void ledger_ring_count_stale(void);
void ledger_ring_describe(struct dma_ledger_info *info);

#endif /* DMA_LEDGER_RING_H */
