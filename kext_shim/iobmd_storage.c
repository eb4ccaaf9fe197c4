// SPDX-License-Identifier: GPL-2.0
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "iobmd_chunk.h"
#include "iobmd_gather.h"
#include "iobmd_mapper.h"
#include "iobmd_memtype.h"
#include "iobmd_remap.h"
#include "iobmd_storage.h"

static const char no_such_type[] =
	"this machine's PAT has no entry for the memory type of the cache mode";

/* The buffer's pages, in order, out of its blocks. */
static int list_pages(struct iobmd_backing *backing, u64 storage,
		      const char **reason)
{
	const struct iobmd_chunk *chunk;

	backing->pages = kvmalloc_array(storage >> PAGE_SHIFT,
					sizeof(*backing->pages),
					GFP_KERNEL | __GFP_NOWARN);
	if (!backing->pages)
		return iobmd_refuse(reason, -ENOMEM,
				    "no memory for the list of pages");
	list_for_each_entry(chunk, &backing->chunks, link) {
		struct page *page = virt_to_page(chunk->address);
		unsigned long left = chunk->bytes >> PAGE_SHIFT;

		backing->chunk_count++;
		while (left--)
			backing->pages[backing->page_count++] = page++;
		cond_resched();
	}
	return 0;
}

/* The blocks first and the window last, so that no two aliases disagree. */
static int set_types(struct iobmd_backing *backing, enum iobmd_memory_type type,
		     const char **reason)
{
	struct iobmd_chunk *chunk;

	list_for_each_entry(chunk, &backing->chunks, link) {
		int error;

		/* The way back to write-back is never cut short. */
		if (type != IOBMD_TYPE_WB && fatal_signal_pending(current))
			return iobmd_refuse(reason, -EINTR,
					    "the caller is being killed");
		error = iobmd_chunk_set_type(chunk, type);
		if (error)
			return iobmd_refuse(
				reason, error,
				"the kernel did not give the pages the memory type of the cache mode");
		cond_resched();
	}
	return 0;
}

static int check_mapping(struct iobmd_backing *backing,
			 enum iobmd_memory_type type, const char **reason)
{
	if (iobmd_backing_type(backing) == type)
		return 0;
	return iobmd_refuse(
		reason, -EIO,
		"the buffer's kernel mapping did not get the memory type of the cache mode");
}

static int open_window(struct iobmd_backing *backing,
		       enum iobmd_memory_type type, const char **reason)
{
	backing->window = vmap(backing->pages, backing->page_count, VM_MAP,
			       iobmd_memtype_pgprot(type));
	if (!backing->window)
		return iobmd_refuse(reason, -ENOMEM,
				    "no kernel mapping for the buffer");
	backing->address = backing->window;
	return check_mapping(backing, type, reason);
}

/*
 * vmap() has no holes: the pages on either side start as the first page once
 * more, and are taken out before anybody knows the address.
 */
static int open_guarded_window(struct iobmd_backing *backing,
			       enum iobmd_memory_type type, const char **reason)
{
	pgprot_t protection = iobmd_memtype_pgprot(type);
	unsigned long count = backing->page_count;
	struct page *nothing = NULL;
	struct page **pages;

	pages = kvmalloc_array(count + 2, sizeof(*pages),
			       GFP_KERNEL | __GFP_NOWARN);
	if (!pages)
		return iobmd_refuse(reason, -ENOMEM,
				    "no memory for the list of pages");
	memcpy(pages + 1, backing->pages, count * sizeof(*pages));
	pages[0] = backing->pages[0];
	pages[count + 1] = backing->pages[0];
	backing->window = vmap(pages, count + 2, VM_MAP, protection);
	kvfree(pages);
	if (!backing->window)
		return iobmd_refuse(reason, -ENOMEM,
				    "no kernel mapping for the buffer");
	backing->guard = PAGE_SIZE;
	backing->address = backing->window + PAGE_SIZE;
	iobmd_remap(backing->window, &nothing, 1, protection);
	iobmd_remap(backing->address + (count << PAGE_SHIFT), &nothing, 1,
		    protection);
	return check_mapping(backing, type, reason);
}

static int open_mapping(struct iobmd_backing *backing,
			const struct iobmd_plan *plan, const char **reason)
{
	const struct iobmd_chunk *only;

	if (plan->mapping == IOBMD_MAPPING_NONE)
		return 0;
	if (plan->mapping == IOBMD_MAPPING_GUARDED)
		return open_guarded_window(backing, plan->type, reason);
	if (backing->chunk_count > 1)
		return open_window(backing, plan->type, reason);
	only = list_first_entry(&backing->chunks, struct iobmd_chunk, link);
	backing->address = only->address;
	return 0;
}

static int map_for_devices(struct iobmd_backing *backing, unsigned int io_bits,
			   const char **reason)
{
	int error;

	error = iobmd_io_map(&backing->io, backing->pages, backing->page_count,
			     io_bits);
	if (error)
		return iobmd_refuse(
			reason, error,
			"the IOMMU has no range of addresses for the buffer");
	backing->io_address = backing->io.address;
	return 0;
}

/* A part of a page that is mapped for the processor and for devices already. */
static int create_packed(struct iobmd_backing *backing,
			 const struct iobmd_plan *plan, const char **reason)
{
	void *page;

	if (iobmd_slot_get(&backing->slot, plan->storage, plan->alignment))
		return iobmd_refuse(reason, -ENOMEM,
				    "no memory for a page of small buffers");
	backing->pages = kvmalloc_array(1, sizeof(*backing->pages),
					GFP_KERNEL | __GFP_NOWARN);
	if (!backing->pages)
		return iobmd_refuse(reason, -ENOMEM,
				    "no memory for the list of pages");
	page = iobmd_slot_chunk(&backing->slot)->address;
	backing->pages[0] = virt_to_page(page);
	backing->page_count = 1;
	backing->chunk_count = 1;
	backing->start = backing->slot.start;
	backing->address = page + backing->start;
	backing->io_address = iobmd_slot_io_address(&backing->slot);
	return 0;
}

static int create(struct iobmd_backing *backing, const struct iobmd_plan *plan,
		  const char **reason)
{
	int error;

	backing->bytes = plan->storage;
	if (plan->packed)
		return create_packed(backing, plan, reason);
	error = iobmd_gather(&backing->chunks, plan, reason);
	if (error)
		return error;
	error = list_pages(backing, plan->storage, reason);
	if (error)
		return error;
	error = set_types(backing, plan->type, reason);
	if (error)
		return error;
	if (plan->io_bits)
		error = map_for_devices(backing, plan->io_bits, reason);
	if (error)
		return error;
	return open_mapping(backing, plan, reason);
}

/**
 * iobmd_backing_create - make storage
 * @backing: filled in
 * @plan: what it has to be like
 * @reason: on failure a sentence for a person, static
 *
 * Every byte of it reads as zero, every mapping of it has the planned type.
 * May sleep.
 *
 * Return: 0, or a negative errno with nothing left behind.
 */
int iobmd_backing_create(struct iobmd_backing *backing,
			 const struct iobmd_plan *plan, const char **reason)
{
	int error;

	*backing = (struct iobmd_backing){
		.chunks = LIST_HEAD_INIT(backing->chunks),
	};
	if (!(iobmd_memtype_available() & BIT(plan->type)))
		return iobmd_refuse(reason, -EOPNOTSUPP, no_such_type);
	error = create(backing, plan, reason);
	if (error)
		iobmd_backing_destroy(backing);
	return error;
}

/**
 * iobmd_backing_destroy - give everything back, write-back again
 * @backing: what iobmd_backing_create() made
 */
void iobmd_backing_destroy(struct iobmd_backing *backing)
{
	struct iobmd_chunk *chunk, *next;

	iobmd_slot_put(&backing->slot);
	iobmd_io_unmap(&backing->io);
	if (backing->window)
		vunmap(backing->window);
	list_for_each_entry_safe(chunk, next, &backing->chunks, link) {
		list_del(&chunk->link);
		iobmd_chunk_free(chunk);
		cond_resched();
	}
	kvfree(backing->pages);
}

/* All blocks, then the window, which stays where it is. */
static int change_types(struct iobmd_backing *backing,
			enum iobmd_memory_type type, const char **reason)
{
	int error = set_types(backing, type, reason);

	if (error)
		return error;
	if (backing->window)
		iobmd_remap(backing->address, backing->pages,
			    backing->page_count, iobmd_memtype_pgprot(type));
	return check_mapping(backing, type, reason);
}

/**
 * iobmd_backing_set_type - give storage that is in use another memory type
 * @backing: the storage, with no mappings but its own; one caller at a time
 * @type: enum iobmd_memory_type
 * @reason: on failure a sentence for a person, static
 *
 * Addresses and contents stay.  May sleep.
 *
 * Return: 0, or a negative errno with everything write-back.
 */
int iobmd_backing_set_type(struct iobmd_backing *backing,
			   enum iobmd_memory_type type, const char **reason)
{
	const char *ignored;
	int error;

	if (!(iobmd_memtype_available() & BIT(type)))
		return iobmd_refuse(reason, -EOPNOTSUPP, no_such_type);
	if (backing->slot.page)
		return iobmd_refuse(
			reason, -EOPNOTSUPP,
			"the buffer shares its page, whose memory type it cannot change");
	error = change_types(backing, IOBMD_TYPE_WB, reason);
	if (!error)
		error = change_types(backing, type, reason);
	if (error)
		change_types(backing, IOBMD_TYPE_WB, &ignored);
	return error;
}

/**
 * iobmd_backing_type - the memory type of every mapping of the storage
 * @backing: the storage
 *
 * Return: the type the page tables have, IOBMD_TYPE_OTHER if they disagree.
 */
enum iobmd_memory_type iobmd_backing_type(const struct iobmd_backing *backing)
{
	enum iobmd_memory_type type = IOBMD_TYPE_OTHER;
	const struct iobmd_chunk *chunk;

	if (backing->slot.page)
		return iobmd_chunk_type(iobmd_slot_chunk(&backing->slot));
	list_for_each_entry(chunk, &backing->chunks, link) {
		enum iobmd_memory_type own = iobmd_chunk_type(chunk);

		if (type == IOBMD_TYPE_OTHER)
			type = own;
		if (own != type || own == IOBMD_TYPE_OTHER)
			return IOBMD_TYPE_OTHER;
	}
	if (backing->window &&
	    iobmd_memtype_of(backing->address,
			     (u64)backing->page_count << PAGE_SHIFT) != type)
		return IOBMD_TYPE_OTHER;
	return type;
}

static bool follows(struct page *page, struct page *next)
{
	return page_to_pfn(next) == page_to_pfn(page) + 1;
}

/* The physical run from @offset on, for the processor; see below. */
static u64 physical_run(const struct iobmd_backing *backing, u64 offset,
			u64 limit, u64 *length)
{
	unsigned long first = offset >> PAGE_SHIFT;
	unsigned long last = (limit - 1) >> PAGE_SHIFT;
	unsigned long end = first;
	u64 run_end;

	while (end < last &&
	       follows(backing->pages[end], backing->pages[end + 1]))
		end++;
	run_end = min((u64)(end + 1) << PAGE_SHIFT, limit);
	*length = run_end - offset;
	return page_to_phys(backing->pages[first]) + offset_in_page(offset);
}

/**
 * iobmd_backing_segment - the run of a device's addresses that starts at an
 *	offset
 * @backing: the storage
 * @offset: bytes, below @limit
 * @limit: bytes, where the run ends at the latest; at most the storage
 * @length: set to the bytes in the run
 *
 * Adjacent pages are one run, whichever blocks they came from; behind a mapper
 * everything is.
 *
 * Return: the address of the byte at @offset: the mapper's if the plan has one,
 * else the physical one.
 */
u64 iobmd_backing_segment(const struct iobmd_backing *backing, u64 offset,
			  u64 limit, u64 *length)
{
	if (!backing->io_address)
		return physical_run(backing, offset, limit, length);
	*length = limit - offset;
	return backing->io_address + offset;
}

/**
 * iobmd_backing_at - reach a byte of the storage
 * @backing: the storage, mapped or not
 * @offset: bytes, below the storage
 * @length: set to the bytes that can be reached from there in one piece
 *
 * Return: the byte's address in the kernel's address space.  Of storage without
 * a mapping of its own it is one in the direct map: for copies, not to be
 * handed out.
 */
void *iobmd_backing_at(const struct iobmd_backing *backing, u64 offset,
		       u64 *length)
{
	if (backing->address) {
		*length = backing->bytes - offset;
		return backing->address + offset;
	}
	return phys_to_virt(
		physical_run(backing, offset, backing->bytes, length));
}
