/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_LEAVE_H
#define DMA_LEDGER_LEAVE_H

#include "dma_ledger_record.h"

ledger_leave_fn ledger_leave_alloc;
ledger_leave_fn ledger_leave_alloc_pages;
ledger_leave_fn ledger_leave_alloc_noncontiguous;
ledger_leave_fn ledger_leave_map;
ledger_leave_fn ledger_leave_list;
ledger_leave_fn ledger_leave_sgtable;
ledger_leave_fn ledger_leave_pool_create;
ledger_leave_fn ledger_leave_pool_alloc;
ledger_leave_fn ledger_leave_mask;
ledger_leave_fn ledger_leave_mmap;
ledger_leave_fn ledger_leave_status;
ledger_leave_fn ledger_leave_pages_array;
ledger_leave_fn ledger_leave_user_pages;
ledger_leave_fn ledger_leave_fault;
ledger_leave_fn ledger_leave_bind;
ledger_leave_fn ledger_leave_unbind;

#endif /* DMA_LEDGER_LEAVE_H */
