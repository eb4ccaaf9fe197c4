/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Everything that is not the same in every kernel the ledger is built for.
 */
#ifndef DMA_LEDGER_COMPAT_H
#define DMA_LEDGER_COMPAT_H

#include <linux/module.h>
#include <linux/version.h>

/*
 * A module's memory was two structures, and became an array of them; no macro
 * tells.
 */
static inline void ledger_module_text(const struct module *module, bool init,
				      unsigned long *base, unsigned long *size)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	const struct module_memory *memory =
		&module->mem[init ? MOD_INIT_TEXT : MOD_TEXT];

	*base = (unsigned long)memory->base;
	*size = memory->size;
#else
	const struct module_layout *layout = init ? &module->init_layout :
						    &module->core_layout;

	*base = (unsigned long)layout->base;
	*size = layout->text_size;
#endif
}

#endif /* DMA_LEDGER_COMPAT_H */
