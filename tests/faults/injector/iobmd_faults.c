// SPDX-License-Identifier: GPL-2.0
/*
 * Faults on demand: a word written to /dev/iobmd-faults breaks this kernel.
 *
 * For tests only.  What a word does not end comes back as the result of the
 * write, so a fault that turned out harmless shows.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/irq_work.h>
#include <linux/irqflags.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/platform_device.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <asm/desc.h>
#include <asm/set_memory.h>

/* No word is longer. */
#define WORD_MAX 32
/* Several times a kernel stack of 16 KiB. */
#define DEPTH 4096
#define IOC_PANIC _IO('f', 1)

/* Raw: the others sleep on a realtime kernel. */
static DEFINE_RAW_SPINLOCK(lock);
static DEFINE_MUTEX(mutex);
static unsigned long left_combined;

static int do_panic(void)
{
	panic("iobmd-faults: as asked");
}

static int do_oops(void)
{
	int *nowhere = NULL;

	OPTIMIZER_HIDE_VAR(nowhere);
	WRITE_ONCE(*nowhere, 1);
	return 0;
}

static int do_warn(void)
{
	WARN(1, "iobmd-faults: as asked\n");
	return 0;
}

static int do_bug(void)
{
	BUG();
}

/* Takes interrupts and lets nobody else run on this processor. */
static int do_spin(void)
{
	preempt_disable();
	for (;;)
		cpu_relax();
	return 0;
}

/* Lets others run, and never returns. */
static int do_spin_politely(void)
{
	for (;;)
		cond_resched();
	return 0;
}

static int do_spin_deaf(void)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
	return 0;
}

static int do_lock_twice(void)
{
	raw_spin_lock(&lock);
	raw_spin_lock(&lock);
	return 0;
}

static int do_lock_twice_deaf(void)
{
	raw_spin_lock_irq(&lock);
	raw_spin_lock_irq(&lock);
	return 0;
}

static int do_mutex_twice(void)
{
	mutex_lock(&mutex);
	mutex_lock(&mutex);
	return 0;
}

static void stand_still(void *unused)
{
	for (;;)
		asm volatile("cli; hlt");
}

static int do_halt(void)
{
	on_each_cpu(stand_still, NULL, 0);
	return 0;
}

/* The scheduler complains and sets the count right: nothing to enable then. */
static int do_sleep_atomic(void)
{
	__preempt_count_add(PREEMPT_OFFSET);
	schedule_timeout_uninterruptible(1);
	return 0;
}

static int do_hang(void)
{
	DECLARE_COMPLETION_ONSTACK(never);

	wait_for_completion(&never);
	return 0;
}

/*
 * Nobody else gets this processor for two seconds; then everything is well.
 * By the clock: the sum of many short delays is longer on a busy host.
 */
static int do_stall(void)
{
	u64 end;

	preempt_disable();
	end = ktime_get_ns() + 2ULL * NSEC_PER_SEC;
	while (ktime_get_ns() < end)
		cpu_relax();
	preempt_enable();
	return 0;
}

/*
 * The watchdog counts in units of 1.07 s and looks now and then: how long it
 * bears this is between 2 and 4 s, so it says itself when it is enough.
 */
static int do_stall_long(void)
{
	unsigned int milliseconds = 0;

	if (test_taint(TAINT_SOFTLOCKUP))
		return -EALREADY;
	preempt_disable();
	while (!test_taint(TAINT_SOFTLOCKUP) && milliseconds++ < 20000)
		mdelay(1);
	preempt_enable();
	return test_taint(TAINT_SOFTLOCKUP) ? 0 : -ETIMEDOUT;
}

static int do_out_of_memory(void)
{
	while (alloc_pages(GFP_KERNEL, 0))
		;
	return -ENOMEM;
}

/* Every frame is looked at after the call, so none can be reused for it. */
static noinline int recurse(int depth)
{
	char frame[256];
	int below = 0;

	memset(frame, depth, sizeof(frame));
	OPTIMIZER_HIDE_VAR(depth);
	if (depth)
		below = recurse(depth - 1);
	barrier_data(frame);
	return below + frame[depth % sizeof(frame)];
}

static int do_stack_overflow(void)
{
	return recurse(DEPTH);
}

static noinline void write_behind(char *at, size_t size)
{
	OPTIMIZER_HIDE_VAR(at);
	memset(at, 0x5a, size);
}

static noinline int do_stack_smash(void)
{
	char frame[64];

	write_behind(frame, sizeof(frame) + 32);
	return frame[0] & 1;
}

static int do_double_free(void)
{
	void *piece = kmalloc(512, GFP_KERNEL);
	void *again = piece;

	OPTIMIZER_HIDE_VAR(again);
	kfree(piece);
	kfree(again);
	return 0;
}

/*
 * What follows is harmless wherever no checker looks: it reads or writes what
 * belongs to the piece, takes locks nobody else has, or maps nothing away.
 */

static int do_use_after_free(void)
{
	char *piece = kzalloc(120, GFP_KERNEL);
	char *stale = piece;

	if (!piece)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(stale);
	kfree(piece);
	return READ_ONCE(stale[8]) & 0;
}

/* The allocator gives 128 bytes; only those asked for may be used. */
static int do_out_of_bounds(void)
{
	char *piece = kzalloc(120, GFP_KERNEL);
	char *end = piece;

	if (!piece)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(end);
	WRITE_ONCE(end[121], 1);
	kfree(piece);
	return 0;
}

static noinline void lock_both(struct mutex *outer, struct mutex *inner)
{
	mutex_lock(outer);
	mutex_lock(inner);
	mutex_unlock(inner);
	mutex_unlock(outer);
}

static int do_lock_order(void)
{
	static DEFINE_MUTEX(first);
	static DEFINE_MUTEX(second);

	lock_both(&first, &second);
	lock_both(&second, &first);
	return 0;
}

static DEFINE_RAW_SPINLOCK(shared);

static void lock_in_interrupt(struct irq_work *unused)
{
	raw_spin_lock(&shared);
	raw_spin_unlock(&shared);
}

/* An interrupt that comes between the last two would wait for ever. */
static int do_lock_interrupt(void)
{
	static struct irq_work work = IRQ_WORK_INIT_HARD(lock_in_interrupt);

	irq_work_queue(&work);
	irq_work_sync(&work);
	raw_spin_lock(&shared);
	raw_spin_unlock(&shared);
	return 0;
}

/* Nothing sleeps: there is memory. */
static int do_sleep_locked(void)
{
	void *piece;

	raw_spin_lock(&lock);
	piece = kmalloc(64, GFP_KERNEL);
	raw_spin_unlock(&lock);
	kfree(piece);
	return 0;
}

static int map_and_unmap(struct device *dev, void *piece)
{
	dma_addr_t at = dma_map_single(dev, piece, 1024, DMA_TO_DEVICE);

	if (dma_mapping_error(dev, at))
		return -EIO;
	dma_unmap_single(dev, at, 512, DMA_TO_DEVICE);
	return 0;
}

static int do_unmap_half(void)
{
	static struct platform_driver driver = {
		.driver.name = "iobmd-faults",
	};
	struct platform_device_info info = {
		.name = "iobmd-faults",
		.id = PLATFORM_DEVID_NONE,
		.dma_mask = DMA_BIT_MASK(64),
	};
	struct platform_device *device;
	void *piece = kmalloc(1024, GFP_KERNEL);
	int error = platform_driver_register(&driver);

	if (error)
		goto free;
	device = platform_device_register_full(&info);
	error = PTR_ERR_OR_ZERO(device);
	if (!error) {
		error = piece ? map_and_unmap(&device->dev, piece) : -ENOMEM;
		platform_device_unregister(device);
	}
	platform_driver_unregister(&driver);
free:
	kfree(piece);
	return error;
}

static int do_shift(void)
{
	unsigned int by = 40;
	int shifted;

	OPTIMIZER_HIDE_VAR(by);
	shifted = 1 << by;
	OPTIMIZER_HIDE_VAR(shifted);
	return 0;
}

static int do_index(void)
{
	struct {
		int table[4];
		int behind;
	} piece = {};
	unsigned int at = 4;

	OPTIMIZER_HIDE_VAR(at);
	piece.table[at] = 1;
	barrier_data(&piece);
	return 0;
}

static int do_triple_fault(void)
{
	static const struct desc_ptr none;

	local_irq_disable();
	native_load_idt(&none);
	asm volatile("int3");
	return 0;
}

/* Harmless to the kernel, and a lie about its memory: a page stays WC. */
static int do_leave_combined(void)
{
	if (!left_combined)
		left_combined = __get_free_page(GFP_KERNEL | __GFP_ZERO);
	return left_combined ? set_memory_wc(left_combined, 1) : -ENOMEM;
}

/* The caller is the agent; no other signal of a sender's choice ends init. */
static int do_kill_agent(void)
{
	force_sig(SIGSEGV);
	return 0;
}

static int do_nothing(void)
{
	return 0;
}

static const struct {
	const char *word;
	int (*act)(void);
} faults[] = {
	{ "bug", do_bug },
	{ "double-free", do_double_free },
	{ "halt", do_halt },
	{ "hang", do_hang },
	{ "index", do_index },
	{ "kill-agent", do_kill_agent },
	{ "leave-combined", do_leave_combined },
	{ "lock-interrupt", do_lock_interrupt },
	{ "lock-order", do_lock_order },
	{ "lock-twice", do_lock_twice },
	{ "lock-twice-deaf", do_lock_twice_deaf },
	{ "mutex-twice", do_mutex_twice },
	{ "nothing", do_nothing },
	{ "oops", do_oops },
	{ "out-of-bounds", do_out_of_bounds },
	{ "out-of-memory", do_out_of_memory },
	{ "panic", do_panic },
	{ "shift", do_shift },
	{ "sleep-atomic", do_sleep_atomic },
	{ "sleep-locked", do_sleep_locked },
	{ "spin", do_spin },
	{ "spin-deaf", do_spin_deaf },
	{ "spin-politely", do_spin_politely },
	{ "stack-overflow", do_stack_overflow },
	{ "stack-smash", do_stack_smash },
	{ "stall", do_stall },
	{ "stall-long", do_stall_long },
	{ "triple-fault", do_triple_fault },
	{ "unmap-half", do_unmap_half },
	{ "use-after-free", do_use_after_free },
	{ "warn", do_warn },
};

static ssize_t faults_write(struct file *file, const char __user *from,
			    size_t count, loff_t *at)
{
	char word[WORD_MAX] = "";
	int error;

	if (count >= sizeof(word))
		return -EINVAL;
	if (copy_from_user(word, from, count))
		return -EFAULT;
	for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
		if (!sysfs_streq(word, faults[i].word))
			continue;
		error = faults[i].act();
		return error < 0 ? error : count;
	}
	return -EINVAL;
}

static long faults_ioctl(struct file *file, unsigned int command,
			 unsigned long argument)
{
	return command == IOC_PANIC ? do_panic() : -ENOTTY;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.write = faults_write,
	.unlocked_ioctl = faults_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "iobmd-faults",
	.mode = 0600,
	.fops = &operations,
};

module_misc_device(device);
MODULE_DESCRIPTION("Breaks the kernel it is loaded into, for tests");
MODULE_LICENSE("GPL");
