// SPDX-License-Identifier: MIT
/*
 * Finding the virtio-serial port by its name.
 *
 * Ports appear asynchronously and are numbered in no order worth relying on.
 * The driver sends a uevent when a port has got its name
 * (virtio_console.c:handle_control_message), so nothing here polls.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define PORTS "/sys/class/virtio-ports"
/* Without uevents (CONFIG_NET=n) look again this often. */
#define RESCAN_MS 5

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static int uevents(void)
{
	struct sockaddr_nl all = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
			NETLINK_KOBJECT_UEVENT);

	if (fd >= 0 && bind(fd, (struct sockaddr *)&all, sizeof(all))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Sleep until something changed; drop what the uevents say. */
static void wait_for_change(int fd, int64_t left_ms)
{
	struct pollfd socket = { .fd = fd, .events = POLLIN };
	char text[4096];

	if (fd < 0 && left_ms > RESCAN_MS)
		left_ms = RESCAN_MS;
	poll(&socket, 1, (int)left_ms);
	while (fd >= 0 && recv(fd, text, sizeof(text), 0) > 0)
		;
}

static bool is_named(const char *port, const char *name)
{
	char path[512];
	char text[256] = "";
	FILE *file;

	snprintf(path, sizeof(path), PORTS "/%s/name", port);
	file = fopen(path, "re");
	if (!file)
		return false;
	if (!fgets(text, sizeof(text), file))
		*text = '\0';
	fclose(file);
	text[strcspn(text, "\n")] = '\0';
	return !strcmp(text, name);
}

static int open_named(const char *name)
{
	char path[512];
	struct dirent *entry;
	int fd = -1;
	DIR *ports = opendir(PORTS);

	while (ports && fd < 0 && (entry = readdir(ports))) {
		if (*entry->d_name == '.' || !is_named(entry->d_name, name))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	if (ports)
		closedir(ports);
	return fd;
}

/*
 * The name arrives before the word that the host's end is open; until then a
 * read would return 0, which later means the host has gone.  No event tells
 * (poll has no "no longer POLLHUP"), so this one wait looks again.
 */
static bool host_connects(int fd, int64_t deadline)
{
	struct pollfd port = { .fd = fd, .events = POLLIN };

	while (poll(&port, 1, 0) >= 0) {
		if (!(port.revents & POLLHUP))
			return true;
		if (now_ms() >= deadline)
			break;
		poll(NULL, 0, 1);
	}
	return false;
}

int port_open(const char *name, int deadline_ms)
{
	int64_t deadline = now_ms() + deadline_ms;
	int events = uevents();
	int fd;

	for (;;) {
		int64_t left = deadline - now_ms();

		fd = open_named(name);
		if (fd >= 0 || left <= 0)
			break;
		wait_for_change(events, left);
	}
	if (events >= 0)
		close(events);
	if (fd >= 0 && !host_connects(fd, deadline)) {
		close(fd);
		fd = -1;
	}
	return fd;
}
