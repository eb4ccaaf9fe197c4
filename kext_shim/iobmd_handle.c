// SPDX-License-Identifier: GPL-2.0
#include <linux/anon_inodes.h>
#include <linux/compat.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "iobmd_driverkit.h"
#include "iobmd_handle.h"
#include "iobmd_map.h"
#include "iobmd_map_handle.h"
#include "iobmd_transfer.h"
#include "iobmd_wiring.h"

/*
 * A method with a structure for its arguments and results: structure in, @call,
 * structure out.  An error of @call is the ioctl's.
 */
#define THROUGH(type, call)                                               \
	({                                                                \
		struct type arguments;                                    \
		long error = -EFAULT;                                     \
                                                                          \
		if (!copy_from_user(&arguments, user, sizeof(arguments))) \
			error = (call);                                   \
		if (!error &&                                             \
		    copy_to_user(user, &arguments, sizeof(arguments)))    \
			error = -EFAULT;                                  \
		error;                                                    \
	})

/* The same for a method that cannot fail. */
#define THROUGH_VOID(type, call) THROUGH(type, ((call), 0L))

static long set_length(struct iobmd_descriptor *descriptor, u64 __user *user)
{
	bool accepted;
	u64 length;

	if (get_user(length, user))
		return -EFAULT;
	return iobmd_set_length(descriptor, length, &accepted);
}

static long set_direction(struct iobmd_descriptor *descriptor, u32 __user *user)
{
	u32 direction;

	if (get_user(direction, user))
		return -EFAULT;
	return iobmd_set_direction(descriptor, direction);
}

/* getPhysicalAddress() is the start of the segment at 0. */
static long get_physical_address(struct iobmd_descriptor *descriptor,
				 u64 __user *user)
{
	struct iobmd_segment segment = { .offset = 0 };

	iobmd_get_physical_segment(descriptor, &segment);
	return put_user(segment.address, user);
}

/**
 * iobmd_hand_out - give a new file to the caller, inside a reply
 * @file: the file; consumed
 * @fd: inside @reply, set to its number
 * @reply: the structure
 * @size: of it
 * @user: where it goes
 *
 * The number reaches the caller before the file becomes reachable.
 *
 * Return: 0, or a negative errno with the file released.
 */
long iobmd_hand_out(struct file *file, s32 *fd, const void *reply, size_t size,
		    void __user *user)
{
	long error;

	*fd = get_unused_fd_flags(O_CLOEXEC);
	if (*fd < 0) {
		error = *fd;
		fput(file);
		return error;
	}
	if (copy_to_user(user, reply, size)) {
		put_unused_fd(*fd);
		fput(file);
		return -EFAULT;
	}
	fd_install(*fd, file);
	return 0;
}

static long create_mapping(struct iobmd_descriptor *descriptor,
			   struct iobmd_create_mapping __user *user)
{
	struct iobmd_create_mapping call;
	struct iobmd_map_request request;
	struct iobmd_map *map;
	const char *reason = "";
	struct file *file;

	if (copy_from_user(&call, user, sizeof(call)))
		return -EFAULT;
	request = (struct iobmd_map_request){
		.task = call.task,
		.options = call.options,
		.address = call.address,
		.offset = call.offset,
		.length = call.length,
	};
	call.fd = -1;
	call.error = 0;
	memset(call.reason, 0, sizeof(call.reason));
	map = iobmd_map_create(descriptor, &request, &reason);
	if (IS_ERR(map)) {
		call.error = -PTR_ERR(map);
		strscpy(call.reason, reason, sizeof(call.reason));
		return copy_to_user(user, &call, sizeof(call)) ? -EFAULT : 0;
	}
	file = iobmd_map_handle(map);
	if (IS_ERR(file))
		return PTR_ERR(file);
	return iobmd_hand_out(file, &call.fd, &call, sizeof(call), user);
}

static long
driverkit_create_mapping(struct iobmd_descriptor *descriptor,
			 struct iobmd_driverkit_mapping __user *user)
{
	struct iobmd_driverkit_mapping call;
	struct iobmd_map *map;
	const char *reason = "";
	struct file *file;

	if (copy_from_user(&call, user, sizeof(call)))
		return -EFAULT;
	call.fd = -1;
	call.error = 0;
	memset(call.reason, 0, sizeof(call.reason));
	map = iobmd_driverkit_create_mapping(descriptor, &call, &reason);
	if (IS_ERR(map)) {
		call.error = -PTR_ERR(map);
		strscpy(call.reason, reason, sizeof(call.reason));
		return copy_to_user(user, &call, sizeof(call)) ? -EFAULT : 0;
	}
	file = iobmd_map_handle(map);
	if (IS_ERR(file))
		return PTR_ERR(file);
	return iobmd_hand_out(file, &call.fd, &call, sizeof(call), user);
}

static long simple_method(struct iobmd_descriptor *self, unsigned int command,
			  void __user *user)
{
	switch (command) {
	case IOBMD_IOC_GET_CAPACITY:
		return put_user(iobmd_get_capacity(self), (u64 __user *)user);
	case IOBMD_IOC_GET_LENGTH:
		return put_user(iobmd_get_length(self), (u64 __user *)user);
	case IOBMD_IOC_SET_LENGTH:
		return set_length(self, user);
	case IOBMD_IOC_GET_DIRECTION:
		return put_user(iobmd_get_direction(self), (u32 __user *)user);
	case IOBMD_IOC_SET_DIRECTION:
		return set_direction(self, user);
	case IOBMD_IOC_GET_FLAGS:
		return put_user(iobmd_get_flags(self), (u32 __user *)user);
	case IOBMD_IOC_GET_BYTES_NO_COPY:
		return put_user(iobmd_get_bytes_no_copy(self),
				(u64 __user *)user);
	case IOBMD_IOC_GET_PHYSICAL_ADDRESS:
		return get_physical_address(self, user);
	default:
		return -ENOTTY;
	}
}

static long descriptor_ioctl(struct file *file, unsigned int command,
			     unsigned long argument)
{
	struct iobmd_descriptor *self = file->private_data;
	void __user *user = (void __user *)argument;

	switch (command) {
	case IOBMD_IOC_APPEND_BYTES:
		return THROUGH(iobmd_transfer,
			       iobmd_append_bytes(self, &arguments));
	case IOBMD_IOC_READ_BYTES:
		return THROUGH(iobmd_transfer,
			       iobmd_read_bytes(self, &arguments));
	case IOBMD_IOC_WRITE_BYTES:
		return THROUGH(iobmd_transfer,
			       iobmd_write_bytes(self, &arguments));
	case IOBMD_IOC_GET_BYTES_NO_COPY_AT:
		return THROUGH_VOID(iobmd_window, iobmd_get_bytes_no_copy_at(
							  self, &arguments));
	case IOBMD_IOC_GET_PHYSICAL_SEGMENT:
		return THROUGH_VOID(iobmd_segment, iobmd_get_physical_segment(
							   self, &arguments));
	case IOBMD_IOC_DESCRIBE:
		return THROUGH_VOID(iobmd_description,
				    iobmd_describe(self, &arguments));
	case IOBMD_IOC_PREPARE:
		return THROUGH(iobmd_wiring, iobmd_prepare(self, &arguments));
	case IOBMD_IOC_COMPLETE:
		return THROUGH(iobmd_wiring, iobmd_complete(self, &arguments));
	case IOBMD_IOC_SET_PURGEABLE:
		return THROUGH_VOID(iobmd_purge,
				    iobmd_set_purgeable(self, &arguments));
	case IOBMD_IOC_GET_PAGE_COUNTS:
		return THROUGH_VOID(iobmd_page_counts,
				    iobmd_get_page_counts(self, &arguments));
	case IOBMD_IOC_PERFORM_OPERATION:
		return THROUGH_VOID(iobmd_operation,
				    iobmd_perform_operation(self, &arguments));
	case IOBMD_IOC_DRIVERKIT_SET_LENGTH:
		return THROUGH(iobmd_driverkit_length,
			       iobmd_driverkit_set_length(self, &arguments));
	case IOBMD_IOC_DRIVERKIT_GET_LENGTH:
		return THROUGH(iobmd_driverkit_length,
			       iobmd_driverkit_get_length(self, &arguments));
	case IOBMD_IOC_DRIVERKIT_GET_ADDRESS_RANGE:
		return THROUGH(iobmd_driverkit_range,
			       iobmd_driverkit_get_range(self, &arguments));
	case IOBMD_IOC_CREATE_MAPPING:
		return create_mapping(self, user);
	case IOBMD_IOC_DRIVERKIT_CREATE_MAPPING:
		return driverkit_create_mapping(self, user);
	default:
		return simple_method(self, command, user);
	}
}

static int descriptor_release(struct inode *inode, struct file *file)
{
	iobmd_descriptor_release(file->private_data);
	return 0;
}

/* .owner: every open descriptor holds the module. */
static const struct file_operations descriptor_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = descriptor_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = descriptor_release,
};

/**
 * iobmd_descriptor_handle - a file whose last close releases the descriptor
 * @descriptor: its release is the file's from now on, also on failure
 *
 * Return: the file, or an ERR_PTR.
 */
struct file *iobmd_descriptor_handle(struct iobmd_descriptor *descriptor)
{
	struct file *file = anon_inode_getfile(
		"[iobmd]", &descriptor_operations, descriptor, O_RDWR);

	if (IS_ERR(file))
		iobmd_descriptor_release(descriptor);
	return file;
}
