// SPDX-License-Identifier: GPL-2.0
/*
 * Who calls: return addresses, the caller's first.
 *
 * Every frame the unwinder leaves takes a search in the kernel's tables, and
 * two thirds of what a record cost was that.  But callers come again.  So a
 * walk is kept, with the place of each return address above the stack pointer.
 * The code that an address lies in says how far up the next one is, and
 * nothing else does: while the addresses at the places are those of a kept
 * walk, its next place is theirs as well.
 *
 * A walk ends where the stack changes, or where the registers of an interrupt
 * lie: whoever was interrupted there has not called.
 */
#include <linux/hash.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/uaccess.h>
#include <asm/unwind.h>

#include "dma_ledger_modules.h"
#include "dma_ledger_stack.h"

static unsigned int frames = 6;
module_param(frames, uint, 0400);
MODULE_PARM_DESC(
	frames,
	"of the caller's stack in a record, and on to a module's; 10 at most");

#define WALKS_BITS 7

/* Places are bytes above the stack pointer, in the order of the frames. */
struct walk {
	unsigned int version;
	u32 module;
	u16 count;
	u16 places[DMA_LEDGER_FRAMES];
	unsigned long addresses[DMA_LEDGER_FRAMES];
};

/* One CPU's; whoever interrupts it while it is busy goes without. */
struct walks {
	bool busy;
	struct walk all[1 << WALKS_BITS];
};
static struct walks __percpu *kept;

static unsigned long place_of(const struct unwind_state *state)
{
#ifdef CONFIG_UNWINDER_ORC
	return state->sp - sizeof(unsigned long);
#else
	return 0;
#endif
}

/*
 * Note where a return address lies, if it lies there: what a kretprobe has
 * changed is not what the unwinder tells.
 */
static bool note(struct walk *walk, unsigned int frame, unsigned long sp,
		 unsigned long at, unsigned long address)
{
	unsigned long place = at - sp;

	if (at < sp || place > U16_MAX ||
	    (frame && place <= walk->places[frame - 1]) ||
	    READ_ONCE(*(unsigned long *)at) != address)
		return false;
	walk->places[frame] = place;
	walk->addresses[frame] = address;
	return true;
}

/* Return whether @walk, unless it is NULL, has it all. */
static bool walk_up(struct dma_ledger_record *record, struct pt_regs *regs,
		    struct walk *walk)
{
	unsigned long sp = kernel_stack_pointer(regs), address;
	const unsigned long *begin;
	struct unwind_state state;
	u16 count = 0;

	unwind_start(&state, current, regs, NULL);
	begin = state.stack_info.begin;
	for (; !unwind_done(&state) && count < DMA_LEDGER_FRAMES;
	     unwind_next_frame(&state)) {
		if (count >= frames && record->module)
			break;
		if (unwind_get_entry_regs(&state, NULL) ||
		    state.stack_info.begin != begin)
			break;
		address = unwind_get_return_address(&state);
		if (!address)
			break;
		if (walk && !note(walk, count, sp, place_of(&state), address))
			walk = NULL;
		record->stack[count++] = address;
		if (!record->module)
			record->module = ledger_module_of(address);
	}
	record->frames = count;
	return count && walk;
}

/*
 * The stack is there up to the last address that is the walk's, and to the end
 * of its page; what is on another page is read with care.
 */
static bool same(const struct walk *walk, unsigned long sp, u64 *stack)
{
	unsigned long page = sp & PAGE_MASK;
	unsigned int i;

	for (i = 0; i < walk->count; i++) {
		unsigned long at = sp + walk->places[i], found;

		if ((at & PAGE_MASK) == page)
			found = READ_ONCE(*(unsigned long *)at);
		else if (copy_from_kernel_nofault(&found, (void *)at,
						  sizeof(found)))
			return false;
		if (found != walk->addresses[i])
			return false;
		page = at & PAGE_MASK;
		stack[i] = found;
	}
	return walk->count;
}

static void with_walks(struct dma_ledger_record *record, struct pt_regs *regs,
		       struct walks *walks)
{
	unsigned long sp = kernel_stack_pointer(regs);
	unsigned long caller = *(unsigned long *)sp;
	unsigned int version = ledger_modules_version();
	struct walk *walk;

	walk = &walks->all[hash_long(caller + sp % THREAD_SIZE, WALKS_BITS)];
	if (walk->version == version && same(walk, sp, record->stack)) {
		record->frames = walk->count;
		record->module = walk->module;
		return;
	}
	walk->count = 0;
	if (walk_up(record, regs, walk)) {
		walk->version = version;
		walk->module = record->module;
		walk->count = record->frames;
	}
}

/**
 * ledger_stack_record - write down the caller's stack
 * @record: its stack, frames and module are filled in
 * @regs: at the function's entry, its return address on top of the stack
 *
 * From any context.  What we ourselves have put on the stack is not walked.
 */
void ledger_stack_record(struct dma_ledger_record *record, struct pt_regs *regs)
{
	struct walks *walks;

	preempt_disable();
	walks = this_cpu_ptr(kept);
	if (READ_ONCE(walks->busy)) {
		walk_up(record, regs, NULL);
	} else {
		WRITE_ONCE(walks->busy, true);
		barrier();
		with_walks(record, regs, walks);
		barrier();
		WRITE_ONCE(walks->busy, false);
	}
	preempt_enable();
	if (!record->frames) {
		record->flags |= DMA_LEDGER_SHORT_STACK;
		record->stack[0] = *(unsigned long *)kernel_stack_pointer(regs);
		record->module = ledger_module_of(record->stack[0]);
		record->frames = 1;
	}
}

/**
 * ledger_stack_set_up - make room, and of the parameter what can be used
 *
 * Return: 0 or -ENOMEM.
 */
int ledger_stack_set_up(void)
{
	frames = clamp_t(unsigned int, frames, 1, DMA_LEDGER_FRAMES);
	kept = alloc_percpu(struct walks);
	return kept ? 0 : -ENOMEM;
}

/** ledger_stack_tear_down - undo ledger_stack_set_up(); nobody records */
void ledger_stack_tear_down(void)
{
	free_percpu(kept);
	kept = NULL;
}
