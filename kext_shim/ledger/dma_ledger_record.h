/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_RECORD_H
#define DMA_LEDGER_RECORD_H

#include <linux/device.h>
#include <linux/ptrace.h>
#include <linux/scatterlist.h>

#include "dma_ledger_abi.h"

/* A call that has been entered and not been left. */
struct ledger_call {
	struct dma_ledger_record record;
	/* what the way out needs of the arguments */
	unsigned long argument;
	unsigned int entries;
};

/* Tell whether a call is worth a record. */
typedef bool ledger_wanted_fn(struct pt_regs *regs);
/* Fill in what a call's arguments tell. */
typedef void ledger_enter_fn(struct ledger_call *call, struct pt_regs *regs);
/* ... what its result tells, and write it down. */
typedef void ledger_leave_fn(struct ledger_call *call, unsigned long result);

void ledger_record_begin(struct dma_ledger_record *record, u16 kind,
			 struct pt_regs *regs);
void ledger_record_device(struct dma_ledger_record *record,
			  struct device *device);
void ledger_record_virtual(struct dma_ledger_record *record,
			   const void *address);
void ledger_record_physical(struct dma_ledger_record *record, u64 physical);
void ledger_record_look(struct dma_ledger_record *record, u64 physical);
void ledger_record_write(struct dma_ledger_record *record);
void ledger_record_write_runs(struct dma_ledger_record *record);
void ledger_record_write_list(struct dma_ledger_record *record,
			      struct scatterlist *list, unsigned int entries,
			      unsigned int mapped);
void ledger_record_write_pages(struct dma_ledger_record *record,
			       struct page **pages, unsigned long count);

#endif /* DMA_LEDGER_RECORD_H */
