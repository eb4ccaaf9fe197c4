// SPDX-License-Identifier: MIT
/*
 * What pid 1 does before it can serve: file systems, modules, an orderly end.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

#define MODULE_LIST "/etc/iobmd/modules"
/* linux/module.h: the kernel unpacks a .ko.xz or .ko.zst itself. */
#define MODULE_INIT_COMPRESSED_FILE 4
#define DESCRIPTORS_MAX 65536

/* QEMU runs with -no-reboot: should power-off fail, a dead init panics it. */
_Noreturn void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

_Noreturn void boot_failed(const char *what, const char *detail, int error)
{
	dprintf(STDERR_FILENO, "iobmd-agent: %s: %s: %s (errno %d)\n", what,
		detail, strerror(error), error);
	power_off();
}

/* The initramfs may have no console node; devtmpfs has. */
static void console_on_standard_streams(void)
{
	int fd;

	if (fcntl(STDERR_FILENO, F_GETFD) >= 0)
		return;
	fd = open("/dev/console", O_RDWR | O_NOCTTY);
	for (int to = STDIN_FILENO; fd >= 0 && to <= STDERR_FILENO; to++)
		if (fd != to)
			dup2(fd, to);
	if (fd > STDERR_FILENO)
		close(fd);
}

/*
 * Every buffer of a test is a descriptor of the agent, and ten thousand of them
 * are to live at once; the kernel starts init with 1024 (INR_OPEN_CUR).  The
 * table grows with use only.  Should it fail, the calls that need more say so.
 */
void boot_limits(void)
{
	const struct rlimit open_files = { DESCRIPTORS_MAX, DESCRIPTORS_MAX };

	setrlimit(RLIMIT_NOFILE, &open_files);
}

void boot_mounts(void)
{
	static const struct {
		const char *type, *at;
		unsigned long flags;
	} list[] = {
		{ "devtmpfs", "/dev", MS_NOSUID },
		{ "proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "tmpfs", "/tmp", MS_NOSUID | MS_NODEV },
	};

	for (size_t i = 0; i < sizeof(list) / sizeof(*list); i++) {
		mkdir(list[i].at, 0755);
		/* EBUSY: CONFIG_DEVTMPFS_MOUNT has been here. */
		if (mount(list[i].type, list[i].at, list[i].type, list[i].flags,
			  NULL) &&
		    errno != EBUSY)
			boot_failed("mount", list[i].at, errno);
		if (i == 0)
			console_on_standard_streams();
	}
}

static void load(char *line)
{
	char shown[256];
	char *params = strpbrk(line, " \t");
	size_t length;
	int flags;
	int fd;

	snprintf(shown, sizeof(shown), "%.*s", (int)sizeof(shown) - 1, line);
	if (params)
		*params++ = '\0';
	length = strlen(line);
	flags = length > 3 && !strcmp(line + length - 3, ".ko") ?
			0 :
			MODULE_INIT_COMPRESSED_FILE;
	fd = open(line, O_RDONLY | O_CLOEXEC);
	if (fd < 0 ||
	    syscall(SYS_finit_module, fd, params ? params : "", flags))
		boot_failed("load module", shown, errno);
	close(fd);
}

void boot_modules(void)
{
	char line[4096];
	FILE *list = fopen(MODULE_LIST, "re");

	if (!list && errno == ENOENT)
		return; /* everything is built in */
	if (!list)
		boot_failed("open", MODULE_LIST, errno);
	while (fgets(line, sizeof(line), list)) {
		line[strcspn(line, "\n")] = '\0';
		if (*line)
			load(line);
	}
	fclose(list);
}

/* Is @word one of the words of the kernel command line? */
bool boot_word(const char *word)
{
	char text[4096];
	char *rest = text;
	char *next;
	bool found = false;
	FILE *file = fopen("/proc/cmdline", "re");

	if (!file)
		return false;
	if (!fgets(text, sizeof(text), file))
		*text = '\0';
	fclose(file);
	while (!found && (next = strsep(&rest, " \n")))
		found = !strcmp(next, word);
	return found;
}
