// SPDX-License-Identifier: MIT
/*
 * The process between a port and a program that wants a socket.
 *
 * Servers made for inetd ask their standard input who the other end is, and a
 * character device has none (getpeername: ENOTSOCK).  Being in between, the
 * relay also sees to it that a program meets none of the bytes that were meant
 * for, or written by, the one before it on the same port.
 */
#define _GNU_SOURCE /* pidfd_open has no wrapper here; syscall() has */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

#define CHUNK (64u << 10)

/* Bytes on their way from one descriptor to another. */
struct stream {
	int from;
	int to;
	bool over; /* nothing more will come */
	size_t start;
	size_t end;
	unsigned char bytes[CHUNK];
};

/* frame.c: the port allocates kernel memory, and may be out of it for once. */
static bool again(void)
{
	if (errno == ENOMEM)
		poll(NULL, 0, 1);
	return errno == EAGAIN || errno == EINTR || errno == ENOMEM;
}

static void wait_for(int fd, short events)
{
	struct pollfd file = { .fd = fd, .events = events };

	poll(&file, 1, -1);
}

static void give_up(const char *what)
{
	dprintf(STDERR_FILENO, "iobmd-agent: relay: %s: %s\n", what,
		strerror(errno));
	_exit(1);
}

static void receive(struct stream *s)
{
	ssize_t got = read(s->from, s->bytes, sizeof(s->bytes));

	s->start = 0;
	s->end = got > 0 ? (size_t)got : 0;
	if (got == 0 || (got < 0 && !again()))
		s->over = true;
}

/* Step over input; true behind the ticket, whose first byte is not 0. */
static bool pass(struct stream *in, uint64_t *seen, uint64_t ticket)
{
	while (in->start < in->end) {
		*seen = *seen >> 8 | (uint64_t)in->bytes[in->start++] << 56;
		if (*seen == ticket)
			return true;
	}
	return false;
}

/* Drop input up to and including the ticket, and answer with the ticket. */
static void meet(struct stream *in, uint64_t ticket)
{
	const char *answer = (const char *)&ticket;
	uint64_t seen = 0;
	size_t sent = 0;

	while (!pass(in, &seen, ticket)) {
		wait_for(in->from, POLLIN);
		receive(in);
		if (in->over)
			_exit(0); /* the host is gone */
	}
	while (sent < sizeof(ticket)) {
		ssize_t put =
			write(in->from, answer + sent, sizeof(ticket) - sent);

		if (put > 0)
			sent += (size_t)put;
		else if (put < 0 && !again())
			give_up("write");
		else
			wait_for(in->from, POLLOUT);
	}
}

static pid_t run(char *const argv[], int *ours)
{
	pid_t relay = getpid();
	int ends[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		give_up("socketpair");
	pid = fork();
	if (pid < 0)
		give_up("fork");
	if (!pid) {
		sigset_t none;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != relay)
			_exit(1);
		dup2(ends[1], STDIN_FILENO);
		dup2(ends[1], STDOUT_FILENO);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execv(*argv, argv);
		dprintf(STDERR_FILENO, "iobmd-agent: %s: %s\n", *argv,
			strerror(errno));
		_exit(127);
	}
	close(ends[1]);
	*ours = ends[0];
	return pid;
}

static void send_on(struct stream *s)
{
	ssize_t put = write(s->to, s->bytes + s->start, s->end - s->start);

	if (put > 0)
		s->start += (size_t)put;
	else if (put < 0 && !again())
		s->start = s->end; /* nobody is there to hear it */
}

static bool is_empty(const struct stream *s)
{
	return s->start == s->end;
}

/* One step for one direction; @ready is what poll() said of its two ends. */
static void step(struct stream *s, short readable, short writable)
{
	if (is_empty(s) && (readable & (POLLIN | POLLHUP | POLLERR)))
		receive(s);
	else if (!is_empty(s) && (writable & (POLLOUT | POLLHUP | POLLERR)))
		send_on(s);
}

/*
 * Until the program's output is over and delivered, or its end is known and
 * nothing it wrote is left.  A host that is gone takes the guest with it, and
 * a program that closed its input may still write.
 */
static void pump(struct stream *in, struct stream *out, int pidfd)
{
	struct pollfd files[3] = { { .fd = in->from },
				   { .fd = in->to },
				   { .fd = pidfd } };
	bool ended = false;

	while (!out->over || !is_empty(out)) {
		short port = 0, program = 0;

		if (is_empty(in) && !in->over)
			port |= POLLIN;
		if (!is_empty(in))
			program |= POLLOUT;
		if (is_empty(out) && !out->over)
			program |= POLLIN;
		if (!is_empty(out))
			port |= POLLOUT;
		/* A negative number is not looked at, not even for POLLHUP. */
		files[0].fd = port ? in->from : -1;
		files[1].fd = program ? in->to : -1;
		files[2].fd = ended ? -1 : pidfd;
		files[0].events = port;
		files[1].events = program;
		files[2].events = POLLIN;
		if (poll(files, 3, ended && is_empty(out) ? 0 : -1) < 0)
			continue;
		if (ended && is_empty(out) && !(files[1].revents & POLLIN))
			return; /* what lives on in its name is not waited for */
		ended = ended || files[2].revents;
		step(in, files[0].revents, files[1].revents);
		step(out, files[1].revents, files[0].revents);
		if (in->over && is_empty(in))
			return;
	}
}

_Noreturn void relay(int port, uint64_t ticket, char *const argv[])
{
	static struct stream in, out;
	int pidfd, program, status;
	pid_t pid;

	if (fcntl(port, F_SETFL, O_NONBLOCK) < 0)
		give_up("port");
	fcntl(port, F_SETFD, FD_CLOEXEC);
	in.from = port;
	meet(&in, ticket);
	pid = run(argv, &program);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0 || fcntl(program, F_SETFL, O_NONBLOCK) < 0)
		give_up("program");
	in.to = program;
	out.from = program;
	out.to = port;
	pump(&in, &out, pidfd);
	close(program);
	if (waitpid(pid, &status, 0) != pid)
		_exit(1);
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}
