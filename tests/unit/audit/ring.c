// SPDX-License-Identifier: MIT
/* Calls of every kind, to be found again by their return addresses. */
#include "ring.h"

void *dma_alloc_attrs(long device, long size);
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

__attribute__((section(".init.text"))) int init_module(void)
{
	stay(dma_alloc_attrs(0, 6)); /* HERE: init */
	return 0;
}
