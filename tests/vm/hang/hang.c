// SPDX-License-Identifier: GPL-2.0
/* Hangs the kernel in the way that is written to its parameter. */
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/smp.h>

static void spin_deaf(void *unused)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
}

static void halt_deaf(void *unused)
{
	for (;;)
		asm volatile("cli; hlt");
}

static int set_how(const char *how, const struct kernel_param *kp)
{
	pr_info("hang: %c\n", how[0]);
	switch (how[0]) {
	case 'i': /* interrupts on, no process runs */
		preempt_disable();
		for (;;)
			cpu_relax();
	case 'o': /* interrupts off everywhere */
		on_each_cpu(spin_deaf, NULL, 0);
		break;
	case '1': /* interrupts off on this processor */
		spin_deaf(NULL);
		break;
	case 'h': /* every processor sleeps for good */
		on_each_cpu(halt_deaf, NULL, 0);
		break;
	default:
		return -EINVAL;
	}
	return 0;
}

static const struct kernel_param_ops how_ops = { .set = set_how };

module_param_cb(how, &how_ops, NULL, 0200);
MODULE_DESCRIPTION("Hangs the kernel on request");
MODULE_LICENSE("GPL");
