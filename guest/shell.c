// SPDX-License-Identifier: MIT
/*
 * A shell on the serial console, beside the link.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define BUSYBOX "/bin/busybox"
/* A shell that ends this fast, this often, has nobody to talk to. */
#define SHORT_LIFE_S 1
#define SHORT_LIVES_MAX 5

static pid_t shell_pid = -1;
static time_t started;
static int short_lives;

static time_t seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/*
 * /dev/console cannot become a controlling terminal (tty_io.c opens it as if
 * with O_NOCTTY); the device behind it can.  The last one named is the one
 * /dev/console means.
 */
static int open_console(void)
{
	char path[80] = "/dev/console";
	char names[64];
	FILE *active = fopen("/sys/class/tty/console/active", "re");

	if (active && fgets(names, sizeof(names), active)) {
		char *last;

		names[strcspn(names, "\n")] = '\0';
		last = strrchr(names, ' ');
		snprintf(path, sizeof(path), "/dev/%s",
			 last ? last + 1 : names);
	}
	if (active)
		fclose(active);
	return open(path, O_RDWR);
}

static _Noreturn void become_shell(int tty)
{
	static char *const argv[] = { "sh", "-i", NULL };
	static char *const envp[] = {
		"PATH=/bin:/sbin:/usr/bin:/usr/sbin",
		"HOME=/",
		"TERM=linux",
		"PS1=iobmd:\\w# ",
		NULL,
	};
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	ioctl(tty, TIOCSCTTY, 1);
	for (int to = STDIN_FILENO; to <= STDERR_FILENO; to++)
		dup2(tty, to);
	if (tty > STDERR_FILENO)
		close(tty);
	execve(BUSYBOX, argv, envp);
	dprintf(STDERR_FILENO, "iobmd-agent: %s: %s\n", BUSYBOX,
		strerror(errno));
	_exit(127);
}

void shell_start(void)
{
	int tty = open_console();

	if (tty < 0) {
		dprintf(STDERR_FILENO, "iobmd-agent: no console: %s\n",
			strerror(errno));
		return;
	}
	started = seconds();
	shell_pid = fork();
	if (shell_pid == 0)
		become_shell(tty);
	close(tty);
}

/* Called for every child that ended. */
void shell_reaped(int pid)
{
	if (pid != shell_pid)
		return;
	short_lives = seconds() - started <= SHORT_LIFE_S ? short_lives + 1 : 0;
	if (short_lives < SHORT_LIVES_MAX)
		shell_start();
	else
		dprintf(STDERR_FILENO, "iobmd-agent: the shell keeps ending\n");
}
