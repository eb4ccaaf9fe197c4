// SPDX-License-Identifier: MIT
/*
 * Scratch memory for system calls made on behalf of the host.
 *
 * The arena's last byte lies directly before an unmapped page, so a kernel that
 * writes past a buffer the host asked for gets -EFAULT instead of a neighbour's
 * bytes.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent.h"

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

/*
 * Is a payload of @length bytes, @before of which precede the relocs, what
 * @use says, and does an answer with @answer bytes before the window fit a
 * frame?  Sums are taken in 64 bits of 32-bit fields: they cannot wrap.
 */
bool arena_fits(const struct arena_use *use, uint64_t before, size_t length,
		uint64_t answer)
{
	uint64_t size = before +
			(uint64_t)use->relocs * sizeof(struct link_reloc) +
			use->filled;

	return size == length && use->size <= ARENA_MAX &&
	       use->filled <= use->size &&
	       (uint64_t)use->out_start + use->out_length <= use->size &&
	       answer + use->out_length <= LINK_PAYLOAD_MAX;
}

/* Targets may be one past the end: the address of an empty buffer. */
static bool relocate(const struct arena_use *use, const unsigned char *relocs,
		     uint64_t *args)
{
	for (uint32_t i = 0; i < use->relocs; i++) {
		struct link_reloc reloc;
		uint64_t address;

		memcpy(&reloc, relocs + i * sizeof(reloc), sizeof(reloc));
		if (reloc.target > use->size || reloc.reserved)
			return false;
		address = (uintptr_t)(use->start + reloc.target);
		if (reloc.kind == LINK_RELOC_ARG && args && reloc.place < 6)
			args[reloc.place] = address;
		else if (reloc.kind == LINK_RELOC_ARENA &&
			 (uint64_t)reloc.place + sizeof(address) <= use->size)
			memcpy(use->start + reloc.place, &address,
			       sizeof(address));
		else
			return false;
	}
	return true;
}

/*
 * Fill an arena that arena_fits() from what the payload has from @relocs on.
 * @args may be NULL: relocs cannot name an argument then.
 */
bool arena_lay_out(const struct arena *arena, struct arena_use *use,
		   const unsigned char *relocs, uint64_t *args)
{
	use->start = arena->end -
		     ((use->size + ARENA_ALIGN - 1) & ~(ARENA_ALIGN - 1));
	memcpy(use->start, relocs + use->relocs * sizeof(struct link_reloc),
	       use->filled);
	memset(use->start + use->filled, 0, use->size - use->filled);
	return relocate(use, relocs, args);
}

/* A large arena gives its pages back; the guest's memory is the test's. */
void arena_done(const struct arena_use *use)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t from = (uintptr_t)use->start & ~(page - 1);

	if (use->size > KEEP_BYTES)
		madvise((void *)from, (uintptr_t)use->start + use->size - from,
			MADV_DONTNEED);
}
