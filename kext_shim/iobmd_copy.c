// SPDX-License-Identifier: GPL-2.0
#include <linux/minmax.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "iobmd_copy.h"

/* Bytes between two chances to be preempted or killed. */
#define COPY_STEP SZ_256K

/* Only a caller who will never see the result is interrupted. */
static int pause_copy(void)
{
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/**
 * iobmd_copy_in - copy from the caller
 * @to: kernel memory of any type
 * @from: user memory
 * @length: bytes
 *
 * Return: 0, -EFAULT, or -EINTR for a caller being killed; on an error part of
 * it may have been copied.
 */
int iobmd_copy_in(void *to, const void __user *from, u64 length)
{
	int error = 0;

	while (length && !error) {
		size_t step = min_t(u64, length, COPY_STEP);

		if (copy_from_user(to, from, step))
			return -EFAULT;
		to += step;
		from += step;
		length -= step;
		error = pause_copy();
	}
	return error;
}

/**
 * iobmd_copy_out - copy to the caller
 * @to: user memory
 * @from: kernel memory of any type
 * @length: bytes
 *
 * Return: 0, -EFAULT, or -EINTR for a caller being killed.
 */
int iobmd_copy_out(void __user *to, const void *from, u64 length)
{
	int error = 0;

	while (length && !error) {
		size_t step = min_t(u64, length, COPY_STEP);

		if (copy_to_user(to, from, step))
			return -EFAULT;
		to += step;
		from += step;
		length -= step;
		error = pause_copy();
	}
	return error;
}

/**
 * iobmd_clear - write zeros
 * @to: kernel memory of any type
 * @length: bytes
 *
 * Return: 0, or -EINTR for a caller being killed.
 */
int iobmd_clear(void *to, u64 length)
{
	int error = 0;

	while (length && !error) {
		size_t step = min_t(u64, length, COPY_STEP);

		memset(to, 0, step);
		to += step;
		length -= step;
		error = pause_copy();
	}
	return error;
}
