/* SPDX-License-Identifier: MIT */
/* What a kernel's header has inline: a line in here is not a driver's. */
void *dma_alloc_attrs(long device, long size);
int is_vmalloc_addr(void *address);
int dma_map_page_attrs(void *address);
void warn(void);

static inline __attribute__((always_inline)) void *from_header(long device)
{
	return dma_alloc_attrs(device, 2);
}

static inline __attribute__((always_inline)) int dma_map_single_attrs(void *ptr)
{
	if (is_vmalloc_addr(ptr)) {
		warn();
		return -1;
	}
	return dma_map_page_attrs(ptr);
}
