/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_STACK_H
#define DMA_LEDGER_STACK_H

#include <linux/ptrace.h>

#include "dma_ledger_abi.h"

int ledger_stack_set_up(void);
void ledger_stack_tear_down(void);
void ledger_stack_record(struct dma_ledger_record *record,
			 struct pt_regs *regs);

#endif /* DMA_LEDGER_STACK_H */
