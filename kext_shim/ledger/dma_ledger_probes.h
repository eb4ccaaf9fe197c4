/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_PROBES_H
#define DMA_LEDGER_PROBES_H

#include <linux/types.h>

int ledger_probes_arm(void);
void ledger_probes_disarm(void);
u64 ledger_probes_armed(void);

#endif /* DMA_LEDGER_PROBES_H */
