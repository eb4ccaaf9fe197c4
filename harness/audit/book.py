# SPDX-License-Identifier: MIT
"""The book: events replayed into what is alive, and what they themselves show to be wrong.

A violation here needs nobody's word but the driver's: what it asked for, and what it did with it later. What
the page tables, the IOMMU or the memory say is for others to look at, with the live entries of a book.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from harness.audit.events import Event, Flag, Kind
from harness.audit.judging import judge_boundary
from harness.audit.leaks import Leaks
from harness.audit.live import Entry, Live
from harness.audit.masks import Masks
from harness.audit.memory import MemoryTypes
from harness.audit.pools import Pools
from harness.audit.streams import SYNCS, UNMAPS, Streams
from harness.forensics import Frame

PAGE = 4096
_CMA_ALIGNMENT = 1 << 20  # CONFIG_CMA_ALIGNMENT=8 pages: no allocation is promised more
_DIRECT_RECLAIM = 0x400  # ___GFP_DIRECT_RECLAIM (include/linux/gfp_types.h), the same in 6.1 and 6.12

_ALLOCATIONS = {Kind.ALLOC, Kind.ALLOC_PAGES, Kind.ALLOC_NONCONTIGUOUS}
_FREES = {
    Kind.FREE: Kind.ALLOC,
    Kind.FREE_PAGES: Kind.ALLOC_PAGES,
    Kind.FREE_NONCONTIGUOUS: Kind.ALLOC_NONCONTIGUOUS,
}
_MAPS = {Kind.MAP_PAGE, Kind.MAP_SG, Kind.MAP_SGTABLE, Kind.MAP_RESOURCE}
_MASKS = {Kind.SET_MASK, Kind.SET_COHERENT_MASK}
_TYPES = {
    *(Kind.MEMORY_UC, Kind.MEMORY_WC, Kind.MEMORY_WB, Kind.PAGES_UC, Kind.PAGES_WB),
    *(Kind.PAGES_ARRAY_UC, Kind.PAGES_ARRAY_WC, Kind.PAGES_ARRAY_WB),
}
_USERS = {Kind.USER_PAGE, Kind.USER_PAGES, Kind.USER_RANGE, Kind.USER_FRAME, Kind.USER_FRAME_PROT}
_USERS |= {Kind.USER_MIXED, Kind.MMAP}
_SLEEPING = _TYPES | {Kind.POOL_CREATE, Kind.POOL_DESTROY, Kind.MMAP, Kind.FREE_NONCONTIGUOUS}


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that a call shows to be wrong.

    Attributes:
        rule: its id.
        event: the call to blame, or the one that shows it where `rules.Points` says that its making is.
        entry: what it is about, where that is known.
        evidence: a sentence with the numbers.
        place: the call's stack, innermost first, where the kernel's log has it and the event has none.
    """

    rule: str
    event: Event
    entry: Entry | None
    evidence: str
    place: tuple[Frame, ...] = ()


@dataclass
class Book:
    """Events replayed.

    Attributes:
        whole: the ledger ran before any driver did; otherwise the end of something nobody saw begin is no
            violation.
        reach: the highest address a device drives, by its name, where more is known of it than its driver
            says: what it was configured with in QEMU.
        buffers: allocations that are alive, by device.
        mappings: streaming mappings that are alive, by device.
        pools: pools that are alive.
        blocks: blocks of pools that are alive, by pool.
        violations: what was wrong, in the order it was seen.
        types: pages with another type than write-back, by frame number, and the call that made them so.
        users: the last call that mapped something into user space at each address.
    """

    whole: bool = True
    reach: Mapping[str, int] = field(default_factory=dict)
    buffers: Live = field(default_factory=Live)
    mappings: Live = field(default_factory=Live)
    pools: dict[int, Entry] = field(default_factory=dict)
    blocks: Live = field(default_factory=Live)
    violations: list[Violation] = field(default_factory=list)
    types: dict[int, Event] = field(default_factory=dict)
    users: dict[int, Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Say who handles what."""
        masks = Masks(self._note, self.buffers, self.mappings, self.reach)
        memory = MemoryTypes(self._note, self.buffers, self.types, self.users)
        pools = Pools(self._note, self.buffers, self.pools, self.blocks, whole=self.whole)
        streams = Streams(self._note, self.buffers, self.mappings, masks, whole=self.whole)
        leaks = Leaks(self._note, self.buffers, self.mappings, pools)
        self._masks, self._memory = masks, memory
        handlers: dict[Kind, tuple[Callable[[Event], None], ...]] = {
            Kind.MODULE_COMING: (leaks.coming,),
            Kind.MODULE_GOING: (memory.settle, leaks.going),
            Kind.BIND: (memory.settle, masks.tried, leaks.tried),
            Kind.UNBIND: (masks.left, leaks.left),
            Kind.POOL_CREATE: (pools.create,),
            Kind.POOL_ALLOC: (pools.alloc,),
            Kind.POOL_FREE: (pools.free,),
            Kind.POOL_DESTROY: (pools.destroy,),
        }
        handlers |= dict.fromkeys(_ALLOCATIONS, (self._alloc,)) | dict.fromkeys(_FREES, (self._free,))
        handlers |= dict.fromkeys(_MAPS, (streams.map,)) | dict.fromkeys(UNMAPS, (streams.unmap,))
        handlers |= dict.fromkeys(SYNCS, (streams.sync,)) | dict.fromkeys(_MASKS, (masks.told,))
        handlers |= dict.fromkeys(_TYPES, (memory.change,)) | dict.fromkeys(_USERS, (memory.give,))
        self._handlers = handlers

    def replay(self, events: Iterable[Event]) -> None:
        """Take the events that follow those taken before."""
        for event in events:
            if event.flags & (Flag.IRQS_OFF | Flag.ATOMIC):
                self._context(event)
            if event.device:
                self._masks.look(event)
            for handler in self._handlers.get(event.kind, ()):
                handler(event)

    def _note(self, rule: str, event: Event, entry: Entry | None, evidence: str) -> None:
        self.violations.append(Violation(rule, event, entry, evidence))

    def _context(self, event: Event) -> None:
        """Judge the context of calls that may sleep (Documentation/core-api/dma-api.rst)."""
        where = event.flags & (Flag.IRQS_OFF | Flag.ATOMIC)
        asleep = event.kind in _ALLOCATIONS | {Kind.POOL_ALLOC} and event.gfp & _DIRECT_RECLAIM
        # dma_free_attrs() warns with interrupts off only (kernel/dma/mapping.c).
        freed = event.kind is Kind.FREE and where & Flag.IRQS_OFF
        if asleep or freed or event.kind in _SLEEPING:
            how = "interrupts off" if where & Flag.IRQS_OFF else "preemption off"
            self._note("sleeping-in-atomic", event, None, f"{event.kind.name} with {how}, gfp {event.gfp:#x}")

    def _alloc(self, event: Event) -> None:
        if event.error:
            return
        entry = Entry(event)
        self._masks.judge(entry, coherent=event.kind is Kind.ALLOC)
        promised = min(_CMA_ALIGNMENT, max(PAGE, 1 << (event.size - 1).bit_length()))
        if event.kind is not Kind.ALLOC_NONCONTIGUOUS and event.bus % promised:
            self._note("misaligned", event, entry, f"{event.bus:#x} is not aligned to {promised:#x}")
        if event.kind is Kind.ALLOC_NONCONTIGUOUS:
            judge_boundary(self._note, entry)
        if event.flags & Flag.NOT_ZEROED:
            self._note("not-zeroed", event, entry, f"{event.size} bytes at {event.virtual:#x}")
        self.buffers.add(event.device, entry)

    def _free(self, event: Event) -> None:
        if event.kind is Kind.FREE and not event.virtual:
            return  # dma_free_attrs() does nothing with NULL (kernel/dma/mapping.c); nvme relies on it
        made = _FREES[event.kind]
        found = [entry for entry in self.buffers.at(event.device, event.bus) if entry.made.kind is made]
        if not found:
            self._stray_free(event, made)
            return
        entry = found[-1]
        if entry.made.size != event.size:
            self._note("free-size", event, entry, f"{entry.made.size} bytes freed as {event.size}")
        if entry.made.virtual != event.virtual:
            self._note("free-address", event, entry, f"{entry.made.virtual:#x} freed as {event.virtual:#x}")
        self._bury(event, entry)

    def _stray_free(self, event: Event, made: Kind) -> None:
        """Find what was meant by a free that fits nothing; it ends what it meant."""
        for entry in self.buffers:
            if entry.made.kind is not made or not (same := _likeness(entry.made, event)):
                continue
            rule = "free-device" if same == "device" else "free-address"
            was = f"made for {entry.made.name} at {entry.made.bus:#x}"
            self._note(rule, event, entry, f"{was}, freed for {event.name} at {event.bus:#x}")
            self._bury(event, entry)
            return
        past = self.buffers.past(event.device, event.bus)
        if past is not None or self.whole:
            self._note("free-address", event, past, f"no buffer is alive at {event.bus:#x}")

    def _bury(self, event: Event, entry: Entry) -> None:
        self._memory.freed(event, entry)
        self.buffers.end(entry.made.device, entry, event)


def _likeness(made: Event, freed: Event) -> str:
    """Name what a free has wrong about a buffer it may mean; empty if it cannot mean that one."""
    if made.virtual == freed.virtual:
        return "device" if made.device != freed.device else "address"
    return "device" if made.bus == freed.bus and made.device != freed.device else ""
