// SPDX-License-Identifier: MIT
/*
 * Which system calls the agent does not make for the host.
 *
 * Refused is what would end the agent, fork it, or change it under its own
 * feet: process and thread creation, exec, signals to itself, handlers, the
 * heap, per-thread identity (workers must stay interchangeable), the link's
 * own descriptor, powering off (the host has QEMU for that).
 *
 * Memory calls are allowed on what the host itself mapped through this link:
 * such mappings are remembered, and munmap, mprotect and their kin must stay
 * inside one of them.  MAP_FIXED is refused, MAP_FIXED_NOREPLACE is not.
 *
 * Not caught: a number the host passes as a pointer and aims at the agent's
 * own data.  The arena and the host's mappings are the places to point to.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

#define MAPPINGS_MAX 1024

struct mapping {
	uint64_t start;
	uint64_t end;
};

static struct {
	pthread_mutex_t lock;
	struct mapping all[MAPPINGS_MAX];
	size_t used;
	size_t promised; /* slots for calls that are under way */
} mappings = { .lock = PTHREAD_MUTEX_INITIALIZER };

static uint64_t page_up(uint64_t size)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	return (size + page - 1) & ~(page - 1);
}

/* Locked: the mapping that holds all of [start, end). */
static struct mapping *holder(uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < mappings.used; i++) {
		struct mapping *m = &mappings.all[i];

		if (m->start <= start && start < end && end <= m->end)
			return m;
	}
	return NULL;
}

/* The kernel answers -EINVAL to an address inside a page and unmaps nothing. */
static bool on_a_page(uint64_t address)
{
	return address == page_up(address);
}

static bool room_for_one(void)
{
	return mappings.used + mappings.promised < MAPPINGS_MAX;
}

static void remember(uint64_t start, uint64_t size)
{
	struct mapping new = { start, start + page_up(size) };

	pthread_mutex_lock(&mappings.lock);
	if (mappings.used < MAPPINGS_MAX)
		mappings.all[mappings.used++] = new;
	pthread_mutex_unlock(&mappings.lock);
}

static bool hosts_own(uint64_t start, uint64_t size)
{
	bool own;

	pthread_mutex_lock(&mappings.lock);
	own = holder(start, start + page_up(size));
	pthread_mutex_unlock(&mappings.lock);
	return own;
}

/* A mapping in the middle of which is unmapped becomes two. */
static enum link_status forget(uint64_t start, uint64_t size)
{
	enum link_status status = LINK_OK;
	uint64_t end = start + page_up(size);
	struct mapping *m;

	pthread_mutex_lock(&mappings.lock);
	m = holder(start, end);
	if (!m) {
		status = LINK_REFUSED;
	} else if (m->start < start && end < m->end) {
		if (room_for_one()) {
			mappings.all[mappings.used++] =
				(struct mapping){ end, m->end };
			m->end = start;
		} else {
			status = LINK_NO_MEMORY;
		}
	} else if (m->start < start) {
		m->end = start;
	} else if (end < m->end) {
		m->start = end;
	} else {
		*m = mappings.all[--mappings.used];
	}
	pthread_mutex_unlock(&mappings.lock);
	return status;
}

static enum link_status promise(void)
{
	enum link_status status = LINK_NO_MEMORY;

	pthread_mutex_lock(&mappings.lock);
	if (room_for_one()) {
		mappings.promised++;
		status = LINK_OK;
	}
	pthread_mutex_unlock(&mappings.lock);
	return status;
}

static bool ends_or_changes_agent(uint64_t number)
{
	switch (number) {
	/* another process, another program, the end */
	case SYS_fork:
	case SYS_vfork:
	case SYS_clone:
	case SYS_clone3:
	case SYS_execve:
	case SYS_execveat:
	case SYS_exit:
	case SYS_exit_group:
	case SYS_reboot:
	case SYS_kexec_load:
	case SYS_kexec_file_load:
	/* signals and what runs on them */
	case SYS_rt_sigaction:
	case SYS_rt_sigprocmask:
	case SYS_rt_sigreturn:
	case SYS_rt_sigsuspend:
	case SYS_sigaltstack:
	case SYS_ptrace:
	case SYS_seccomp:
	case SYS_prctl:
	/* the agent's memory and thread state */
	case SYS_brk:
	case SYS_mremap:
	case SYS_remap_file_pages:
	case SYS_shmat:
	case SYS_shmdt:
	case SYS_munlockall:
	case SYS_arch_prctl:
	case SYS_modify_ldt:
	case SYS_set_thread_area:
	case SYS_set_tid_address:
	case SYS_set_robust_list:
	case SYS_rseq:
	case SYS_userfaultfd:
	/* per-thread: the next call may run on another worker */
	case SYS_unshare:
	case SYS_setns:
	case SYS_personality:
	case SYS_setuid:
	case SYS_setgid:
	case SYS_setreuid:
	case SYS_setregid:
	case SYS_setresuid:
	case SYS_setresgid:
	case SYS_setgroups:
	case SYS_setfsuid:
	case SYS_setfsgid:
	case SYS_capset:
		return true;
	default:
		return false;
	}
}

/* Would a signal sent to @pid reach the agent?  Groups and "all" would. */
static bool is_agent(uint64_t pid)
{
	return (int32_t)pid <= 0 || (int32_t)pid == getpid();
}

static bool on_link(uint64_t number, const uint64_t args[6], uint32_t fd)
{
	switch (number) {
	case SYS_dup2:
	case SYS_dup3:
		return (uint32_t)args[0] == fd || (uint32_t)args[1] == fd;
	case SYS_close_range:
		return (uint32_t)args[0] <= fd && fd <= (uint32_t)args[1];
	case SYS_close:
	case SYS_dup:
	case SYS_fcntl:
	case SYS_ioctl:
	case SYS_read:
	case SYS_readv:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_sendmsg:
	case SYS_sendto:
	case SYS_setsockopt:
	case SYS_shutdown:
	case SYS_write:
	case SYS_writev:
		return (uint32_t)args[0] == fd;
	default:
		return false;
	}
}

static bool limits_agent(uint64_t number, const uint64_t args[6])
{
	if (number == SYS_setrlimit)
		return args[0] == RLIMIT_CPU;
	return number == SYS_prlimit64 && args[1] == RLIMIT_CPU && args[2];
}

static bool signals_agent(uint64_t number, const uint64_t args[6])
{
	switch (number) {
	case SYS_kill:
	case SYS_tkill:
	case SYS_tgkill:
	case SYS_rt_sigqueueinfo:
	case SYS_rt_tgsigqueueinfo:
		return is_agent(args[0]);
	default:
		return false;
	}
}

static bool maps_over_agent(uint64_t number, const uint64_t args[6])
{
	return number == SYS_mmap && args[3] & (MAP_FIXED | MAP_GROWSDOWN);
}

/* Whatever has been mapped before; changes nothing. */
bool policy_forbids(uint64_t number, const uint64_t args[6], int link_fd)
{
	return ends_or_changes_agent(number) ||
	       on_link(number, args, (uint32_t)link_fd) ||
	       limits_agent(number, args) || signals_agent(number, args) ||
	       maps_over_agent(number, args);
}

/* After LINK_OK the call has to be made and policy_after() to be told. */
enum link_status policy_before(uint64_t number, const uint64_t args[6],
			       int link_fd)
{
	if (policy_forbids(number, args, link_fd))
		return LINK_REFUSED;
	switch (number) {
	case SYS_mmap:
		return promise();
	case SYS_munmap:
		return on_a_page(args[0]) ? forget(args[0], args[1]) : LINK_OK;
	case SYS_mprotect:
	case SYS_pkey_mprotect:
	case SYS_madvise:
	case SYS_mbind:
		return hosts_own(args[0], args[1]) ? LINK_OK : LINK_REFUSED;
	default:
		return LINK_OK;
	}
}

void policy_after(uint64_t number, const uint64_t args[6], int64_t result)
{
	bool failed = result < 0 && result >= -4095;

	if (number == SYS_mmap) {
		pthread_mutex_lock(&mappings.lock);
		mappings.promised--;
		pthread_mutex_unlock(&mappings.lock);
		if (!failed)
			remember((uint64_t)result, args[1]);
	} else if (number == SYS_munmap && failed && on_a_page(args[0])) {
		remember(args[0], args[1]);
	}
}
