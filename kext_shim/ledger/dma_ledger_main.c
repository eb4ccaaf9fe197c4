// SPDX-License-Identifier: GPL-2.0
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "dma_ledger_detour.h"
#include "dma_ledger_modules.h"
#include "dma_ledger_probes.h"
#include "dma_ledger_ring.h"
#include "dma_ledger_stack.h"

static unsigned int records = 65536;
module_param(records, uint, 0400);
MODULE_PARM_DESC(records, "what the ring holds, 256 bytes each");

static long ledger_ioctl(struct file *file, unsigned int command,
			 unsigned long argument)
{
	struct dma_ledger_info info = {
		.abi_version = DMA_LEDGER_ABI_VERSION,
		.missed = ledger_detours_missed(),
		.armed = ledger_probes_armed(),
	};

	if (command != DMA_LEDGER_IOC_INFO)
		return -ENOTTY;
	ledger_ring_describe(&info);
	return copy_to_user((void __user *)argument, &info, sizeof(info)) ?
		       -EFAULT :
		       0;
}

static const struct file_operations ledger_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = ledger_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice ledger = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "dma_ledger",
	.mode = 0600,
	.fops = &ledger_operations,
};

static int __init ledger_init(void)
{
	int error;

	error = ledger_stack_set_up();
	if (error)
		return error;
	error = ledger_ring_create(records);
	if (error)
		goto stack;
	error = ledger_modules_watch();
	if (error)
		goto ring;
	error = ledger_probes_arm();
	if (error)
		goto modules;
	error = misc_register(&ledger);
	if (error)
		goto probes;
	return 0;

probes:
	ledger_probes_disarm();
modules:
	ledger_modules_unwatch();
ring:
	ledger_ring_destroy();
stack:
	ledger_stack_tear_down();
	return error;
}

static void __exit ledger_exit(void)
{
	misc_deregister(&ledger);
	ledger_probes_disarm();
	ledger_modules_unwatch();
	ledger_ring_destroy();
	ledger_stack_tear_down();
}

module_init(ledger_init);
module_exit(ledger_exit);
MODULE_DESCRIPTION("A ledger of the kernel's DMA API");
MODULE_LICENSE("GPL");
