// SPDX-License-Identifier: MIT
/*
 * LINK_PEER: a second process that serves the same protocol on a port of its
 * own, so that two tasks can share a buffer and one of them may be killed.
 *
 * It runs the agent's own binary.  At most one lives at a time; starting one
 * ends the one before it, and waits for that: the driver lets a port be open
 * once (virtio_console.c:port_fops_open).
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "agent.h"

/* An address space of a test's size is torn down in milliseconds. */
#define END_DEADLINE_S 10

static struct {
	pthread_mutex_t lock;
	pthread_cond_t ended;
	pthread_mutex_t starting; /* one start at a time */
	char fd[12]; /* of its socket, outside a guest */
	pid_t pid; /* 0: none lives */
} peer = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.ended = PTHREAD_COND_INITIALIZER,
	.starting = PTHREAD_MUTEX_INITIALIZER,
};

void peer_on_fd(int fd)
{
	snprintf(peer.fd, sizeof(peer.fd), "%d", fd);
}

/* Called for every child that ended. */
void peer_reaped(int pid)
{
	pthread_mutex_lock(&peer.lock);
	if (pid == peer.pid) {
		peer.pid = 0;
		pthread_cond_broadcast(&peer.ended);
	}
	pthread_mutex_unlock(&peer.lock);
}

/* Locked.  False when it is still there at the deadline. */
static bool end_the_last_one(void)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += END_DEADLINE_S;
	if (peer.pid)
		kill(peer.pid, SIGKILL);
	while (peer.pid)
		if (pthread_cond_timedwait(&peer.ended, &peer.lock, &until))
			return false;
	return true;
}

/* Locked, so that its end cannot be reaped before its number is known. */
static int spawn(uint64_t ticket)
{
	static char name[] = "iobmd-peer";
	static char on_port[] = "--port", port[] = LINK_PEER_PORT_NAME;
	static char on_fd[] = "--fd", with[] = "--ticket";
	static char *const envp[] = { NULL };
	char number[20];
	char *argv[] = { name, on_port, port, with, number, NULL };

	if (*peer.fd) {
		argv[1] = on_fd;
		argv[2] = peer.fd;
	}
	snprintf(number, sizeof(number), "%#llx", (unsigned long long)ticket);
	return posix_spawn(&peer.pid, "/proc/self/exe", NULL, NULL, argv, envp);
}

enum link_status peer_start(const struct frame *in, size_t length,
			    struct frame *out, size_t *out_length)
{
	struct link_peer_start ask;
	struct link_peer answer = { 0 };

	if (length != sizeof(ask))
		return LINK_MALFORMED;
	memcpy(&ask, in->payload, sizeof(ask));
	if (!ask.ticket)
		return LINK_MALFORMED;
	pthread_mutex_lock(&peer.starting);
	pthread_mutex_lock(&peer.lock);
	answer.error = end_the_last_one() ? spawn(ask.ticket) : EBUSY;
	if (answer.error)
		peer.pid = answer.error == EBUSY ? peer.pid : 0;
	else
		answer.pid = (uint32_t)peer.pid;
	pthread_mutex_unlock(&peer.lock);
	pthread_mutex_unlock(&peer.starting);
	memcpy(out->payload, &answer, sizeof(answer));
	*out_length = sizeof(answer);
	return LINK_OK;
}
