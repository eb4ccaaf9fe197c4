// SPDX-License-Identifier: MIT
/*
 * A command over SSH whose end is the host's to choose.
 *
 * Dropbear 2022.83 to 2024.86 closes a channel that was opened but not told
 * yet what to run when any other command of the connection ends just then, and
 * gives up altogether when it is told (check_close() in its common-channel.c;
 * mkj/dropbear#321).  So its children do not end by themselves: this process
 * stays between the server and a command, says on standard output that the
 * command is over and how, and waits to be killed, which the host asks for
 * while it opens nothing.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

static _Noreturn void become(char *const argv[])
{
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execv(*argv, argv);
	dprintf(STDERR_FILENO, "%s: %s\n", *argv, strerror(errno));
	_exit(127);
}

/*
 * @mark goes before the status, and is nothing the command would print.  The
 * command does not outlive this, nor this the server.
 */
_Noreturn void command(const char *mark, char *const argv[])
{
	int status;
	pid_t pid;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pid = fork();
	if (!pid)
		become(argv);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		_exit(126);
	dprintf(STDOUT_FILENO, "%s%d.", mark,
		WIFEXITED(status) ? WEXITSTATUS(status) :
				    128 + WTERMSIG(status));
	for (;;)
		pause();
}
