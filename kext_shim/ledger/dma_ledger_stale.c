// SPDX-License-Identifier: GPL-2.0
/*
 * Breakpoints that are met after they were taken away.
 *
 * A call that others make meanwhile is patched behind an int3, which is
 * overwritten at last (arch/x86/kernel/alternative.c: text_poke_bp_batch).
 * Once every CPU has been interrupted after that, none can meet it any more.
 * So it is with processors.  QEMU drops what it has translated of a place
 * before it stores there, and holds no lock until it has stored
 * (accel/tcg/cputlb.c: notdirty_write): what another CPU translates in between
 * stays, for all of them, until somebody stores there again.  The kernel does
 * not know that int3 any more, and dies of it, or before 6.3 tries it again
 * for ever.
 *
 * So store there again what is there.  To do so once is enough when a place
 * has been patched: no CPU can be interrupted while it translates, so whatever
 * was read too early has been kept by then.  Until then there is a probe on
 * every place.  It is disabled, so nothing is ever patched for it, but the
 * kernel asks it about each int3 there that nobody else wanted
 * (arch/x86/kernel/kprobes/core.c: kprobe_int3_handler).
 */
#include <linux/atomic.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/ptrace.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "dma_ledger_detour.h"
#include "dma_ledger_ring.h"
#include "dma_ledger_stale.h"

static struct kprobe probes[LEDGER_DETOURS];
static struct kprobe *places[LEDGER_DETOURS];
static unsigned int guarded;
/* The page of each place, where it may be written to. */
static char *pages;

/* One access, so that what another CPU writes there meanwhile stays. */
static void write_again(unsigned int place)
{
	unsigned long at = offset_in_page(probes[place].addr);

	at = place * PAGE_SIZE + round_down(at, sizeof(atomic_t));
	atomic_or(0, (atomic_t *)(pages + at));
}

static int meet(struct kprobe *probe, struct pt_regs *regs)
{
	write_again(probe - probes);
	ledger_ring_count_stale();
	regs->ip = (unsigned long)probe->addr;
	return 1;
}
NOKPROBE_SYMBOL(meet);

static void write_all_again(void *unused)
{
	unsigned int i;

	for (i = 0; i < guarded; i++)
		write_again(i);
}

static char *map_pages(const unsigned long *addresses, unsigned int count)
{
	struct page *all[LEDGER_DETOURS];
	unsigned int i;

	for (i = 0; i < count; i++)
		all[i] = virt_to_page((void *)addresses[i]);
	return vmap(all, count, VM_MAP, PAGE_KERNEL);
}

/**
 * ledger_stale_guard - before anything is patched
 * @addresses: of calls, all in the kernel's own code
 * @count: LEDGER_DETOURS at most
 *
 * Return: 0, or a negative errno.
 */
int ledger_stale_guard(const unsigned long *addresses, unsigned int count)
{
	unsigned int i;
	int error;

	pages = map_pages(addresses, count);
	if (!pages)
		return -ENOMEM;
	memset(probes, 0, sizeof(probes));
	for (i = 0; i < count; i++) {
		probes[i].addr = (kprobe_opcode_t *)addresses[i];
		probes[i].pre_handler = meet;
		probes[i].flags = KPROBE_FLAG_DISABLED;
		places[i] = &probes[i];
	}
	error = register_kprobes(places, count);
	if (error)
		vunmap(pages);
	else
		guarded = count;
	return error;
}

/**
 * ledger_stale_drop - after something was patched
 *
 * Every CPU does it, so that none is still on its way to a probe's handler
 * when this returns: an int3 is handled with interrupts off.
 */
void ledger_stale_drop(void)
{
	on_each_cpu(write_all_again, NULL, 1);
}

/** ledger_stale_unguard - after ledger_stale_drop(); nothing is patched now */
void ledger_stale_unguard(void)
{
	unregister_kprobes(places, guarded);
	vunmap(pages);
	guarded = 0;
}
