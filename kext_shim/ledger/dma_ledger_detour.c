// SPDX-License-Identifier: GPL-2.0
/*
 * Calls of a kernel function go to one of ours, which calls the kernel's.
 *
 * This is how live patches replace functions (kernel/livepatch/patch.c), and
 * not kprobes: a kprobe that comes up while another one's handler runs, in an
 * interrupt on the same CPU, is not run but counted, and a kretprobe is not
 * once too many calls are under way.  Network traffic makes both happen, and
 * one missed unmap is a leak that never was.
 */
#include <asm/ibt.h>
#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/hash.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/rcupdate.h>

#include "dma_ledger_detour.h"
#include "dma_ledger_stale.h"

/* A power of two, sparse enough that most lookups are one comparison. */
#define PLACES_BITS 8
#define PLACES (1U << PLACES_BITS)

static struct detour {
	unsigned long address;
	ledger_function *instead;
} places[PLACES];
static unsigned int detours;
static atomic_t under_way;
static atomic64_t missed;

static notrace struct detour *place_of(unsigned long address)
{
	unsigned int at = hash_long(address, PLACES_BITS);

	while (places[at].address && places[at].address != address)
		at = (at + 1) % PLACES;
	return &places[at];
}

/* From any context, with nothing disabled; whoever we call is not traced. */
static notrace void reached(unsigned long address, unsigned long caller,
			    struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	const struct detour *detour = place_of(address);

	/* Our own call, see ledger_detour_past(), is the one to arrive. */
	if (!detour->address || within_module(caller, THIS_MODULE))
		return;
	if (regs)
		regs->ip = (unsigned long)detour->instead;
	else
		atomic64_inc(&missed);
}

/*
 * PERMANENT: kernel.ftrace_enabled=0 would make us blind without a word, and
 * is refused with this.
 */
static struct ftrace_ops ops = {
	.func = reached,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY |
		 FTRACE_OPS_FL_PERMANENT,
};

typedef unsigned long lookup_function(const char *name);

/*
 * Only kprobes look names up for modules.  One on a function that others call
 * meanwhile is no good: int3, with which ftrace patches the call, is taken
 * for the probe's own on the other CPUs.  So one on the function that looks
 * names up, which nobody calls now.
 */
static lookup_function *lookup(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long address;

	if (register_kprobe(&probe))
		return NULL;
	address = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	/* A probe lies behind the mark of where indirect calls may land. */
	if (is_endbr(*(u32 *)(address - 4)))
		address -= 4;
	return (lookup_function *)address;
}

/**
 * ledger_detour_find - where a kernel function begins
 * @name: its name; exported or not
 *
 * Return: the address at which ftrace sees it called, or 0.
 */
unsigned long ledger_detour_find(const char *name)
{
	static lookup_function *find;
	unsigned long address;

	if (!find)
		find = lookup();
	address = find ? find(name) : 0;
	return address && is_endbr(*(u32 *)address) ? address + 4 : address;
}

/**
 * ledger_detour_add - have a function called instead of another
 * @address: from ledger_detour_find()
 * @instead: it has to call what ledger_detour_past() says, between
 *           ledger_detour_entered() and ledger_detour_left(), and not as the
 *           last thing it does
 *
 * Before ledger_detours_open().
 *
 * Return: 0, or a negative errno.
 */
int ledger_detour_add(unsigned long address, ledger_function *instead)
{
	struct detour *detour = place_of(address);
	int error;

	if (detour->address || detours == LEDGER_DETOURS)
		return -ENOSPC;
	error = ftrace_set_filter_ip(&ops, address, 0, 0);
	if (error)
		return error;
	detour->instead = instead;
	detour->address = address;
	detours++;
	return 0;
}

/**
 * ledger_detour_past - how to call a function that has a detour
 * @address: from ledger_detour_find()
 *
 * Behind the call of ftrace, which would only find out that the caller is us.
 * A processor that checks where indirect calls land wants the beginning.
 *
 * Return: what to call.
 */
ledger_function *ledger_detour_past(unsigned long address)
{
	if (boot_cpu_has(X86_FEATURE_IBT))
		return (ledger_function *)address;
	return (ledger_function *)(address + MCOUNT_INSN_SIZE);
}

/**
 * ledger_detours_open - begin
 *
 * Return: 0, or a negative errno: -EBUSY if ftrace is disabled, or something
 * else redirects one of the functions.
 */
int ledger_detours_open(void)
{
	unsigned long addresses[LEDGER_DETOURS];
	unsigned int i, count = 0;
	int error;

	/* Without a filter every function of the kernel would be traced. */
	if (!detours)
		return -ENOENT;
	for (i = 0; i < PLACES; i++)
		if (places[i].address)
			addresses[count++] = places[i].address;
	error = ledger_stale_guard(addresses, count);
	if (error)
		return error;
	error = register_ftrace_function(&ops);
	ledger_stale_drop();
	if (error)
		ledger_stale_unguard();
	return error;
}

/** ledger_detours_close - end; nobody is in our functions when this returns */
void ledger_detours_close(void)
{
	unregister_ftrace_function(&ops);
	ftrace_free_filter(&ops);
	ledger_stale_drop();
	ledger_stale_unguard();
	while (atomic_read(&under_way))
		msleep(1);
	/* Who has left us just now may have an instruction of ours to go. */
	synchronize_rcu_tasks();
	memset(places, 0, sizeof(places));
	detours = 0;
}

/** ledger_detour_entered - a call is under way that has to return to us */
void ledger_detour_entered(void)
{
	atomic_inc(&under_way);
}

/** ledger_detour_left - it has returned */
void ledger_detour_left(void)
{
	atomic_dec(&under_way);
}

/**
 * ledger_detours_missed - calls that could not be led elsewhere
 *
 * Return: how many; 0 unless ftrace keeps no registers for us, as we want it.
 */
u64 ledger_detours_missed(void)
{
	return atomic64_read(&missed);
}
