// SPDX-License-Identifier: GPL-2.0
#include <linux/anon_inodes.h>
#include <linux/compat.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

#include "iobmd_area.h"
#include "iobmd_descriptor.h"
#include "iobmd_map_handle.h"

static DEFINE_RAW_SPINLOCK(simple_lock);

static void describe(struct iobmd_map *map, struct iobmd_mapping *description)
{
	const struct iobmd_map *shown = map->super ? map->super : map;

	*description = (struct iobmd_mapping){
		.address = map->address,
		.length = map->length,
		.offset = map->offset,
		.task = map->task,
		.options = map->options,
		.guard = (u64)shown->guard << PAGE_SHIFT,
		.own = map->own,
		.writable = map->writable,
		.areas = READ_ONCE(shown->areas),
	};
}

/* What a driver does that must not fault: bytes that were not there stay out. */
static size_t read_without_fault(const struct iobmd_map *map, u64 offset,
				 void *to, size_t length)
{
	unsigned long from = map->address + offset;
	unsigned long flags;
	size_t left = 0;

	raw_spin_lock_irqsave(&simple_lock, flags);
	pagefault_disable();
	if (map->task == IOBMD_TASK_KERNEL)
		memcpy(to, (void *)from, length);
	else if (map->mm == current->mm)
		left = __copy_from_user_inatomic(to, (const void __user *)from,
						 length);
	else
		left = length;
	pagefault_enable();
	raw_spin_unlock_irqrestore(&simple_lock, flags);
	return length - left;
}

static int read_locked(const struct iobmd_map *map,
		       struct iobmd_transfer *transfer, void *bounce)
{
	void __user *to = u64_to_user_ptr(transfer->bytes);

	while (transfer->result < transfer->length) {
		u64 left = transfer->length - transfer->result;
		size_t wanted = min_t(u64, left, PAGE_SIZE);
		size_t got;

		got = read_without_fault(map,
					 transfer->offset + transfer->result,
					 bounce, wanted);
		if (copy_to_user(to + transfer->result, bounce, got))
			return -EFAULT;
		transfer->result += got;
		if (got < wanted || fatal_signal_pending(current))
			break;
		cond_resched();
	}
	return 0;
}

static long read_mapping_locked(struct iobmd_map *map,
				struct iobmd_transfer __user *user)
{
	struct iobmd_transfer transfer;
	void *bounce;
	int error;

	if (copy_from_user(&transfer, user, sizeof(transfer)))
		return -EFAULT;
	transfer.result = 0;
	if (transfer.offset > map->length ||
	    transfer.length > map->length - transfer.offset)
		return -EINVAL;
	bounce = kmalloc(PAGE_SIZE, GFP_KERNEL);
	if (!bounce)
		return -ENOMEM;
	error = read_locked(map, &transfer, bounce);
	kfree(bounce);
	if (error)
		return error;
	return copy_to_user(user, &transfer, sizeof(transfer)) ? -EFAULT : 0;
}

static long describe_mapping(struct iobmd_map *map,
			     struct iobmd_mapping __user *user)
{
	struct iobmd_mapping description;

	describe(map, &description);
	return copy_to_user(user, &description, sizeof(description)) ? -EFAULT :
								       0;
}

static long map_ioctl(struct file *file, unsigned int command,
		      unsigned long argument)
{
	struct iobmd_map *map = file->private_data;
	void __user *user = (void __user *)argument;

	switch (command) {
	case IOBMD_IOC_DESCRIBE_MAPPING:
		return describe_mapping(map, user);
	case IOBMD_IOC_READ_MAPPING_LOCKED:
		return read_mapping_locked(map, user);
	default:
		return -ENOTTY;
	}
}

/* A part of another mapping is shown as that one. */
static int map_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct iobmd_map *map = file->private_data;

	if (map->super)
		map = map->super;
	return map->mm ? iobmd_area_mmap(map, vma) : -ENODEV;
}

static int map_release(struct inode *inode, struct file *file)
{
	iobmd_map_release(file->private_data);
	return 0;
}

static const struct file_operations map_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = map_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = map_mmap,
	.release = map_release,
};

/**
 * iobmd_map_handle - a file whose last close releases the mapping
 * @map: the mapping; its release is the file's from now on, also on failure
 *
 * Return: the file, or an ERR_PTR.
 */
struct file *iobmd_map_handle(struct iobmd_map *map)
{
	struct file *file =
		anon_inode_getfile("[iobmd-map]", &map_operations, map, O_RDWR);

	if (IS_ERR(file))
		iobmd_map_release(map);
	return file;
}
