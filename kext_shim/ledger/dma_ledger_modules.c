// SPDX-License-Identifier: GPL-2.0
#include <linux/compiler.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/pgtable.h>
#include <linux/rcupdate.h>
#include <linux/sched/clock.h>
#include <linux/string.h>

#include "compat.h"
#include "dma_ledger_modules.h"
#include "dma_ledger_ring.h"

/* Code of one module; the probes look through these without a lock. */
struct code {
	unsigned long base, end;
	const struct module *module;
	u32 id, init;
};

static char *only[8];
static unsigned int only_count;
module_param_array(only, charp, &only_count, 0400);
MODULE_PARM_DESC(
	only,
	"modules: record what they call, or is for a device that one of them drives");

/* Those that are there, in the same order. */
static const struct module *chosen[ARRAY_SIZE(only)];

static struct code codes[256];
static DEFINE_MUTEX(codes_lock);
static u32 last_id;
static unsigned int version = 1;

static void write_down(const struct code *code, u16 kind)
{
	u64 number = ledger_ring_reserve(1);
	struct dma_ledger_module *record;

	if (number == LEDGER_NO_ROOM)
		return;
	record = ledger_ring_slot(number);
	memset(record, 0, sizeof(*record));
	record->time = local_clock();
	record->kind = kind;
	record->init = code->init;
	record->id = code->id;
	record->base = code->base;
	record->size = code->end - code->base;
	strscpy(record->name, code->module->name, sizeof(record->name));
	ledger_ring_commit(record, number);
}

static void add_code(const struct module *module, u32 id, bool init)
{
	unsigned long base, size;
	unsigned int i;

	ledger_module_text(module, init, &base, &size);
	if (!base || !size)
		return;
	for (i = 0; i < ARRAY_SIZE(codes); i++) {
		struct code *code = &codes[i];

		if (code->base)
			continue;
		code->end = base + size;
		code->module = module;
		code->id = id;
		code->init = init;
		smp_store_release(&code->base, base);
		write_down(code, DMA_LEDGER_MODULE_COMING);
		return;
	}
	pr_warn("dma_ledger: no room to know the code of %s\n", module->name);
}

static void choose(const struct module *module, bool here)
{
	unsigned int i;

	for (i = 0; i < only_count; i++)
		if (!strcmp(only[i], module->name))
			WRITE_ONCE(chosen[i], here ? module : NULL);
}

static void add(const struct module *module)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(codes); i++)
		if (codes[i].base && codes[i].module == module)
			return;
	last_id++;
	choose(module, true);
	add_code(module, last_id, false);
	if (module->state == MODULE_STATE_COMING)
		add_code(module, last_id, true);
}

static void drop(const struct module *module, bool init_only)
{
	unsigned int i;

	if (!init_only)
		choose(module, false);
	for (i = 0; i < ARRAY_SIZE(codes); i++) {
		struct code *code = &codes[i];

		if (!code->base || code->module != module)
			continue;
		if (init_only && !code->init)
			continue;
		write_down(code, DMA_LEDGER_MODULE_GOING);
		WRITE_ONCE(code->base, 0);
	}
}

static int changed(struct notifier_block *block, unsigned long state,
		   void *data)
{
	mutex_lock(&codes_lock);
	WRITE_ONCE(version, version + 1);
	if (state == MODULE_STATE_COMING)
		add(data);
	else if (state == MODULE_STATE_LIVE)
		drop(data, true);
	else if (state == MODULE_STATE_GOING)
		drop(data, false);
	mutex_unlock(&codes_lock);
	return NOTIFY_OK;
}

static struct notifier_block watcher = { .notifier_call = changed };

static bool is_module(const struct list_head *entry)
{
	unsigned long at = (unsigned long)entry;

	return at >= MODULES_VADDR && at < MODULES_END;
}

/*
 * The list of modules has a head that is not exported, and lies in the kernel;
 * every module lies where modules do.  It is read with preemption off.
 */
static void add_present(void)
{
	const struct list_head *entry = &THIS_MODULE->list;

	preempt_disable();
	do {
		if (is_module(entry)) {
			const struct module *module =
				list_entry(entry, struct module, list);

			if (module->state == MODULE_STATE_LIVE ||
			    module == THIS_MODULE)
				add(module);
		}
		entry = READ_ONCE(entry->next);
	} while (entry != &THIS_MODULE->list);
	preempt_enable();
}

/**
 * ledger_modules_watch - know the code of every module, now and later
 *
 * Return: 0, or a negative errno.
 */
int ledger_modules_watch(void)
{
	int error = register_module_notifier(&watcher);

	if (error)
		return error;
	mutex_lock(&codes_lock);
	add_present();
	mutex_unlock(&codes_lock);
	return 0;
}

/** ledger_modules_unwatch - undo ledger_modules_watch() */
void ledger_modules_unwatch(void)
{
	unregister_module_notifier(&watcher);
}

/**
 * ledger_modules_version - a number that is another one when code came or went
 *
 * Return: never 0.
 */
unsigned int ledger_modules_version(void)
{
	return READ_ONCE(version);
}

/**
 * ledger_module_of - whose code is that?
 * @address: a return address
 *
 * Return: the id of a module that is not this one, or 0.
 */
u32 ledger_module_of(unsigned long address)
{
	unsigned int i;

	if (address < MODULES_VADDR || address >= MODULES_END)
		return 0;
	for (i = 0; i < ARRAY_SIZE(codes); i++) {
		const struct code *code = &codes[i];
		unsigned long base = smp_load_acquire(&code->base);

		if (base && address >= base && address < code->end)
			return code->module == THIS_MODULE ? 0 : code->id;
	}
	return 0;
}

/**
 * ledger_module_id - which module is that?
 * @module: a module, or NULL for the kernel
 *
 * Return: its id, or 0.
 */
u32 ledger_module_id(const struct module *module)
{
	unsigned int i;

	for (i = 0; module && i < ARRAY_SIZE(codes); i++) {
		const struct code *code = &codes[i];

		if (smp_load_acquire(&code->base) && code->module == module)
			return code->id;
	}
	return 0;
}

/**
 * ledger_modules_chosen - is a call of interest?
 * @caller: its return address
 * @owner: module of the device's driver, or NULL
 *
 * With preemption off, which keeps a module that goes until the end.
 *
 * Return: true if all are, or one of the two belongs to a module named.
 */
bool ledger_modules_chosen(unsigned long caller, const struct module *owner)
{
	unsigned int i;

	for (i = 0; i < only_count; i++) {
		const struct module *module = READ_ONCE(chosen[i]);

		if (module &&
		    (module == owner || within_module(caller, module)))
			return true;
	}
	return !only_count;
}
