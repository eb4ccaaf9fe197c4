// SPDX-License-Identifier: MIT
/*
 * LINK_RESUME: what a guest needs that was put back to a snapshot: the time of
 * day, and randomness that differs from its siblings'.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define NS_PER_S 1000000000LL

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static int set_clock(int64_t realtime_ns)
{
	const struct timespec now = { .tv_sec = realtime_ns / NS_PER_S,
				      .tv_nsec = realtime_ns % NS_PER_S };

	return clock_settime(CLOCK_REALTIME, &now) ? errno : 0;
}

/*
 * Credited and followed by a reseed: the next getrandom() differs already.
 * ENODATA: on a CPU without RDRAND there is no generator yet to seed again, and
 * what was added counts for the first.
 */
static int stir(const uint8_t *nonce, size_t size)
{
	struct {
		int bits;
		int bytes;
		uint8_t data[sizeof(((struct link_resume *)0)->nonce)];
	} pool = { .bits = (int)size * 8, .bytes = (int)size };
	int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	int error = 0;

	if (fd < 0)
		return errno;
	memcpy(pool.data, nonce, size);
	if (ioctl(fd, RNDADDENTROPY, &pool) ||
	    (ioctl(fd, RNDRESEEDCRNG) && errno != ENODATA))
		error = errno;
	close(fd);
	return error;
}

static void announce(const uint8_t *nonce, size_t size)
{
	char text[2 * sizeof(((struct link_resume *)0)->nonce) + 1];

	for (size_t i = 0; i < size; i++)
		snprintf(text + 2 * i, 3, "%02x", nonce[i]);
	dprintf(STDERR_FILENO, "%s %s\n", LINK_RESTORED_LINE, text);
}

enum link_status resume(const struct frame *in, size_t length,
			struct link_hello *hello, struct frame *out,
			size_t *out_length)
{
	struct link_resumed resumed = { 0 };
	struct link_resume request;

	if (length != sizeof(request))
		return LINK_MALFORMED;
	memcpy(&request, in->payload, sizeof(request));
	memcpy(hello->restore_nonce, request.nonce, sizeof(request.nonce));
	/* Outside a guest the clock and the pool are somebody else's. */
	if (getpid() == 1) {
		resumed.error = set_clock(request.realtime_ns);
		if (!resumed.error)
			resumed.error =
				stir(request.nonce, sizeof(request.nonce));
	}
	announce(request.nonce, sizeof(request.nonce));
	memcpy(resumed.boot_nonce, hello->boot_nonce,
	       sizeof(hello->boot_nonce));
	memcpy(resumed.restore_nonce, hello->restore_nonce,
	       sizeof(hello->restore_nonce));
	resumed.monotonic_ns = clock_ns(CLOCK_MONOTONIC);
	resumed.realtime_ns = clock_ns(CLOCK_REALTIME);
	memcpy(out->payload, &resumed, sizeof(resumed));
	*out_length = sizeof(resumed);
	return LINK_OK;
}
