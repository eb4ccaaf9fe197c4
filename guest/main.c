// SPDX-License-Identifier: MIT
/*
 * The agent: pid 1 of the guest, or a plain process on the host.
 *
 *	agent			as pid 1: boot, then serve the port
 *	agent --fd N [--peer-fd M] [--spawn-fd S]
 *				serve the protocol on an inherited socket; M is
 *				for the peer process LINK_PEER starts, S stands
 *				for every port of LINK_SPAWN
 *
 * and as that peer, in a guest and elsewhere:
 *
 *	agent --port NAME --ticket T
 *	agent --fd N --ticket T
 *
 * and as the relay between a port and a program, see LINK_SPAWN:
 *
 *	agent --port NAME --ticket T -- PROGRAM [ARG...]
 *	agent --fd N --ticket T -- PROGRAM [ARG...]
 *
 * and as the parent of a command over SSH, see command.c:
 *
 *	agent --command MARK -- PROGRAM [ARG...]
 */
#define _GNU_SOURCE /* close_range */
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

/* A cold boot under emulation on a busy machine; it needs milliseconds. */
#define PORT_DEADLINE_MS 30000

/* Keeps every layout of link_abi.h in the DWARF, where the host reads it. */
__attribute__((used)) static const struct {
	enum link_limit limit;
	enum link_op op;
	enum link_flag flag;
	enum link_status status;
	enum link_reloc_kind reloc_kind;
	struct link_header header;
	struct link_hello hello;
	struct link_syscall call;
	struct link_reloc reloc;
	struct link_syscall_result result;
	enum link_batch_flag batch_flag;
	struct link_batch batch;
	struct link_batch_call batch_call;
	struct link_batch_result batch_result;
	struct link_noise noise;
	struct link_peer_start peer_start;
	struct link_peer peer;
	struct link_hold hold;
	struct link_resume resume;
	struct link_resumed resumed;
	struct link_spawn spawn;
	struct link_spawned spawned;
} link_abi;

static void say_ready(void)
{
	dprintf(STDERR_FILENO, "%s\n", LINK_READY_LINE);
}

/*
 * No signal may interrupt or end a worker; SIGPIPE among them, as a host that
 * has gone is noticed by its errno.  Outside a guest ^C and kill still work.
 */
static void block_signals(bool init)
{
	sigset_t set;

	sigfillset(&set);
	if (!init) {
		sigdelset(&set, SIGINT);
		sigdelset(&set, SIGTERM);
		sigdelset(&set, SIGHUP);
	}
	sigprocmask(SIG_SETMASK, &set, NULL);
}

/* busybox's poweroff, halt and reboot ask init by signal. */
static _Noreturn void tend_children(bool init)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	if (init) {
		sigaddset(&set, SIGUSR1);
		sigaddset(&set, SIGUSR2);
		sigaddset(&set, SIGTERM);
	}
	for (;;) {
		int signal = sigwaitinfo(&set, NULL);
		int status;
		int pid;

		if (signal > 0 && signal != SIGCHLD)
			power_off();
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
			shell_reaped(pid);
			peer_reaped(pid);
			spawn_reaped(pid, status);
		}
	}
}

static _Noreturn void be_init(void)
{
	bool shell;
	int port;

	boot_limits();
	boot_mounts();
	boot_modules();
	shell = boot_word("iobmd.shell");
	port = port_open(LINK_PORT_NAME, PORT_DEADLINE_MS);
	if (port < 0 && !shell)
		boot_failed("no port", LINK_PORT_NAME, ETIMEDOUT);
	if (port >= 0)
		serve(port, 0, say_ready);
	/* After the ready line, which would bury the prompt. */
	if (shell)
		shell_start();
	tend_children(true);
}

static int usage(void)
{
	fprintf(stderr, "usage: agent --fd N [--peer-fd M] [--spawn-fd S]\n"
			"       (N, M, S: open stream sockets)\n");
	return 2;
}

struct options {
	int fd;
	int peer_fd;
	int spawn_fd;
	char **program;
	const char *port;
	const char *mark;
	uint64_t ticket;
};

static bool number(const char *text, uint64_t max, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 0);
	return end != text && !*end && *text != '-' && !errno && *value <= max;
}

static bool parse(int argc, char **argv, struct options *options)
{
	int words = 1;
	bool good;

	*options = (struct options){ .fd = -1, .peer_fd = -1, .spawn_fd = -1 };
	while (words < argc && strcmp(argv[words], "--"))
		words++;
	if (words < argc - 1)
		options->program = argv + words + 1;
	good = words > 1 && words % 2 == 1 &&
	       (options->program || words == argc);
	for (int i = 1; good && i < words; i += 2) {
		const char *value = argv[i + 1];
		uint64_t parsed = 0;

		if (!strcmp(argv[i], "--port")) {
			options->port = value;
		} else if (!strcmp(argv[i], "--command")) {
			options->mark = value;
		} else if (!strcmp(argv[i], "--ticket")) {
			good = number(value, UINT64_MAX, &options->ticket);
		} else if (!strcmp(argv[i], "--fd")) {
			good = number(value, INT_MAX, &parsed);
			options->fd = (int)parsed;
		} else if (!strcmp(argv[i], "--peer-fd")) {
			good = number(value, INT_MAX, &parsed);
			options->peer_fd = (int)parsed;
		} else if (!strcmp(argv[i], "--spawn-fd")) {
			good = number(value, INT_MAX, &parsed);
			options->spawn_fd = (int)parsed;
		} else {
			good = false;
		}
	}
	if (options->mark)
		return good && options->program;
	if (options->port || options->program)
		good = good && options->ticket;
	return good && (options->port || options->fd >= 0);
}

/* Does not outlive its parent, and has none of its files. */
static void be_peer(struct options *options)
{
	unsigned int after = STDERR_FILENO + 1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (options->port) {
		close_range(after, UINT_MAX, 0);
		options->fd = port_open(options->port, PORT_DEADLINE_MS);
		if (options->fd < 0) {
			dprintf(STDERR_FILENO, "iobmd-agent: no port %s\n",
				options->port);
			_exit(1);
		}
		return;
	}
	if ((unsigned int)options->fd > after)
		close_range(after, (unsigned int)options->fd - 1, 0);
	close_range((unsigned int)options->fd + 1, UINT_MAX, 0);
}

int main(int argc, char **argv)
{
	struct options options;
	bool sound = parse(argc, argv, &options);
	/* Words the kernel does not know end up in init's argv. */
	bool init = getpid() == 1 && !sound;

	/* One heap: memory used is memory the tests do not have. */
	mallopt(M_ARENA_MAX, 1);
	block_signals(init);
	if (init)
		be_init();
	if (!sound)
		return usage();
	if (options.mark)
		command(options.mark, options.program);
	if (options.ticket)
		be_peer(&options);
	if (options.program)
		relay(options.fd, options.ticket, options.program);
	if (options.spawn_fd >= 0)
		spawn_on_fd(options.spawn_fd);
	if (options.peer_fd >= 0)
		peer_on_fd(options.peer_fd);
	serve(options.fd, options.ticket, NULL);
	tend_children(false);
}
