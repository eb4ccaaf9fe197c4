/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_ENTER_H
#define DMA_LEDGER_ENTER_H

#include "dma_ledger_record.h"

/* Named after the arguments they take apart. */
ledger_enter_fn ledger_enter_alloc;
ledger_enter_fn ledger_enter_free;
ledger_enter_fn ledger_enter_alloc_pages;
ledger_enter_fn ledger_enter_free_pages;
ledger_enter_fn ledger_enter_alloc_noncontiguous;
ledger_enter_fn ledger_enter_free_noncontiguous;
ledger_enter_fn ledger_enter_map_page;
ledger_enter_fn ledger_enter_map_resource;
ledger_enter_fn ledger_enter_address;
ledger_enter_fn ledger_enter_list;
ledger_enter_fn ledger_enter_sgtable;
ledger_enter_fn ledger_enter_pool_create;
ledger_enter_fn ledger_enter_pool_alloc;
ledger_enter_fn ledger_enter_pool_free;
ledger_enter_fn ledger_enter_pool_destroy;
ledger_enter_fn ledger_enter_mask;
ledger_enter_fn ledger_enter_mmap;
ledger_enter_fn ledger_enter_memory;
ledger_enter_fn ledger_enter_pages;
ledger_enter_fn ledger_enter_pages_array;
ledger_enter_fn ledger_enter_user_page;
ledger_enter_fn ledger_enter_user_pages;
ledger_enter_fn ledger_enter_user_range;
ledger_enter_fn ledger_enter_user_frame;
ledger_enter_fn ledger_enter_bind;
ledger_enter_fn ledger_enter_unbind;

/* Named after the calls that are of interest. */
ledger_wanted_fn ledger_wanted_device;
ledger_wanted_fn ledger_wanted_pool;
ledger_wanted_fn ledger_wanted_user;
ledger_wanted_fn ledger_wanted_unbind;

#endif /* DMA_LEDGER_ENTER_H */
