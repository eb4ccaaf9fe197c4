// SPDX-License-Identifier: MIT
/* Calls of every kind, to be found again by their return addresses. */
#include "include/kernel.h"

void dma_free_attrs(long device);
void stay(void *what);

/* A driver's own inline function. */
static inline __attribute__((always_inline)) void *start(long device)
{
	return dma_alloc_attrs(device, 1); /* HERE: inlined */
}

void probe(long device)
{
	stay(start(device));
	stay(from_header(device)); /* HERE: header */
}

static __attribute__((noinline)) void *last(long device)
{
	stay(0);
	return dma_alloc_attrs(device, 3); /* HERE: jump */
}

void before(long device)
{
	stay(last(device)); /* HERE: caller */
}

static __attribute__((noinline)) void *either(long device)
{
	if (device & 1)
		return dma_alloc_attrs(device, 4); /* HERE: one */
	stay(0);
	return dma_alloc_attrs(device, 5); /* HERE: other */
}

void twice(long device)
{
	stay(either(device));
}

void *(*operation)(long device);

void by_register(long device)
{
	stay(operation(device));
}

/* Called back by the kernel, which is all that is on the stack then. */
void stop(long device)
{
	stay(0);
	dma_free_attrs(device); /* HERE: callback */
}

int remove(long device)
{
	dma_free_attrs(device); /* HERE: plain */
	return 0;
}

/* In a section of its own, so that a linker has to say where it is. */
__attribute__((noinline, section(".text.other"), aligned(64))) void *
elsewhere(long device)
{
	stay(0);
	return dma_alloc_attrs(device, 7); /* HERE: elsewhere */
}

void call_elsewhere(long device)
{
	stay(elsewhere(device));
}

int from_stack(void)
{
	char request[64];

	stay(request);
	return dma_map_single_attrs(request) + 1; /* HERE: stack */
}

int from_vmalloc(void *area)
{
	stay(area);
	return dma_map_single_attrs(area) + 1; /* HERE: vmalloc */
}

__attribute__((section(".init.text"))) int init_module(void)
{
	stay(dma_alloc_attrs(0, 6)); /* HERE: init */
	return 0;
}
