// SPDX-License-Identifier: GPL-2.0
/* Mappings on every CPU at once, as many as wanted, in the background. */
#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/dma-mapping.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>

#include "streaming.h"

static unsigned long mappings = 1000;
module_param(mappings, ulong, 0400);
MODULE_PARM_DESC(mappings, "how many each CPU makes");

static unsigned long meet;
module_param(meet, ulong, 0400);
MODULE_PARM_DESC(meet,
		 "after how many all CPUs wait for each other, 0 for never");

static unsigned long done;
module_param(done, ulong, 0400);
MODULE_PARM_DESC(done, "how many have been made by all that have ended");

static unsigned long nanoseconds;
module_param(nanoseconds, ulong, 0400);
MODULE_PARM_DESC(nanoseconds, "it took, for all CPUs together");

static unsigned int threads;
module_param(threads, uint, 0400);
MODULE_PARM_DESC(threads, "that have not ended");

static struct task_struct *tasks[NR_CPUS];
static struct device *owner;
static DEFINE_SPINLOCK(counting);
static atomic_long_t arrived = ATOMIC_LONG_INIT(0);

/* So that all are at it at the same time, however the host runs them. */
static void meet_others(unsigned long meeting)
{
	long wanted = (meeting + 1) * num_online_cpus();

	atomic_long_inc(&arrived);
	while (atomic_long_read(&arrived) < wanted && !kthread_should_stop())
		cond_resched_tasks_rcu_qs();
}

static unsigned long map_all(void)
{
	void *memory = (void *)get_zeroed_page(GFP_KERNEL);
	unsigned long i;

	for (i = 0; memory && i < mappings && !kthread_should_stop(); i++) {
		size_t size = 1 + i % PAGE_SIZE;
		dma_addr_t bus;

		if (meet && i % meet == 0)
			meet_others(i / meet);
		bus = dma_map_single(owner, memory, size, DMA_TO_DEVICE);
		if (dma_mapping_error(owner, bus))
			break;
		dma_unmap_single(owner, bus, size, DMA_TO_DEVICE);
		/* Whoever takes a probe away waits for all tasks to do this. */
		cond_resched_tasks_rcu_qs();
	}
	free_page((unsigned long)memory);
	return i;
}

static int work(void *unused)
{
	u64 began = ktime_get_ns();
	unsigned long made = map_all();

	spin_lock(&counting);
	done += made;
	nanoseconds += ktime_get_ns() - began;
	threads--;
	spin_unlock(&counting);
	while (!kthread_should_stop())
		schedule_timeout_interruptible(HZ / 100);
	return 0;
}

static void stop(void *unused)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) if (tasks[cpu]) kthread_stop(tasks[cpu]);
}

static int start_on(unsigned int cpu)
{
	struct task_struct *task;

	task = kthread_create(work, NULL, "streaming/%u", cpu);
	if (IS_ERR(task))
		return PTR_ERR(task);
	kthread_bind(task, cpu);
	spin_lock(&counting);
	threads++;
	spin_unlock(&counting);
	tasks[cpu] = task;
	wake_up_process(task);
	return 0;
}

int streaming_storm(struct device *device)
{
	unsigned int cpu;
	int error;

	owner = device;
	error = devm_add_action_or_reset(device, stop, NULL);
	for_each_online_cpu(cpu) if (!error) error = start_on(cpu);
	return error;
}
