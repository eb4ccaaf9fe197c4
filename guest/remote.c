// SPDX-License-Identifier: MIT
/*
 * LINK_SYSCALL: one system call on behalf of the host.
 *
 * The request is checked as a whole before anything happens.
 */
#include <errno.h>
#include <string.h>

#include "agent.h"

/* x86-64 has no system call from here on; the kernel would answer the same. */
#define NUMBERS_END 1024

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

/* A call that policy_before() let pass. */
int64_t remote_make(uint64_t number, const uint64_t args[6])
{
	int64_t result = number < NUMBERS_END ? call(number, args) : -ENOSYS;

	policy_after(number, args, result);
	return result;
}

enum link_status remote_call(const struct arena *arena, const struct frame *in,
			     size_t length, int link_fd, struct frame *out,
			     size_t *out_length)
{
	struct link_syscall_result answer;
	enum link_status status;
	struct arena_use use;
	struct link_syscall s;

	if (length < sizeof(s))
		return LINK_MALFORMED;
	memcpy(&s, in->payload, sizeof(s));
	use = (struct arena_use){
		.size = s.arena,
		.filled = s.filled,
		.relocs = s.relocs,
		.out_start = s.out_start,
		.out_length = s.out_length,
	};
	if (s.reserved || !arena_fits(&use, sizeof(s), length, sizeof(answer)))
		return LINK_MALFORMED;
	if (!arena_lay_out(arena, &use, in->payload + sizeof(s), s.args))
		return LINK_MALFORMED;
	status = policy_before(s.number, s.args, link_fd);
	if (status != LINK_OK)
		return status;
	answer.result = remote_make(s.number, s.args);
	memcpy(out->payload, &answer, sizeof(answer));
	memcpy(out->payload + sizeof(answer), use.start + use.out_start,
	       use.out_length);
	*out_length = sizeof(answer) + use.out_length;
	arena_done(&use);
	return LINK_OK;
}
