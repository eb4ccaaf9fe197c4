// SPDX-License-Identifier: MIT
/*
 * Framing: bytes to frames and back.
 *
 * Bytes that are no frame are stepped over one at a time until a valid header
 * turns up.  A header is believed only with a matching CRC, so garbage that
 * claims to be a frame passes once in 2^64 positions (magic and CRC).
 *
 * A frame that starts and then falls silent is waited for without end: on a
 * byte stream silence and slowness look alike, and any limit chosen here would
 * cut frames on a slow machine.  Operations already running still answer; the
 * host, which knows what it sent, is the side with the deadline.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

/* Quiet time after which garbage counts as over. */
#define NOISE_LINGER_MS 5
/* Garbage without a pause is reported once per this many bytes. */
#define NOISE_BATCH (1u << 20)

enum fill {
	FILL_MORE,
	FILL_QUIET,
	FILL_GONE,
};

static enum fill wait_for(int fd, short events, int timeout_ms)
{
	struct pollfd port = { .fd = fd, .events = events };
	int count;

	do {
		count = poll(&port, 1, timeout_ms);
	} while (count < 0 && errno == EINTR);
	if (count == 0)
		return FILL_QUIET;
	if (count < 0 || (port.revents & (POLLERR | POLLNVAL)))
		return FILL_GONE;
	if (port.revents & events)
		return FILL_MORE;
	return FILL_GONE; /* POLLHUP and nothing left to read */
}

/*
 * Errors that say "again".  The port allocates kernel memory for every write:
 * a guest that is short of it is not a host that is gone.
 */
static bool passing(int error)
{
	if (error == ENOMEM)
		poll(NULL, 0, 1);
	return error == EAGAIN || error == EINTR || error == ENOMEM;
}

/* Read what there is, at least one byte, into @to. */
static enum fill fill(int fd, void *to, size_t room, int timeout_ms,
		      size_t *got)
{
	for (;;) {
		enum fill state = wait_for(fd, POLLIN, timeout_ms);
		ssize_t count;

		if (state != FILL_MORE)
			return state;
		count = read(fd, to, room);
		if (count > 0) {
			*got = (size_t)count;
			return FILL_MORE;
		}
		if (count == 0 || !passing(errno))
			return FILL_GONE;
	}
}

static bool valid(const struct link_header *header)
{
	return header->magic == LINK_MAGIC &&
	       header->check ==
		       crc32_of(header, offsetof(struct link_header, check));
}

/* Could a header start here?  With fewer than four bytes: perhaps. */
static bool promising(const unsigned char *at, size_t size)
{
	const uint32_t magic = LINK_MAGIC;

	return !memcmp(at, &magic, size < sizeof(magic) ? size : sizeof(magic));
}

/* Step over bytes that cannot be part of a frame. */
static bool find_header(struct reader *r, struct link_header *header)
{
	size_t left;

	while ((left = r->end - r->start) > 0) {
		const unsigned char *at = r->bytes + r->start;

		if (promising(at, left)) {
			if (left < sizeof(*header))
				return false;
			memcpy(header, at, sizeof(*header));
			if (valid(header))
				return true;
		}
		r->start++;
		r->skipped++;
	}
	return false;
}

enum reader_event reader_next(struct reader *r, struct link_header *header)
{
	for (;;) {
		size_t got;

		if (find_header(r, header)) {
			if (r->skipped)
				return READER_NOISE;
			r->start += sizeof(*header);
			return READER_FRAME;
		}
		if (r->skipped >= NOISE_BATCH)
			return READER_NOISE;
		/* Less than a header is left: cheap to move. */
		memmove(r->bytes, r->bytes + r->start, r->end - r->start);
		r->end -= r->start;
		r->start = 0;
		switch (fill(r->fd, r->bytes + r->end, READER_BYTES - r->end,
			     r->skipped ? NOISE_LINGER_MS : -1, &got)) {
		case FILL_MORE:
			r->end += got;
			break;
		case FILL_QUIET:
			return READER_NOISE;
		case FILL_GONE:
			return READER_GONE;
		}
	}
}

/* Take payload bytes: first what was read along with the header. */
bool reader_take(struct reader *r, void *to, size_t size)
{
	unsigned char *at = to;
	size_t here = r->end - r->start;

	if (here > size)
		here = size;
	memcpy(at, r->bytes + r->start, here);
	r->start += here;
	while (here < size) {
		size_t got;

		if (fill(r->fd, at + here, size - here, -1, &got) != FILL_MORE)
			return false;
		here += got;
	}
	return true;
}

bool reader_drop(struct reader *r, size_t size)
{
	while (size) {
		size_t here = r->end - r->start;

		if (here > size)
			here = size;
		r->start += here;
		size -= here;
		if (!size)
			break;
		r->start = 0;
		r->end = 0;
		if (fill(r->fd, r->bytes, READER_BYTES, -1, &r->end) !=
		    FILL_MORE)
			return false;
	}
	return true;
}

/* The caller holds the write lock.  False when the host is gone. */
bool frame_send(int fd, struct frame *frame, size_t length)
{
	const unsigned char *at = (const unsigned char *)frame;
	size_t left = sizeof(frame->header) + length;

	frame->header.magic = LINK_MAGIC;
	frame->header.length = (uint32_t)length;
	frame->header.reserved = 0;
	frame->header.check =
		crc32_of(&frame->header, offsetof(struct link_header, check));
	while (left) {
		ssize_t count = write(fd, at, left);

		if (count > 0) {
			at += count;
			left -= (size_t)count;
			continue;
		}
		if (count < 0 && !passing(errno))
			return false;
		if (wait_for(fd, POLLOUT, -1) != FILL_MORE)
			return false;
	}
	return true;
}
