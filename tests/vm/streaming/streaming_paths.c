// SPDX-License-Identifier: GPL-2.0
/*
 * Two callers with frames of their own, from many depths: whoever remembers
 * stacks by a few of their bytes will take one for another.
 */
#include <linux/dma-mapping.h>
#include <linux/slab.h>

#include "streaming.h"

#define DEPTHS 100
#define WIDE 2000 /* the wide caller's sizes begin here */

static __always_inline void map_bytes(struct device *device, void *memory,
				      size_t size)
{
	dma_addr_t bus = dma_map_single(device, memory, size, DMA_TO_DEVICE);

	if (dma_mapping_error(device, bus))
		return;
	dma_unmap_single(device, bus, size, DMA_TO_DEVICE);
	barrier(); /* no jump: who calls is to be on the stack */
}

static noinline __noclone void narrow(struct device *device, void *memory,
				      size_t size)
{
	map_bytes(device, memory, size);
}

static noinline __noclone void wide(struct device *device, void *memory,
				    size_t size)
{
	u8 room[200];

	OPTIMIZER_HIDE_VAR(memory);
	memset(room, size, sizeof(room));
	memcpy(memory, room, sizeof(room));
	map_bytes(device, memory, WIDE + size);
}

static void deeper(struct device *device, void *memory, unsigned int more,
		   size_t size);
/* The compiler is not to know: it would unfold the first calls. */
static typeof(deeper) *volatile go_deeper = deeper;

static void deeper(struct device *device, void *memory, unsigned int more,
		   size_t size)
{
	if (more) {
		go_deeper(device, memory, more - 1, size);
	} else {
		narrow(device, memory, size);
		wide(device, memory, size);
	}
	barrier();
}

int streaming_paths(struct device *device)
{
	void *memory = kmalloc(PAGE_SIZE, GFP_KERNEL);
	unsigned int i;

	if (!memory)
		return -ENOMEM;
	for (i = 0; i < 2 * DEPTHS; i++)
		go_deeper(device, memory, i % DEPTHS, 1 + i % DEPTHS);
	kfree(memory);
	return 0;
}
