# SPDX-License-Identifier: MIT
"""Functions of the kernel by name: those the ledger watches, and those the kernel enters drivers from."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

#: What is called for a `Kind`, by its name (kext_shim/ledger/dma_ledger_probes.c).  One function is not one
#: symbol in every kernel: since 6.10 a sync is inline and calls the one with underscores.
FUNCTIONS: Final = MappingProxyType(
    {
        "ALLOC": ("dma_alloc_attrs",),
        "FREE": ("dma_free_attrs",),
        "ALLOC_PAGES": ("dma_alloc_pages",),
        "FREE_PAGES": ("dma_free_pages",),
        "ALLOC_NONCONTIGUOUS": ("dma_alloc_noncontiguous",),
        "FREE_NONCONTIGUOUS": ("dma_free_noncontiguous",),
        "MAP_PAGE": ("dma_map_page_attrs",),
        "UNMAP_PAGE": ("dma_unmap_page_attrs",),
        "MAP_SG": ("dma_map_sg_attrs",),
        "MAP_SGTABLE": ("dma_map_sgtable",),
        "UNMAP_SG": ("dma_unmap_sg_attrs",),
        "MAP_RESOURCE": ("dma_map_resource",),
        "UNMAP_RESOURCE": ("dma_unmap_resource",),
        "SYNC_FOR_CPU": ("dma_sync_single_for_cpu", "__dma_sync_single_for_cpu"),
        "SYNC_FOR_DEVICE": ("dma_sync_single_for_device", "__dma_sync_single_for_device"),
        "SYNC_SG_FOR_CPU": ("dma_sync_sg_for_cpu", "__dma_sync_sg_for_cpu"),
        "SYNC_SG_FOR_DEVICE": ("dma_sync_sg_for_device", "__dma_sync_sg_for_device"),
        "POOL_CREATE": ("dma_pool_create",),
        "POOL_ALLOC": ("dma_pool_alloc",),
        "POOL_FREE": ("dma_pool_free",),
        "POOL_DESTROY": ("dma_pool_destroy",),
        "SET_MASK": ("dma_set_mask",),
        "SET_COHERENT_MASK": ("dma_set_coherent_mask",),
        "MMAP": ("dma_mmap_attrs",),
        "MEMORY_UC": ("set_memory_uc",),
        "MEMORY_WC": ("set_memory_wc",),
        "MEMORY_WB": ("set_memory_wb",),
        "PAGES_UC": ("set_pages_uc",),
        "PAGES_WB": ("set_pages_wb",),
        "PAGES_ARRAY_UC": ("set_pages_array_uc",),
        "PAGES_ARRAY_WC": ("set_pages_array_wc",),
        "PAGES_ARRAY_WB": ("set_pages_array_wb",),
        "USER_PAGE": ("vm_insert_page",),
        "USER_PAGES": ("vm_insert_pages",),
        "USER_RANGE": ("remap_pfn_range",),
        "USER_FRAME": ("vmf_insert_pfn",),
        "USER_FRAME_PROT": ("vmf_insert_pfn_prot",),
        "USER_MIXED": ("vmf_insert_mixed",),
    }
)

#: How functions begin that make such a call for others (kernel/dma/mapping.c, mm/dmapool.c).
HELPERS: Final = ("dma_", "dmam_", "__dma_")

#: Where the kernel enters a driver.  What lies beyond on a stack has not made the call: a module that unloads
#: itself, or somebody who was interrupted (drivers/base/{dd,devres,platform}.c, drivers/pci/pci-driver.c,
#: drivers/virtio/virtio.c, kernel/irq/handle.c, kernel/softirq.c, kernel/time/timer.c,
#: arch/x86/entry/entry_64.S).
DOORS: Final = frozenset(
    {
        *("really_probe", "call_driver_probe", "platform_probe", "local_pci_probe", "pci_device_probe"),
        *("platform_remove", "pci_device_remove", "device_remove", "device_release_driver_internal"),
        *("__device_release_driver", "device_unbind_cleanup", "driver_detach", "device_release"),
        *("devm_action_release", "release_nodes", "devres_release_all", "devres_release_group"),
        *("virtio_dev_probe", "virtio_dev_remove"),
        *("__handle_irq_event_percpu", "handle_softirqs", "__do_softirq", "call_timer_fn"),
        *("asm_common_interrupt", "asm_sysvec_apic_timer_interrupt", "tasklet_action_common"),
        "do_one_initcall",
    }
)
