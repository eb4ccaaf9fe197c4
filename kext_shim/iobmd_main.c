// SPDX-License-Identifier: GPL-2.0
#include <linux/anon_inodes.h>
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "iobmd_descriptor.h"
#include "iobmd_device.h"
#include "iobmd_memtype.h"

/* Any of the transfer methods: structure in, method, structure out. */
static long transfer(struct iobmd_descriptor *descriptor, void __user *user,
		     int (*method)(struct iobmd_descriptor *descriptor,
				   struct iobmd_transfer *transfer))
{
	struct iobmd_transfer arguments;
	int error;

	if (copy_from_user(&arguments, user, sizeof(arguments)))
		return -EFAULT;
	error = method(descriptor, &arguments);
	if (error)
		return error;
	if (copy_to_user(user, &arguments, sizeof(arguments)))
		return -EFAULT;
	return 0;
}

static long set_length(struct iobmd_descriptor *descriptor, u64 __user *user)
{
	u64 length;

	if (get_user(length, user))
		return -EFAULT;
	return iobmd_set_length(descriptor, length);
}

static long set_direction(struct iobmd_descriptor *descriptor, u32 __user *user)
{
	u32 direction;

	if (get_user(direction, user))
		return -EFAULT;
	return iobmd_set_direction(descriptor, direction);
}

static long get_bytes_no_copy_at(struct iobmd_descriptor *descriptor,
				 struct iobmd_window __user *user)
{
	struct iobmd_window window;

	if (copy_from_user(&window, user, sizeof(window)))
		return -EFAULT;
	iobmd_get_bytes_no_copy_at(descriptor, &window);
	return copy_to_user(user, &window, sizeof(window)) ? -EFAULT : 0;
}

static long get_physical_segment(struct iobmd_descriptor *descriptor,
				 struct iobmd_segment __user *user)
{
	struct iobmd_segment segment;

	if (copy_from_user(&segment, user, sizeof(segment)))
		return -EFAULT;
	iobmd_get_physical_segment(descriptor, &segment);
	return copy_to_user(user, &segment, sizeof(segment)) ? -EFAULT : 0;
}

/* getPhysicalAddress() is the start of the segment at 0. */
static long get_physical_address(struct iobmd_descriptor *descriptor,
				 u64 __user *user)
{
	struct iobmd_segment segment = { .offset = 0 };

	iobmd_get_physical_segment(descriptor, &segment);
	return put_user(segment.address, user);
}

static long describe(struct iobmd_descriptor *descriptor,
		     struct iobmd_description __user *user)
{
	struct iobmd_description description;

	iobmd_describe(descriptor, &description);
	return copy_to_user(user, &description, sizeof(description)) ? -EFAULT :
								       0;
}

static long descriptor_ioctl(struct file *file, unsigned int command,
			     unsigned long argument)
{
	struct iobmd_descriptor *descriptor = file->private_data;
	void __user *user = (void __user *)argument;

	switch (command) {
	case IOBMD_IOC_GET_CAPACITY:
		return put_user(iobmd_get_capacity(descriptor),
				(u64 __user *)user);
	case IOBMD_IOC_GET_LENGTH:
		return put_user(iobmd_get_length(descriptor),
				(u64 __user *)user);
	case IOBMD_IOC_SET_LENGTH:
		return set_length(descriptor, user);
	case IOBMD_IOC_GET_DIRECTION:
		return put_user(iobmd_get_direction(descriptor),
				(u32 __user *)user);
	case IOBMD_IOC_SET_DIRECTION:
		return set_direction(descriptor, user);
	case IOBMD_IOC_APPEND_BYTES:
		return transfer(descriptor, user, iobmd_append_bytes);
	case IOBMD_IOC_READ_BYTES:
		return transfer(descriptor, user, iobmd_read_bytes);
	case IOBMD_IOC_WRITE_BYTES:
		return transfer(descriptor, user, iobmd_write_bytes);
	case IOBMD_IOC_GET_BYTES_NO_COPY:
		return put_user(iobmd_get_bytes_no_copy(descriptor),
				(u64 __user *)user);
	case IOBMD_IOC_GET_BYTES_NO_COPY_AT:
		return get_bytes_no_copy_at(descriptor, user);
	case IOBMD_IOC_GET_PHYSICAL_SEGMENT:
		return get_physical_segment(descriptor, user);
	case IOBMD_IOC_GET_PHYSICAL_ADDRESS:
		return get_physical_address(descriptor, user);
	case IOBMD_IOC_DESCRIBE:
		return describe(descriptor, user);
	default:
		return -ENOTTY;
	}
}

static int descriptor_release(struct inode *inode, struct file *file)
{
	iobmd_descriptor_destroy(file->private_data);
	return 0;
}

/* .owner: every open descriptor holds the module. */
static const struct file_operations descriptor_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = descriptor_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = descriptor_release,
};

static long get_info(struct iobmd_info __user *user)
{
	struct iobmd_info info = {
		.abi_version = IOBMD_ABI_VERSION,
		.live = iobmd_descriptors_live(),
		.types = iobmd_memtype_available(),
	};

	return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
}

/* The number reaches the caller before the descriptor becomes reachable. */
static long hand_out(struct iobmd_descriptor *descriptor,
		     struct iobmd_create *call, void __user *user)
{
	struct file *file;
	int fd;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		iobmd_descriptor_destroy(descriptor);
		return fd;
	}
	file = anon_inode_getfile("[iobmd]", &descriptor_operations, descriptor,
				  O_RDWR);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		iobmd_descriptor_destroy(descriptor);
		return PTR_ERR(file);
	}
	call->fd = fd;
	if (copy_to_user(user, call, sizeof(*call))) {
		put_unused_fd(fd);
		fput(file);
		return -EFAULT;
	}
	fd_install(fd, file);
	return 0;
}

static long create(void __user *user)
{
	struct iobmd_descriptor *descriptor;
	struct iobmd_create call;
	const char *reason;
	int error;

	if (copy_from_user(&call, user, sizeof(call)))
		return -EFAULT;
	call.fd = -1;
	call.error = 0;
	memset(call.reason, 0, sizeof(call.reason));

	error = iobmd_descriptor_create(&call, &descriptor, &reason);
	if (!error)
		return hand_out(descriptor, &call, user);
	if (!reason)
		return error;
	call.error = -error;
	strscpy(call.reason, reason, sizeof(call.reason));
	return copy_to_user(user, &call, sizeof(call)) ? -EFAULT : 0;
}

static long device_ioctl(struct file *file, unsigned int command,
			 unsigned long argument)
{
	void __user *user = (void __user *)argument;

	switch (command) {
	case IOBMD_IOC_INFO:
		return get_info(user);
	case IOBMD_IOC_CREATE:
		return create(user);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "iobmd",
	.mode = 0600,
	.fops = &device_operations,
};

static int __init iobmd_init(void)
{
	int error;

	iobmd_memtype_init();
	error = iobmd_devices_register();
	if (error)
		return error;
	error = misc_register(&device);
	if (error)
		iobmd_devices_unregister();
	return error;
}

static void __exit iobmd_exit(void)
{
	misc_deregister(&device);
	iobmd_devices_unregister();
}

module_init(iobmd_init);
module_exit(iobmd_exit);
MODULE_DESCRIPTION("DMA buffers with the contract of IOBufferMemoryDescriptor");
MODULE_LICENSE("GPL");
