// SPDX-License-Identifier: GPL-2.0
#include <linux/err.h>
#include <linux/kernel.h>
#include <linux/minmax.h>
#include <linux/pagemap.h>

#include "iobmd_copy.h"
#include "iobmd_transfer.h"

enum movement {
	MOVE_OUT,
	MOVE_IN,
	MOVE_ZEROS
};

static int move_piece(enum movement movement, void *at, u64 user, u64 length)
{
	switch (movement) {
	case MOVE_OUT:
		return iobmd_copy_out(u64_to_user_ptr(user), at, length);
	case MOVE_IN:
		return iobmd_copy_in(at, u64_to_user_ptr(user), length);
	default:
		return iobmd_clear(at, length);
	}
}

/*
 * copy_from_user() fills the rest with zeros where it faults: a source that
 * cannot be read whole is refused before the first byte is written.
 */
static bool is_readable(u64 user, u64 length)
{
	return !fault_in_readable(u64_to_user_ptr(user), length);
}

/* User memory is touched with no lock held that a fault may need. */
static int move(struct iobmd_descriptor *descriptor, enum movement movement,
		u64 offset, u64 user, u64 length)
{
	struct iobmd_memory *memory = &descriptor->memory;
	int error = 0;

	if (movement == MOVE_IN && !is_readable(user, length))
		return -EFAULT;
	while (length && !error) {
		struct page *page;
		u64 piece;
		void *at;

		at = iobmd_memory_get(memory, offset, &piece, &page);
		if (IS_ERR(at)) {
			error = PTR_ERR(at);
			break;
		}
		piece = min(piece, length);
		error = move_piece(movement, at, user, piece);
		iobmd_memory_put(memory, page, movement != MOVE_OUT);
		offset += piece;
		user += piece;
		length -= piece;
	}
	if (memory->is_pageable)
		iobmd_memory_settle(memory);
	return error;
}

/**
 * iobmd_preload - the first contents
 * @descriptor: self, which nobody else has yet
 * @from: as many bytes as the capacity, of the calling process
 *
 * Return: 0, or a negative errno.
 */
int iobmd_preload(struct iobmd_descriptor *descriptor, const void __user *from)
{
	return move(descriptor, MOVE_IN, 0, (unsigned long)from,
		    descriptor->capacity);
}

/* A buffer outside the kernel is appended to by way of writeBytes(). */
static bool appends_by_writing(const struct iobmd_descriptor *descriptor)
{
	return descriptor->task != IOBMD_TASK_KERNEL;
}

static int append(struct iobmd_descriptor *descriptor, u64 from, u64 length)
{
	if (appends_by_writing(descriptor) && descriptor->read_only)
		return 0;
	if (appends_by_writing(descriptor) && !from)
		return move(descriptor, MOVE_ZEROS, descriptor->length, 0,
			    length);
	return move(descriptor, MOVE_IN, descriptor->length, from, length);
}

/**
 * iobmd_append_bytes - appendBytes()
 * @descriptor: self
 * @transfer: @bytes and @length in; @result out, always true
 *
 * What does not fit under the capacity is cut off.  In the kernel's task it
 * ignores the direction.
 *
 * Return: 0, or a negative errno with the length unchanged.
 */
int iobmd_append_bytes(struct iobmd_descriptor *descriptor,
		       struct iobmd_transfer *transfer)
{
	u64 length;
	int error;

	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	length = min(transfer->length,
		     descriptor->capacity - descriptor->length);
	error = append(descriptor, transfer->bytes, length);
	if (!error) {
		WRITE_ONCE(descriptor->length, descriptor->length + length);
		transfer->result = 1;
	}
	mutex_unlock(&descriptor->lock);
	return error;
}

/* A transfer that leaves the current length moves nothing, not a part. */
static bool is_inside(const struct iobmd_descriptor *descriptor,
		      const struct iobmd_transfer *transfer)
{
	return transfer->offset <= descriptor->length &&
	       transfer->length <= descriptor->length - transfer->offset;
}

/**
 * iobmd_read_bytes - readBytes()
 * @descriptor: self
 * @transfer: @offset, @length and @bytes in; @result out, bytes read
 *
 * Ignores the direction.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_read_bytes(struct iobmd_descriptor *descriptor,
		     struct iobmd_transfer *transfer)
{
	int error = 0;

	transfer->result = 0;
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	if (is_inside(descriptor, transfer)) {
		error = move(descriptor, MOVE_OUT, transfer->offset,
			     transfer->bytes, transfer->length);
		transfer->result = transfer->length;
	}
	mutex_unlock(&descriptor->lock);
	return error;
}

/**
 * iobmd_write_bytes - writeBytes()
 * @descriptor: self
 * @transfer: @offset, @length and @bytes in, NULL @bytes for zeros; @result
 *	out, bytes written
 *
 * Writes nothing while the direction is Out only.
 *
 * Return: 0, or a negative errno.
 */
int iobmd_write_bytes(struct iobmd_descriptor *descriptor,
		      struct iobmd_transfer *transfer)
{
	int error = 0;

	transfer->result = 0;
	if (mutex_lock_killable(&descriptor->lock))
		return -EINTR;
	if (is_inside(descriptor, transfer) && !descriptor->read_only) {
		error = move(descriptor, transfer->bytes ? MOVE_IN : MOVE_ZEROS,
			     transfer->offset, transfer->bytes,
			     transfer->length);
		transfer->result = transfer->length;
	}
	mutex_unlock(&descriptor->lock);
	return error;
}
