// SPDX-License-Identifier: MIT
/*
 * LINK_SPAWN: a program of the guest, on a port of its own or on none.
 *
 * A program without a port is a child of the agent.  With one the child is a
 * relay (relay.c), which runs the agent's own binary and has the program as
 * its child.  Either way the agent remembers how it ended.
 */
#define _GNU_SOURCE /* addclosefrom_np, POSIX_SPAWN_SETSID */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

/* How many are remembered; one that has ended makes room when it has to. */
#define REMEMBERED 64
/* More is no command line; execve() has its own limit on their bytes. */
#define STRINGS_MAX 4096
/* A relay only has to be torn down. */
#define END_DEADLINE_S 10
/* What a relay's own command line adds: its words, the two last a NULL. */
#define RELAY_WORDS 6

struct child {
	pid_t pid; /* 0: free */
	uint64_t number; /* in order of start */
	bool ended;
	uint32_t status;
	char port[sizeof(((struct link_spawn *)0)->port)];
};

/* A request with its strings taken apart; argv has room in front. */
struct order {
	struct link_spawn ask;
	char **words; /* RELAY_WORDS unused ones, argv, NULL, envp, NULL */
	char **argv;
	char **envp;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t ended;
	struct child all[REMEMBERED];
	uint64_t started;
	char fd[12]; /* stands for every port, outside a guest */
} children = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.ended = PTHREAD_COND_INITIALIZER,
};

void spawn_on_fd(int fd)
{
	snprintf(children.fd, sizeof(children.fd), "%d", fd);
}

/* Locked. */
static struct child *find(pid_t pid, bool ended)
{
	for (size_t i = 0; i < REMEMBERED; i++)
		if (children.all[i].pid == pid &&
		    children.all[i].ended == ended)
			return &children.all[i];
	return NULL;
}

/* Called for every child that ended. */
void spawn_reaped(int pid, int status)
{
	struct child *child;

	pthread_mutex_lock(&children.lock);
	child = find(pid, false);
	if (child) {
		child->ended = true;
		child->status = WIFEXITED(status) ?
					(uint32_t)WEXITSTATUS(status) :
					128u + (uint32_t)WTERMSIG(status);
		pthread_cond_broadcast(&children.ended);
	}
	pthread_mutex_unlock(&children.lock);
}

/* Locked: a free place, or that of the one that was started first and ended. */
static struct child *place(void)
{
	struct child *oldest = NULL;

	for (size_t i = 0; i < REMEMBERED; i++) {
		struct child *child = &children.all[i];

		if (!child->pid)
			return child;
		if (child->ended && (!oldest || child->number < oldest->number))
			oldest = child;
	}
	return oldest;
}

/*
 * Locked.  A port is open once at a time (virtio_console.c:port_fops_open).
 * False when whoever has it does not end before the deadline.
 */
static bool free_port(const char *port)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += END_DEADLINE_S;
	for (size_t i = 0; *port && i < REMEMBERED; i++) {
		struct child *child = &children.all[i];

		if (!child->pid || child->ended || strcmp(child->port, port))
			continue;
		kill(child->pid, SIGKILL);
		while (!child->ended)
			if (pthread_cond_timedwait(&children.ended,
						   &children.lock, &until))
				return false;
	}
	return true;
}

/* The relay opens the port, which may take long, and does the rest. */
static void put_relay_before(struct order *order, char *number, size_t size)
{
	static char name[] = "iobmd-relay";
	static char on_port[] = "--port", on_fd[] = "--fd";
	static char with[] = "--ticket", end[] = "--";
	char **words = order->words;

	snprintf(number, size, "%#llx", (unsigned long long)order->ask.ticket);
	words[0] = name;
	words[1] = *children.fd ? on_fd : on_port;
	words[2] = *children.fd ? children.fd : order->ask.port;
	words[3] = with;
	words[4] = number;
	words[5] = end;
}

/* Inherited are three standard streams and no signal mask. */
static int run(pid_t *pid, struct order *order)
{
	const char *log = *order->ask.log ? order->ask.log : "/dev/console";
	bool relayed = *order->ask.port;
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attributes;
	char number[20];
	sigset_t signals;
	int error;

	/* The relay would only find out where nobody looks. */
	if (access(*order->argv, X_OK))
		return errno;
	if (relayed)
		put_relay_before(order, number, sizeof(number));
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null",
					 O_RDONLY, 0);
	posix_spawn_file_actions_addopen(
		&files, STDOUT_FILENO, log,
		O_WRONLY | O_APPEND | O_CREAT | O_NOCTTY, 0600);
	posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
	if (!relayed) /* the relay closes by itself what it does not need */
		posix_spawn_file_actions_addclosefrom_np(&files,
							 STDERR_FILENO + 1);
	posix_spawnattr_init(&attributes);
	sigfillset(&signals);
	posix_spawnattr_setsigdefault(&attributes, &signals);
	if (!relayed) /* the relay wants none, as the agent */
		sigemptyset(&signals);
	posix_spawnattr_setsigmask(&attributes, &signals);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK |
						      POSIX_SPAWN_SETSIGDEF |
						      POSIX_SPAWN_SETSID);
	error = posix_spawn(pid, relayed ? "/proc/self/exe" : *order->argv,
			    &files, &attributes,
			    relayed ? order->words : order->argv, order->envp);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&files);
	return error;
}

/* Its end cannot be reaped before it is remembered: that takes the lock. */
static void start(struct order *order, struct link_spawned *answer)
{
	struct child *child;

	pthread_mutex_lock(&children.lock);
	if (!free_port(order->ask.port)) {
		answer->error = EBUSY;
	} else if (!(child = place())) {
		answer->error = EAGAIN;
	} else {
		pid_t pid = 0;

		answer->error = run(&pid, order);
		if (!answer->error) {
			*child = (struct child){
				.pid = pid,
				.number = children.started++,
			};
			memcpy(child->port, order->ask.port,
			       sizeof(child->port));
			answer->pid = (uint32_t)pid;
		}
	}
	pthread_mutex_unlock(&children.lock);
}

/* Process ids come again: the living one is meant, else the last. */
static void tell(pid_t pid, struct link_spawned *answer)
{
	struct child *child;

	pthread_mutex_lock(&children.lock);
	child = find(pid, false);
	for (size_t i = 0; !child && i < REMEMBERED; i++)
		if (children.all[i].pid == pid)
			child = &children.all[i];
	if (child) {
		answer->pid = (uint32_t)pid;
		answer->ended = child->ended;
		answer->status = child->status;
	} else {
		answer->error = ESRCH;
	}
	pthread_mutex_unlock(&children.lock);
}

static bool is_string(const char *text, size_t room)
{
	return memchr(text, '\0', room);
}

static bool consistent(const struct link_spawn *ask, size_t strings)
{
	if (ask->reserved || !is_string(ask->port, sizeof(ask->port)) ||
	    !is_string(ask->log, sizeof(ask->log)))
		return false;
	if (ask->pid)
		return !ask->argc && !ask->envc && !strings && !ask->ticket;
	return ask->argc && ask->argc <= STRINGS_MAX &&
	       ask->envc <= STRINGS_MAX &&
	       (*ask->port ? (ask->ticket & 0xff) : !ask->ticket);
}

/* Do exactly the strings that were promised lie in [at, end)? */
static bool take_apart(struct order *order, char *at, const char *end)
{
	size_t words = order->ask.argc + order->ask.envc;
	char **to = order->argv;

	for (size_t i = 0; i < words; i++) {
		size_t size = (size_t)(end - at);

		if (i == order->ask.argc)
			to = order->envp;
		if (!is_string(at, size))
			return false;
		*to++ = at;
		at += strlen(at) + 1;
	}
	return at == end && **order->argv;
}

enum link_status spawn_program(const struct frame *in, size_t length,
			       struct frame *out, size_t *out_length)
{
	enum link_status status = LINK_MALFORMED;
	struct link_spawned answer = { 0 };
	struct order order = { 0 };
	char *strings;

	if (length < sizeof(order.ask))
		return LINK_MALFORMED;
	memcpy(&order.ask, in->payload, sizeof(order.ask));
	length -= sizeof(order.ask);
	if (!consistent(&order.ask, length))
		return LINK_MALFORMED;
	if (order.ask.pid) {
		tell((pid_t)order.ask.pid, &answer);
		status = LINK_OK;
	} else {
		order.words = calloc(RELAY_WORDS + order.ask.argc + 1 +
					     order.ask.envc + 1,
				     sizeof(*order.words));
		strings = malloc(length);
		if (!order.words || !strings) {
			status = LINK_NO_MEMORY;
		} else {
			order.argv = order.words + RELAY_WORDS;
			order.envp = order.argv + order.ask.argc + 1;
			memcpy(strings, in->payload + sizeof(order.ask),
			       length);
			if (take_apart(&order, strings, strings + length)) {
				start(&order, &answer);
				status = LINK_OK;
			}
		}
		free(strings);
		free(order.words);
	}
	memcpy(out->payload, &answer, sizeof(answer));
	*out_length = status == LINK_OK ? sizeof(answer) : 0;
	return status;
}
