// SPDX-License-Identifier: GPL-2.0
#include <linux/irqflags.h>
#include <linux/printk.h>
#include <linux/ptrace.h>

#include "dma_ledger_detour.h"
#include "dma_ledger_enter.h"
#include "dma_ledger_leave.h"
#include "dma_ledger_probes.h"

/*
 * A function that is watched.  One that begins something is recorded when it
 * returns, one that ends something when it is called, so that no address is
 * handed out again before its end is in the ring.
 */
struct watch {
	const char *names[2];
	u16 kind;
	ledger_enter_fn *enter;
	ledger_leave_fn *leave;
	/* NULL for all calls */
	ledger_wanted_fn *wanted;
	ledger_function *original;
};

/* Only some of its calls may be of interest. */
#define BEGINS_IF(_wanted, _kind, _name, _enter, _leave)            \
	{                                                           \
		.names = { _name }, .kind = _kind, .enter = _enter, \
		.leave = _leave, .wanted = _wanted,                 \
	}
#define ENDS_IF(_wanted, _kind, _name, _enter)                 \
	{                                                      \
		.names = { _name, "__" _name }, .kind = _kind, \
		.enter = _enter, .wanted = _wanted,            \
	}
#define BEGINS(...) BEGINS_IF(ledger_wanted_device, __VA_ARGS__)
#define ENDS(...) ENDS_IF(ledger_wanted_device, __VA_ARGS__)
#define SELDOM(...) BEGINS_IF(NULL, __VA_ARGS__)

static struct watch watches[] = {
	BEGINS(DMA_LEDGER_ALLOC, "dma_alloc_attrs", ledger_enter_alloc,
	       ledger_leave_alloc),
	ENDS(DMA_LEDGER_FREE, "dma_free_attrs", ledger_enter_free),
	BEGINS(DMA_LEDGER_ALLOC_PAGES, "dma_alloc_pages",
	       ledger_enter_alloc_pages, ledger_leave_alloc_pages),
	ENDS(DMA_LEDGER_FREE_PAGES, "dma_free_pages", ledger_enter_free_pages),
	BEGINS(DMA_LEDGER_ALLOC_NONCONTIGUOUS, "dma_alloc_noncontiguous",
	       ledger_enter_alloc_noncontiguous,
	       ledger_leave_alloc_noncontiguous),
	ENDS(DMA_LEDGER_FREE_NONCONTIGUOUS, "dma_free_noncontiguous",
	     ledger_enter_free_noncontiguous),
	BEGINS(DMA_LEDGER_MAP_PAGE, "dma_map_page_attrs", ledger_enter_map_page,
	       ledger_leave_map),
	ENDS(DMA_LEDGER_UNMAP_PAGE, "dma_unmap_page_attrs",
	     ledger_enter_address),
	BEGINS(DMA_LEDGER_MAP_SG, "dma_map_sg_attrs", ledger_enter_list,
	       ledger_leave_list),
	BEGINS(DMA_LEDGER_MAP_SGTABLE, "dma_map_sgtable", ledger_enter_sgtable,
	       ledger_leave_sgtable),
	ENDS(DMA_LEDGER_UNMAP_SG, "dma_unmap_sg_attrs", ledger_enter_list),
	BEGINS(DMA_LEDGER_MAP_RESOURCE, "dma_map_resource",
	       ledger_enter_map_resource, ledger_leave_map),
	ENDS(DMA_LEDGER_UNMAP_RESOURCE, "dma_unmap_resource",
	     ledger_enter_address),
	ENDS(DMA_LEDGER_SYNC_FOR_CPU, "dma_sync_single_for_cpu",
	     ledger_enter_address),
	ENDS(DMA_LEDGER_SYNC_FOR_DEVICE, "dma_sync_single_for_device",
	     ledger_enter_address),
	ENDS(DMA_LEDGER_SYNC_SG_FOR_CPU, "dma_sync_sg_for_cpu",
	     ledger_enter_list),
	ENDS(DMA_LEDGER_SYNC_SG_FOR_DEVICE, "dma_sync_sg_for_device",
	     ledger_enter_list),
	SELDOM(DMA_LEDGER_POOL_CREATE, "dma_pool_create",
	       ledger_enter_pool_create, ledger_leave_pool_create),
	BEGINS_IF(ledger_wanted_pool, DMA_LEDGER_POOL_ALLOC, "dma_pool_alloc",
		  ledger_enter_pool_alloc, ledger_leave_pool_alloc),
	ENDS_IF(ledger_wanted_pool, DMA_LEDGER_POOL_FREE, "dma_pool_free",
		ledger_enter_pool_free),
	ENDS_IF(NULL, DMA_LEDGER_POOL_DESTROY, "dma_pool_destroy",
		ledger_enter_pool_destroy),
	SELDOM(DMA_LEDGER_SET_MASK, "dma_set_mask", ledger_enter_mask,
	       ledger_leave_mask),
	SELDOM(DMA_LEDGER_SET_COHERENT_MASK, "dma_set_coherent_mask",
	       ledger_enter_mask, ledger_leave_mask),
	SELDOM(DMA_LEDGER_MMAP, "dma_mmap_attrs", ledger_enter_mmap,
	       ledger_leave_mmap),
	SELDOM(DMA_LEDGER_MEMORY_UC, "set_memory_uc", ledger_enter_memory,
	       ledger_leave_status),
	SELDOM(DMA_LEDGER_MEMORY_WC, "set_memory_wc", ledger_enter_memory,
	       ledger_leave_status),
	SELDOM(DMA_LEDGER_MEMORY_WB, "set_memory_wb", ledger_enter_memory,
	       ledger_leave_status),
	SELDOM(DMA_LEDGER_PAGES_UC, "set_pages_uc", ledger_enter_pages,
	       ledger_leave_status),
	SELDOM(DMA_LEDGER_PAGES_WB, "set_pages_wb", ledger_enter_pages,
	       ledger_leave_status),
	SELDOM(DMA_LEDGER_PAGES_ARRAY_UC, "set_pages_array_uc",
	       ledger_enter_pages_array, ledger_leave_pages_array),
	SELDOM(DMA_LEDGER_PAGES_ARRAY_WC, "set_pages_array_wc",
	       ledger_enter_pages_array, ledger_leave_pages_array),
	SELDOM(DMA_LEDGER_PAGES_ARRAY_WB, "set_pages_array_wb",
	       ledger_enter_pages_array, ledger_leave_pages_array),
	BEGINS_IF(ledger_wanted_user, DMA_LEDGER_USER_PAGE, "vm_insert_page",
		  ledger_enter_user_page, ledger_leave_status),
	BEGINS_IF(ledger_wanted_user, DMA_LEDGER_USER_PAGES, "vm_insert_pages",
		  ledger_enter_user_pages, ledger_leave_user_pages),
	BEGINS_IF(ledger_wanted_user, DMA_LEDGER_USER_RANGE, "remap_pfn_range",
		  ledger_enter_user_range, ledger_leave_status),
	BEGINS_IF(ledger_wanted_user, DMA_LEDGER_USER_FRAME, "vmf_insert_pfn",
		  ledger_enter_user_frame, ledger_leave_fault),
	BEGINS_IF(ledger_wanted_user, DMA_LEDGER_USER_FRAME_PROT,
		  "vmf_insert_pfn_prot", ledger_enter_user_frame,
		  ledger_leave_fault),
	BEGINS_IF(ledger_wanted_user, DMA_LEDGER_USER_MIXED, "vmf_insert_mixed",
		  ledger_enter_user_frame, ledger_leave_fault),
	SELDOM(DMA_LEDGER_BIND, "really_probe", ledger_enter_bind,
	       ledger_leave_bind),
	BEGINS_IF(ledger_wanted_unbind, DMA_LEDGER_UNBIND,
		  "device_release_driver_internal", ledger_enter_unbind,
		  ledger_leave_unbind),
};

/*
 * What every detour does.  @frame is the detour's own: its caller's frame
 * pointer, and the address it returns to.  So registers can be told as the
 * function's first instruction would have found them, for the arguments and
 * for whoever walks the stack from there.
 */
static noinline unsigned long through(const struct watch *watch,
				      const unsigned long *arguments,
				      const unsigned long *frame)
{
	struct pt_regs regs = {
		.di = arguments[0],
		.si = arguments[1],
		.dx = arguments[2],
		.cx = arguments[3],
		.r8 = arguments[4],
		.r9 = arguments[5],
		.flags = arch_local_save_flags(),
		.ip = (unsigned long)watch->original,
		.cs = __KERNEL_CS,
		.sp = (unsigned long)&frame[1],
		.bp = frame[0],
		.ss = __KERNEL_DS,
	};
	struct ledger_call call;
	unsigned long result;
	bool wanted;

	ledger_detour_entered();
	wanted = !watch->wanted || watch->wanted(&regs);
	if (wanted) {
		call.argument = 0;
		call.entries = 0;
		ledger_record_begin(&call.record, watch->kind, &regs);
		watch->enter(&call, &regs);
		if (!watch->leave)
			ledger_record_write(&call.record);
	}
	result = watch->original(arguments[0], arguments[1], arguments[2],
				 arguments[3], arguments[4], arguments[5]);
	if (wanted && watch->leave)
		watch->leave(&call, result);
	ledger_detour_left();
	return result;
}

/* One detour for each place in the table, as nothing else says which. */
#define DETOUR(n)                                                         \
	static unsigned long detour_##n(unsigned long a, unsigned long b, \
					unsigned long c, unsigned long d, \
					unsigned long e, unsigned long f) \
	{                                                                 \
		const unsigned long arguments[] = { a, b, c, d, e, f };   \
                                                                          \
		return through(&watches[n], arguments,                    \
			       __builtin_frame_address(0));               \
	}
/* Octal, so that pasted digits count to eight. */
#define EIGHT(OF, n) \
	OF(n##0) OF(n##1) OF(n##2) OF(n##3) OF(n##4) OF(n##5) OF(n##6) OF(n##7)
#define ALL(OF)       \
	EIGHT(OF, 00) \
	EIGHT(OF, 01) \
	EIGHT(OF, 02) \
	EIGHT(OF, 03) EIGHT(OF, 04) EIGHT(OF, 05) EIGHT(OF, 06) EIGHT(OF, 07)
#define NAME(n) detour_##n,

ALL(DETOUR)

static ledger_function *const wrappers[] = { ALL(NAME) };

static int arm(struct watch *watch)
{
	unsigned int place = watch - watches, i;
	unsigned long address = 0;
	int error;

	for (i = 0; !address && i < 2 && watch->names[i]; i++)
		address = ledger_detour_find(watch->names[i]);
	if (!address)
		return -ENOENT;
	error = ledger_detour_add(address, wrappers[place]);
	if (!error)
		watch->original = ledger_detour_past(address);
	return error;
}

/**
 * ledger_probes_arm - watch the DMA API
 *
 * A function this kernel does not have is not watched; which ones are, says
 * ledger_probes_armed().
 *
 * Return: 0, or a negative errno if not even allocations can be watched.
 */
int ledger_probes_arm(void)
{
	unsigned int i;
	int error;

	BUILD_BUG_ON(ARRAY_SIZE(watches) > ARRAY_SIZE(wrappers));
	for (i = 0; i < ARRAY_SIZE(watches); i++) {
		error = arm(&watches[i]);
		if (error)
			pr_warn("dma_ledger: %s is not watched: error %d\n",
				watches[i].names[0], error);
		/* The first two are what a ledger is about. */
		if (error && i < 2)
			return error;
	}
	return ledger_detours_open();
}

/** ledger_probes_disarm - watch nothing; no probe runs when this returns */
void ledger_probes_disarm(void)
{
	ledger_detours_close();
}

/**
 * ledger_probes_armed - what is watched
 *
 * Return: a bit per enum dma_ledger_kind.
 */
u64 ledger_probes_armed(void)
{
	u64 armed = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(watches); i++)
		if (watches[i].original)
			armed |= BIT_ULL(watches[i].kind);
	return armed;
}
