// SPDX-License-Identifier: MIT
/*
 * The agent: pid 1 of the guest, or a plain process on the host.
 *
 *	agent			as pid 1: boot, then serve the port
 *	agent --fd N		serve the protocol on an inherited socket
 */
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
	struct link_noise noise;
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
static _Noreturn void tend_children(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGTERM);
	for (;;) {
		int signal = sigwaitinfo(&set, NULL);
		int pid;

		if (signal > 0 && signal != SIGCHLD)
			power_off();
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			shell_reaped(pid);
	}
}

static _Noreturn void be_init(void)
{
	bool shell;
	int port;

	boot_mounts();
	boot_modules();
	shell = boot_word("iobmd.shell");
	if (shell)
		shell_start();
	port = port_open(LINK_PORT_NAME, PORT_DEADLINE_MS);
	if (port < 0 && !shell)
		boot_failed("no port", LINK_PORT_NAME, ETIMEDOUT);
	if (port >= 0)
		serve(port, say_ready);
	tend_children();
}

static int usage(void)
{
	fprintf(stderr, "usage: agent --fd N   (N: an open stream socket)\n");
	return 2;
}

/* The number behind --fd, or -1. */
static int inherited_fd(int argc, char **argv)
{
	char *end;
	long fd;

	if (argc != 3 || strcmp(argv[1], "--fd"))
		return -1;
	fd = strtol(argv[2], &end, 10);
	return *end || end == argv[2] || fd < 0 || fd > INT_MAX ? -1 : (int)fd;
}

int main(int argc, char **argv)
{
	int fd = inherited_fd(argc, argv);
	/* Words the kernel does not know end up in init's argv. */
	bool init = getpid() == 1 && fd < 0;

	/* One heap: memory used is memory the tests do not have. */
	mallopt(M_ARENA_MAX, 1);
	block_signals(init);
	if (init)
		be_init();
	if (fd < 0)
		return usage();
	serve(fd, NULL);
	for (;;)
		pause();
}
