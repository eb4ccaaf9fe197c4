# SPDX-License-Identifier: MIT
"""What an audit did not judge, and why: silence about it would pass for praise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.audit.events import Kind
from harness.audit.result import Blind
from harness.audit.sources import Origin

if TYPE_CHECKING:
    from harness.audit.run import AuditRun

_BY_DEVICE = ("wrong-iommu-permission", "unreachable-bus-address", "virt-to-phys-as-bus")
_BY_OUTSIDE = ("mixed-types", "alias-conflict", "user-mapping-type", "not-where-claimed", *_BY_DEVICE)
_AT_THE_END = ("leak-on-remove", "never-unmapped", "pool-leak", "type-not-restored")
_UNITS = ("intel-iommu", "virtio-iommu", "amd-iommu")
_WATCHED = sum(1 << kind for kind in Kind if kind > Kind.PIECE)


def blind_spots(run: AuditRun) -> tuple[Blind, ...]:
    """Return what was not judged in an audit, the gravest first."""
    return tuple(
        blind for part in (_records, _driver, _devices, _machine, _kernel, _always) for blind in part(run)
    )


def _records(run: AuditRun) -> Iterator[Blind]:
    if run.lost:
        yield Blind(
            f"{run.lost} records found no room in the ledger's ring: everything after the first of them may "
            "be judged wrongly"
        )
    if run.missed:
        yield Blind(
            f"{run.missed} calls went past the ledger, as ftrace kept no registers of them: what seems to be "
            "left may have ended in one of them"
        )
    unarmed = [kind.name.lower() for kind in Kind if kind > Kind.PIECE and not run.armed >> kind & 1]
    if run.armed and unarmed:
        yield Blind(f"this kernel has no place to watch: {', '.join(unarmed)}")


def _driver(run: AuditRun) -> Iterator[Blind]:
    if run.failure is not None:
        ended = f"the audit ended before its time: {run.failure.summary}"
        yield Blind(ended, () if run.unloaded else _AT_THE_END)
    if not run.devices:
        yield Blind(
            f"{run.name} drove no device: its probe never ran, or failed",
            hint="give the machine a device it knows: --device NAME",
        )
    elif not run.exercised:
        yield Blind(
            f"nothing was asked of {run.name}: only its probe and its removal were judged",
            hint="--exercise FILE, or a pytest test, works with the device in between",
        )
    if run.tamed:
        yield Blind(
            f"{run.name} was loaded with {run.tamed}, as QEMU's model of its device now and then loses one "
            "of several requests: more of them at a time were not tried",
            hint="--params takes others",
        )
    if run.subject.module.debug is None:
        yield Blind(
            f"{run.name} has no debug information: code is named by functions and offsets, not by lines",
            hint="build it with -g" if run.subject.origin is Origin.FILE else "",
        )


def _devices(run: AuditRun) -> Iterator[Blind]:
    for name in run.observed.bypassing:
        yield Blind(
            f"{name} does its DMA past the DMA API, by physical addresses: nothing of it is in the ledger",
            hint="the device has to offer VIRTIO_F_ACCESS_PLATFORM: iommu_platform=on,disable-legacy=on",
        )


def _machine(run: AuditRun) -> Iterator[Blind]:
    if run.observed.unseen:
        yield Blind(
            f"this machine could not always be looked at from outside: {run.observed.unseen}", _BY_OUTSIDE
        )
    devices = run.guest.options.devices
    units = [name for name in _UNITS if any(one.startswith(name) for one in devices)]
    if not units:
        yield Blind(
            "this machine has no IOMMU: what a device itself reads and writes, nobody checks",
            (*_BY_DEVICE, "use-after-unmap"),
            hint="--machine intel-iommu",
        )
    elif "intel-iommu" not in units:
        yield Blind(
            f"{units[0]} keeps its tables inside QEMU: only the faults it reports are judged", _BY_DEVICE
        )


def _kernel(run: AuditRun) -> Iterator[Blind]:
    if run.observed.zeroing:
        yield Blind("this kernel zeroes every page it hands out (init_on_alloc)", ("not-zeroed",))


def _always(run: AuditRun) -> Iterator[Blind]:
    yield Blind(
        "the kernel refuses these by itself, and warns once for each place until it is restarted",
        ("dma-from-stack", "dma-from-vmalloc"),
    )
    if run.provenance.accelerator == "tcg":
        yield Blind("memory types are judged by what page tables say: an emulated machine has no caches")
