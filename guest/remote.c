// SPDX-License-Identifier: MIT
/*
 * LINK_SYSCALL: one system call on behalf of the host.
 *
 * The request is checked as a whole before anything happens.  The arena's last
 * byte lies directly before an unmapped page, so a kernel that writes past a
 * buffer the host asked for gets -EFAULT instead of a neighbour's bytes.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent.h"

/* x86-64 has no system call from here on; the kernel would answer the same. */
#define NUMBERS_END 1024
#define ARENA_MAX LINK_PAYLOAD_MAX
/* The arena starts on a boundary of a uint64_t, at the cost of some slack. */
#define ARENA_ALIGN 8u

bool arena_map(struct arena *arena)
{
	size_t guard = (size_t)sysconf(_SC_PAGESIZE);
	unsigned char *at = mmap(NULL, ARENA_MAX + guard, PROT_NONE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				 -1, 0);

	if (at == MAP_FAILED || mprotect(at, ARENA_MAX, PROT_READ | PROT_WRITE))
		return false;
	arena->end = at + ARENA_MAX;
	return true;
}

static int64_t call(uint64_t number, const uint64_t a[6])
{
	/* Loaded first: instrumented loads are calls, which clobber these. */
	const uint64_t a3 = a[3], a4 = a[4], a5 = a[5];
	const uint64_t a0 = a[0], a1 = a[1], a2 = a[2];
	register uint64_t r10 __asm__("r10") = a3;
	register uint64_t r8 __asm__("r8") = a4;
	register uint64_t r9 __asm__("r9") = a5;
	int64_t result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a0), "S"(a1), "d"(a2), "r"(r10),
			   "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* Sums are taken in 64 bits of 32-bit fields: they cannot wrap. */
static bool consistent(const struct link_syscall *s, size_t length)
{
	uint64_t size = sizeof(*s);

	if (length < size || s->reserved)
		return false;
	size += (uint64_t)s->relocs * sizeof(struct link_reloc) + s->filled;
	return size == length && s->arena <= ARENA_MAX &&
	       s->filled <= s->arena &&
	       (uint64_t)s->out_start + s->out_length <= s->arena &&
	       s->out_length <=
		       LINK_PAYLOAD_MAX - sizeof(struct link_syscall_result);
}

/* Targets may be one past the end: the address of an empty buffer. */
static bool relocate(struct link_syscall *s, const unsigned char *relocs,
		     unsigned char *arena)
{
	for (uint32_t i = 0; i < s->relocs; i++) {
		struct link_reloc reloc;
		uint64_t address;

		memcpy(&reloc, relocs + i * sizeof(reloc), sizeof(reloc));
		if (reloc.target > s->arena || reloc.reserved)
			return false;
		address = (uintptr_t)(arena + reloc.target);
		if (reloc.kind == LINK_RELOC_ARG && reloc.place < 6)
			s->args[reloc.place] = address;
		else if (reloc.kind == LINK_RELOC_ARENA &&
			 (uint64_t)reloc.place + sizeof(address) <= s->arena)
			memcpy(arena + reloc.place, &address, sizeof(address));
		else
			return false;
	}
	return true;
}

/* A large arena gives its pages back; the guest's memory is the test's. */
static void trim(unsigned char *start, size_t size)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t from = (uintptr_t)start & ~(page - 1);

	if (size > KEEP_BYTES)
		madvise((void *)from, (uintptr_t)start + size - from,
			MADV_DONTNEED);
}

enum link_status remote_call(const struct arena *arena, const struct frame *in,
			     size_t length, int link_fd, struct frame *out,
			     size_t *out_length)
{
	struct link_syscall_result answer;
	enum link_status status;
	struct link_syscall s;
	const unsigned char *relocs = in->payload + sizeof(s);
	unsigned char *start;

	memcpy(&s, in->payload, length < sizeof(s) ? length : sizeof(s));
	if (!consistent(&s, length))
		return LINK_MALFORMED;
	start = arena->end - ((s.arena + ARENA_ALIGN - 1) & ~(ARENA_ALIGN - 1));
	memcpy(start, relocs + s.relocs * sizeof(struct link_reloc), s.filled);
	memset(start + s.filled, 0, s.arena - s.filled);
	if (!relocate(&s, relocs, start))
		return LINK_MALFORMED;
	status = policy_before(s.number, s.args, link_fd);
	if (status != LINK_OK)
		return status;
	answer.result = s.number < NUMBERS_END ? call(s.number, s.args) :
						 -ENOSYS;
	policy_after(s.number, s.args, answer.result);
	memcpy(out->payload, &answer, sizeof(answer));
	memcpy(out->payload + sizeof(answer), start + s.out_start,
	       s.out_length);
	*out_length = sizeof(answer) + s.out_length;
	trim(start, s.arena);
	return LINK_OK;
}
