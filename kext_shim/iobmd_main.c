// SPDX-License-Identifier: GPL-2.0
#include <linux/compat.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "iobmd_context.h"
#include "iobmd_descriptor.h"
#include "iobmd_device.h"
#include "iobmd_driverkit.h"
#include "iobmd_handle.h"
#include "iobmd_mapper.h"
#include "iobmd_memtype.h"
#include "iobmd_purgeable.h"

static long get_info(struct iobmd_info __user *user)
{
	struct iobmd_info info = {
		.abi_version = IOBMD_ABI_VERSION,
		.live = iobmd_descriptors_live(),
		.types = iobmd_memtype_available(),
	};

	return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
}

/* Apple's NULL, and what it does not tell. */
static long hand_out_null(struct iobmd_create *call, int error, u32 code,
			  const char *reason, void __user *user)
{
	call->error = -error;
	call->code = code;
	strscpy(call->reason, reason, sizeof(call->reason));
	return copy_to_user(user, call, sizeof(*call)) ? -EFAULT : 0;
}

static long create(void __user *user)
{
	struct iobmd_descriptor *descriptor;
	struct iobmd_create call;
	const char *reason;
	struct file *file;
	int error;

	if (copy_from_user(&call, user, sizeof(call)))
		return -EFAULT;
	call.fd = -1;
	call.error = 0;
	call.code = kIOReturnSuccess;
	memset(call.reason, 0, sizeof(call.reason));

	if (call.factory == IOBMD_DRIVERKIT_CREATE &&
	    !iobmd_driverkit_accepts(&call))
		return hand_out_null(&call, -EINVAL, kIOReturnBadArgument,
				     "an option that is no direction", user);
	error = iobmd_create_in_context(&call, &descriptor, &reason);
	if (error && !reason)
		return error;
	if (error)
		return hand_out_null(&call, error,
				     iobmd_create_code(&call, error), reason,
				     user);
	file = iobmd_descriptor_handle(descriptor);
	if (IS_ERR(file))
		return PTR_ERR(file);
	return iobmd_hand_out(file, &call.fd, &call, sizeof(call), user);
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
	iobmd_mapper_init();
	error = iobmd_devices_register();
	if (error)
		goto mapper;
	error = iobmd_purgeable_init();
	if (error)
		goto devices;
	error = misc_register(&device);
	if (error)
		goto purgeable;
	return 0;

purgeable:
	iobmd_purgeable_exit();
devices:
	iobmd_devices_unregister();
mapper:
	iobmd_mapper_exit();
	return error;
}

static void __exit iobmd_exit(void)
{
	misc_deregister(&device);
	iobmd_purgeable_exit();
	iobmd_devices_unregister();
	iobmd_mapper_exit();
}

module_init(iobmd_init);
module_exit(iobmd_exit);
MODULE_DESCRIPTION("DMA buffers with the contract of IOBufferMemoryDescriptor");
MODULE_LICENSE("GPL");
