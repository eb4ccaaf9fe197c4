/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DMA_LEDGER_MODULES_H
#define DMA_LEDGER_MODULES_H

#include <linux/types.h>

struct module;

int ledger_modules_watch(void);
void ledger_modules_unwatch(void);
unsigned int ledger_modules_version(void);
u32 ledger_module_of(unsigned long address);
u32 ledger_module_id(const struct module *module);
bool ledger_modules_chosen(unsigned long caller, const struct module *owner);

#endif /* DMA_LEDGER_MODULES_H */
