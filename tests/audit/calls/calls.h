/* SPDX-License-Identifier: GPL-2.0 */
#include <linux/dma-mapping.h>

static inline void *from_header(struct device *dev, dma_addr_t *bus)
{
	return dma_alloc_coherent(dev, 102, bus, GFP_KERNEL); /* HERE: 102 */
}
