// SPDX-License-Identifier: GPL-2.0
#include <linux/irq_work.h>
#include <linux/spinlock.h>

#include "iobmd_context.h"
#include "iobmd_descriptor.h"

static DEFINE_RAW_SPINLOCK(simple_lock);

/* A factory call, wherever it is made. */
struct errand {
	struct irq_work work;
	const struct iobmd_create *call;
	struct iobmd_descriptor **descriptor;
	const char **reason;
	int error;
};

static void run(struct errand *errand)
{
	errand->error = iobmd_descriptor_create(
		errand->call, errand->descriptor, errand->reason);
}

static void run_in_interrupt(struct irq_work *work)
{
	run(container_of(work, struct errand, work));
}

static void run_under_lock(struct errand *errand)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&simple_lock, flags);
	run(errand);
	raw_spin_unlock_irqrestore(&simple_lock, flags);
}

/**
 * iobmd_create_in_context - run a factory where the caller says
 * @call: the arguments, @call->context included
 * @descriptor: as for iobmd_descriptor_create()
 * @reason: as for iobmd_descriptor_create()
 *
 * Return: what the factory returned, or -EINVAL for an unknown context.
 */
int iobmd_create_in_context(const struct iobmd_create *call,
			    struct iobmd_descriptor **descriptor,
			    const char **reason)
{
	struct errand errand = {
		.work = IRQ_WORK_INIT_HARD(run_in_interrupt),
		.call = call,
		.descriptor = descriptor,
		.reason = reason,
	};

	*reason = NULL;
	switch (call->context) {
	case IOBMD_CONTEXT_PROCESS:
		run(&errand);
		break;
	case IOBMD_CONTEXT_SIMPLE_LOCK:
		run_under_lock(&errand);
		break;
	case IOBMD_CONTEXT_INTERRUPT:
		irq_work_queue(&errand.work);
		irq_work_sync(&errand.work);
		break;
	default:
		return -EINVAL;
	}
	return errand.error;
}
