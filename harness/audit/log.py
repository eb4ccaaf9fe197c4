# SPDX-License-Identifier: MIT
"""What only the kernel's log says: mappings it refused before anybody could watch, and what an IOMMU stopped.

`dma_map_single` refuses memory without a bus address inline, in the driver's own code, and warns once for
each place (include/linux/dma-mapping.h: dma_map_single_attrs). What a device does with an address only shows
where an IOMMU stops it; the driver that gave it the address is then found by what it has mapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from harness.audit.book import PAGE, Book, Violation
from harness.audit.events import Direction, Event, Kind
from harness.audit.live import Entry, bus_ranges
from harness.audit.sites import Sites
from harness.forensics import Frame, splats
from harness.forensics.klog import STAMP, Line, lines_from

#: dev_WARN puts driver and device before its message (include/linux/dev_printk.h).
_REFUSED: Final = re.compile(r"(\S+) (\S+): rejecting DMA map of vmalloc memory")
#: drivers/iommu/intel/dmar.c: dmar_fault_do_one.
_INTEL: Final = re.compile(
    r"\[DMA (Read|Write)[^]]*\] Request device \[([0-9a-f:.]+)\].* fault addr (?:0x)?([0-9a-f]+) "
)
#: drivers/iommu/virtio-iommu.c: viommu_fault_handler; the endpoint is a PCI requester's number.
_VIRTIO: Final = re.compile(r"virtio_iommu \S+: \w+ fault from EP (\d+) at 0x([0-9a-f]+) \[(R?)(W?)X?\]")
_CLOCKS: Final = 100_000_000
"""Nanoseconds that the log's clock may be behind the ledger's: some 30 ms were seen."""

_NEAR: Final = 1 << 20
"""How far from a mapping, in bytes, an address may be and still be an overrun of it."""


@dataclass(frozen=True)
class Fault:
    """A transfer that an IOMMU has stopped.

    Attributes:
        time: nanoseconds of the log's clock, 0 where it says none.
        device: its PCI address without the domain, ``00:02.0``.
        address: what the device asked for; of the page, with Intel's.
        writes: whether it wrote.
        text: the kernel's words.
    """

    time: int
    device: str
    address: int
    writes: bool
    text: str


def faults(text: str) -> list[Fault]:
    """Find what IOMMUs have stopped, in a piece of kernel log."""
    return [fault for line in lines_from(text, 0) if (fault := _fault(line)) is not None]


def read_log(text: str, book: Book, sites: Sites) -> list[Violation]:
    """Return what a piece of kernel log shows to be wrong.

    Args:
        text: the log, with time stamps or without; not what was read before.
        book: up to date, to tell whose an address is.
        sites: knows the modules' files, to tell a stack from other vmalloc memory.
    """
    return [*_refusals(text, sites), *(_judged(fault, book) for fault in faults(text))]


def _fault(line: Line) -> Fault | None:
    if found := _INTEL.search(line.body):
        return Fault(_time(line.raw), found[2], int(found[3], 16), found[1] == "Write", line.body.strip())
    if found := _VIRTIO.search(line.body):
        number = int(found[1])
        device = f"{number >> 8:02x}:{number >> 3 & 31:02x}.{number & 7}"
        return Fault(_time(line.raw), device, int(found[2], 16), bool(found[4]), line.body.strip())
    return None


def _time(line: str) -> int:
    found = STAMP.search(line)
    return int(found["time"].replace(".", "")) * 1000 if found is not None else 0


def _refusals(text: str, sites: Sites) -> Iterator[Violation]:
    for splat in splats(text):
        said = _REFUSED.search(splat.title)
        if said is None or splat.rip is None:
            continue
        place = (replace(splat.rip, exact=True), *(frame for frame in splat.frames if frame.sure))
        event = Event(
            -1, Kind.NOTHING, _time(splat.text), module=splat.rip.module, driver=said[1], name=said[2]
        )
        if _is_local(place[0], sites):
            words = "the address of a local variable was mapped, and the kernel refused it"
            yield Violation("dma-from-stack", event, None, words, place)
        else:
            words = "the kernel refused it as vmalloc memory, which a stack is, too"
            yield Violation("dma-from-vmalloc", event, None, words, place)


def _is_local(frame: Frame, sites: Sites) -> bool:
    """Whether the debug information says that what was mapped is a variable of the function's own."""
    code = sites.code(frame.module) if frame.module else None
    lines = code.lines if code is not None else None
    return lines is not None and lines.is_local(frame, "dma_map_single_attrs", "ptr")


def _judged(fault: Fault, book: Book) -> Violation:
    """Name the rule and the call that should have made the address right."""
    owned = [
        entry
        for live in (book.mappings, book.buffers)
        for entry in (*live, *live.gone())
        if entry.made.name.endswith(fault.device)
    ]
    latest = fault.time + _CLOCKS
    before = [entry for entry in owned if not fault.time or entry.made.time <= latest] or owned
    before.sort(key=lambda entry: entry.made.number)
    covering = [entry for entry in before if _distance(entry, fault.address) == 0]
    if covering:
        return _on_mapping(fault, covering[-1])
    for entry in reversed(before):
        for run in entry.made.runs:
            if run.physical // PAGE <= fault.address // PAGE <= (run.physical + run.length - 1) // PAGE:
                words = f"{fault.text}: that is the physical address of what is mapped at {entry.made.bus:#x}"
                return Violation("virt-to-phys-as-bus", entry.made, entry, words)
    nearest = min(reversed(before), key=lambda entry: _distance(entry, fault.address), default=None)
    if nearest is not None and _distance(nearest, fault.address) <= _NEAR:
        words = f"{fault.text}: nearest are {nearest.made.size} bytes at {nearest.made.bus:#x}"
        return Violation("unreachable-bus-address", nearest.made, nearest, words)
    # No log says the domain, which is 0 on a machine of QEMU's.
    nowhere = Event(-1, Kind.NOTHING, fault.time, name=f"0000:{fault.device}", subsystem="pci")
    return Violation("unreachable-bus-address", nowhere, None, f"{fault.text}: nothing was mapped near it")


def _on_mapping(fault: Fault, entry: Entry) -> Violation:
    made = entry.made
    wanted = Direction.FROM_DEVICE if fault.writes else Direction.TO_DEVICE
    words = f"{fault.text}: {made.size} bytes at {made.bus:#x}"
    if entry.direction not in (Direction.BIDIRECTIONAL, wanted):
        return Violation("wrong-iommu-permission", made, entry, f"{words} are mapped {entry.direction.name}")
    if entry.ended is not None:
        return Violation("use-after-unmap", entry.ended, entry, f"{words} had been unmapped")
    return Violation("unreachable-bus-address", made, entry, f"{words} are mapped {entry.direction.name}")


def _distance(entry: Entry, address: int) -> int:
    """Bytes from an address to the nearest page of an entry; 0 within."""
    page = address // PAGE * PAGE
    away = []
    for start, length in bus_ranges(entry.made):
        first, end = start // PAGE * PAGE, -(-(start + length) // PAGE) * PAGE
        away.append(0 if first <= page < end else max(first - address, address - end + 1))
    return min(away)
