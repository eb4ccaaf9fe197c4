// SPDX-License-Identifier: GPL-2.0
#include <linux/bits.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <asm/cpufeature.h>
#include <asm/msr-index.h>

#include "compat.h"
#include "iobmd_memtype.h"

/* The PAT before anybody writes it, and on CPUs without one. */
#define PAT_AT_RESET 0x0007040600070406ull

static u64 pat_register = PAT_AT_RESET;

/** iobmd_memtype_init - learn this machine's PAT; it is fixed after boot */
void iobmd_memtype_init(void)
{
	if (boot_cpu_has(X86_FEATURE_PAT))
		iobmd_rdmsr(MSR_IA32_CR_PAT, pat_register);
}

/* What a leaf entry's three cache bits select (SDM 3A, "Programming the PAT"). */
static enum iobmd_memory_type type_selected(pteval_t entry, pteval_t pat_bit)
{
	unsigned int slot = (entry & _PAGE_PWT ? 1 : 0) |
			    (entry & _PAGE_PCD ? 2 : 0) |
			    (entry & pat_bit ? 4 : 0);

	switch ((pat_register >> (8 * slot)) & 7) {
	case 1:
		return IOBMD_TYPE_WC;
	case 4:
		return IOBMD_TYPE_WT;
	case 6:
		return IOBMD_TYPE_WB;
	case 7:
		return IOBMD_TYPE_UC_MINUS;
	default: /* 0 is UC, 5 is WP */
		return IOBMD_TYPE_OTHER;
	}
}

static pteval_t cache_bits(enum iobmd_memory_type type)
{
	static const enum page_cache_mode modes[] = {
		[IOBMD_TYPE_WB] = _PAGE_CACHE_MODE_WB,
		[IOBMD_TYPE_WC] = _PAGE_CACHE_MODE_WC,
		[IOBMD_TYPE_UC_MINUS] = _PAGE_CACHE_MODE_UC_MINUS,
		[IOBMD_TYPE_WT] = _PAGE_CACHE_MODE_WT,
	};

	return cachemode2protval(modes[type]);
}

/**
 * iobmd_memtype_available - the types this machine can map memory with
 *
 * Where the PAT lacks a type the kernel hands out the bits of another one and
 * says nothing (init_cache_modes() in arch/x86/mm/pat/memtype.c), so the bits
 * are looked up in the register.
 *
 * Return: a bit per enum iobmd_memory_type.
 */
u32 iobmd_memtype_available(void)
{
	enum iobmd_memory_type type;
	u32 available = 0;

	for (type = IOBMD_TYPE_WB; type < IOBMD_TYPE_OTHER; type++)
		if (type_selected(cache_bits(type), _PAGE_PAT) == type)
			available |= BIT(type);
	return available;
}

/**
 * iobmd_memtype_retyped - the same protection bits with another memory type
 * @protection: of a mapping with small pages
 * @type: an available type
 *
 * The old type's bits go first: or-ing one type onto another makes a third.
 *
 * Return: @protection with @type.
 */
pgprot_t iobmd_memtype_retyped(pgprot_t protection, enum iobmd_memory_type type)
{
	return __pgprot((pgprot_val(protection) & ~_PAGE_CACHE_MASK) |
			cache_bits(type));
}

/**
 * iobmd_memtype_pgprot - protection bits of a kernel mapping
 * @type: an available type
 *
 * Return: PAGE_KERNEL with @type.
 */
pgprot_t iobmd_memtype_pgprot(enum iobmd_memory_type type)
{
	return iobmd_memtype_retyped(PAGE_KERNEL, type);
}

/*
 * The type of the leaf entries from @leaf on, which map [@at, @end): one entry,
 * or those up to the end of its page table, where they lie side by side.
 */
static enum iobmd_memory_type type_of_table(const pte_t *leaf,
					    unsigned int level,
					    unsigned long at, unsigned long end)
{
	pteval_t pat_bit = level == PG_LEVEL_4K ? _PAGE_PAT : _PAGE_PAT_LARGE;
	enum iobmd_memory_type first = IOBMD_TYPE_OTHER;

	at &= page_level_mask(level);
	for (; at < end; at += page_level_size(level), leaf++) {
		pteval_t entry = pte_val(READ_ONCE(*leaf));
		enum iobmd_memory_type type;

		if (!(entry & _PAGE_PRESENT))
			return IOBMD_TYPE_OTHER;
		type = type_selected(entry, pat_bit);
		if (first == IOBMD_TYPE_OTHER)
			first = type;
		if (type != first || type == IOBMD_TYPE_OTHER)
			return IOBMD_TYPE_OTHER;
	}
	return first;
}

/**
 * iobmd_memtype_of - the memory type of a kernel address range
 * @address: first byte
 * @length: bytes
 *
 * Reads every leaf entry.  May sleep.
 *
 * Return: the type, or IOBMD_TYPE_OTHER if it is not the same everywhere, not
 * one of ours, or something is not mapped.
 */
enum iobmd_memory_type iobmd_memtype_of(const void *address, u64 length)
{
	enum iobmd_memory_type first = IOBMD_TYPE_OTHER;
	unsigned long at = (unsigned long)address;
	unsigned long end = at + length;

	while (at < end) {
		enum iobmd_memory_type type;
		unsigned long next;
		unsigned int level;
		pte_t *leaf;

		leaf = lookup_address(at, &level);
		if (!leaf)
			return IOBMD_TYPE_OTHER;
		/* Small pages: all that the table maps, found by one walk. */
		next = level == PG_LEVEL_4K ?
			       min(end, (at & PMD_MASK) + PMD_SIZE) :
			       (at & page_level_mask(level)) +
				       page_level_size(level);
		type = type_of_table(leaf, level, at, min(end, next));
		if (first == IOBMD_TYPE_OTHER)
			first = type;
		if (type != first || type == IOBMD_TYPE_OTHER)
			return IOBMD_TYPE_OTHER;
		at = next;
		cond_resched();
	}
	return first;
}
