# SPDX-License-Identifier: MIT
"""The book: events replayed into what is alive, and what they themselves show to be wrong.

A violation here needs nobody's word but the driver's: what it asked for, and what it did with it later. What
the page tables, the IOMMU or the memory say is for others to look at, with the live entries of a book.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from harness.audit.events import Direction, Event, Flag, Kind
from harness.audit.live import Entry, Live, bus_ranges
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
_UNMAPS: Mapping[Kind, set[Kind]] = {
    Kind.UNMAP_PAGE: {Kind.MAP_PAGE},
    Kind.UNMAP_SG: {Kind.MAP_SG, Kind.MAP_SGTABLE},
    Kind.UNMAP_RESOURCE: {Kind.MAP_RESOURCE},
}
_SYNCS = {Kind.SYNC_FOR_CPU, Kind.SYNC_FOR_DEVICE, Kind.SYNC_SG_FOR_CPU, Kind.SYNC_SG_FOR_DEVICE}
_TYPES = {Kind.MEMORY_UC, Kind.MEMORY_WC, Kind.MEMORY_WB, Kind.PAGES_UC, Kind.PAGES_WB}
_USERS = {
    *(Kind.MMAP, Kind.USER_PAGE, Kind.USER_PAGES, Kind.USER_RANGE),
    *(Kind.USER_FRAME, Kind.USER_FRAME_PROT, Kind.USER_MIXED),
}
_WRITE_BACK = {Kind.MEMORY_WB, Kind.PAGES_WB}
_SLEEPING = _TYPES | {Kind.POOL_CREATE, Kind.POOL_DESTROY, Kind.MMAP, Kind.FREE_NONCONTIGUOUS}


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that a call shows to be wrong.

    Attributes:
        rule: its id.
        event: the call.
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
        buffers: allocations that are alive, by device.
        mappings: streaming mappings that are alive, by device.
        pools: pools that are alive.
        blocks: blocks of pools that are alive, by pool.
        violations: what was wrong, in the order it was seen.
        types: pages with another type than write-back, by frame number, and the call that made them so.
        users: the last call that mapped something into user space at each address.
    """

    whole: bool = True
    buffers: Live = field(default_factory=Live)
    mappings: Live = field(default_factory=Live)
    pools: dict[int, Entry] = field(default_factory=dict)
    blocks: Live = field(default_factory=Live)
    violations: list[Violation] = field(default_factory=list)
    types: dict[int, Event] = field(default_factory=dict)
    users: dict[int, Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Say who handles what."""
        self._starting: set[str] = set()
        handlers: dict[Kind, Callable[[Event], None]] = {
            Kind.MODULE_COMING: self._coming,
            Kind.MODULE_GOING: self._going,
            Kind.POOL_CREATE: self._pool_create,
            Kind.POOL_ALLOC: self._pool_alloc,
            Kind.POOL_FREE: self._pool_free,
            Kind.POOL_DESTROY: self._pool_destroy,
            Kind.SET_MASK: self._set_mask,
            Kind.SET_COHERENT_MASK: self._set_mask,
        }
        handlers |= dict.fromkeys(_ALLOCATIONS, self._alloc) | dict.fromkeys(_FREES, self._free)
        handlers |= dict.fromkeys(_MAPS, self._map) | dict.fromkeys(_UNMAPS, self._unmap)
        handlers |= dict.fromkeys(_SYNCS, self._sync) | dict.fromkeys(_TYPES, self._type)
        handlers |= dict.fromkeys(_USERS, self._user)
        self._handlers = handlers

    def replay(self, events: Iterable[Event]) -> None:
        """Take the events that follow those taken before."""
        for event in events:
            self._context(event)
            handler = self._handlers.get(event.kind)
            if handler is not None:
                handler(event)

    def _note(self, rule: str, event: Event, entry: Entry | None, evidence: str) -> None:
        self.violations.append(Violation(rule, event, entry, evidence))

    def _context(self, event: Event) -> None:
        """Judge the context of calls that may sleep (Documentation/core-api/dma-api.rst)."""
        where = event.flags & (Flag.IRQS_OFF | Flag.ATOMIC)
        if not where:
            return
        asleep = event.kind in _ALLOCATIONS | {Kind.POOL_ALLOC} and event.gfp & _DIRECT_RECLAIM
        # dma_free_attrs() warns with interrupts off only (kernel/dma/mapping.c).
        freed = event.kind is Kind.FREE and where & Flag.IRQS_OFF
        if asleep or freed or event.kind in _SLEEPING:
            how = "interrupts off" if where & Flag.IRQS_OFF else "preemption off"
            self._note("sleeping-in-atomic", event, None, f"{event.kind.name} with {how}, gfp {event.gfp:#x}")

    def _coming(self, event: Event) -> None:
        if event.init:
            self._starting.add(event.module)

    def _going(self, event: Event) -> None:
        if event.init:
            self._starting.discard(event.module)
            return
        # A module that goes before its init code did has failed to start.
        leak = "leak-on-error" if event.module in self._starting else "leak-on-remove"
        for rule, entries in (
            (leak, self.buffers),
            ("never-unmapped", self.mappings),
            ("pool-leak", self.pools.values()),
        ):
            for entry in entries:
                if entry.module == event.module:
                    left = f"{entry.made.size} bytes at {entry.made.bus:#x} of {entry.made.name} are left"
                    self._note(rule, event, entry, left)

    def _alloc(self, event: Event) -> None:
        if event.error:
            return
        entry = Entry(event)
        self._reach(event, entry, event.coherent_mask if event.kind is Kind.ALLOC else event.mask)
        promised = min(_CMA_ALIGNMENT, max(PAGE, 1 << (event.size - 1).bit_length()))
        if event.kind is not Kind.ALLOC_NONCONTIGUOUS and event.bus % promised:
            self._note("misaligned", event, entry, f"{event.bus:#x} is not aligned to {promised:#x}")
        if event.flags & Flag.NOT_ZEROED:
            self._note("not-zeroed", event, entry, f"{event.size} bytes at {event.virtual:#x}")
        self.buffers.add(event.device, entry)

    def _reach(self, event: Event, entry: Entry, mask: int) -> None:
        for start, length in bus_ranges(event):
            last = start + length - 1
            if mask and last > mask:
                self._note("above-mask", event, entry, f"{start:#x}..{last:#x} is above {mask:#x}")
            if event.boundary and event.pieces and start & ~event.boundary != last & ~event.boundary:
                crossed = f"{start:#x}..{last:#x} crosses a boundary of {event.boundary + 1:#x}"
                self._note("above-boundary", event, entry, crossed)

    def _free(self, event: Event) -> None:
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
        for run in entry.made.runs if self.types else ():
            for frame in range(run.physical // PAGE, -(-(run.physical + run.length) // PAGE)):
                changed = self.types.get(frame)
                if changed is not None:
                    how = f"page {frame * PAGE:#x} is freed as {changed.kind.name.rpartition('_')[2]}"
                    self._note("type-not-restored", event, entry, how)
                    break
        self.buffers.end(entry.made.device, entry, event)

    def _map(self, event: Event) -> None:
        entry = Entry(event)
        if event.flags & Flag.STACK:
            self._note("dma-from-stack", event, entry, f"{event.virtual:#x} is on the caller's stack")
        elif event.flags & Flag.NO_RAM and event.kind is not Kind.MAP_RESOURCE:
            self._note("dma-from-vmalloc", event, entry, f"no memory is behind {event.physical:#x}")
        if event.error:
            return
        self._reach(event, entry, event.mask)
        self.mappings.add(event.device, entry)

    def _unmap(self, event: Event) -> None:
        kinds = _UNMAPS[event.kind]
        found = [entry for entry in self.mappings.at(event.device, event.bus) if entry.made.kind in kinds]
        if not found:
            past = self.mappings.past(event.device, event.bus)
            if past is not None:
                self._note("double-unmap", event, past, f"unmapped before, at record {_end(past)}")
            elif self.whole:
                self._note("unmap-address", event, None, f"nothing is mapped at {event.bus:#x}")
            return
        wanted = (event.size, event.direction)
        entry = next((one for one in found if (one.made.size, one.made.direction) == wanted), found[-1])
        if entry.made.size != event.size:
            self._note("unmap-size", event, entry, f"{entry.made.size} bytes unmapped as {event.size}")
        if entry.made.direction != event.direction:
            how = f"{entry.made.direction.name} unmapped as {event.direction.name}"
            self._note("unmap-direction", event, entry, how)
        self.mappings.end(event.device, entry, event)

    def _sync(self, event: Event) -> None:
        # Pages made for streaming are synced without being mapped.
        first: Entry | None = None
        for live in (self.mappings, self.buffers):
            for entry in live.around(event.device, event.bus):
                if entry.direction in (Direction.BIDIRECTIONAL, event.direction):
                    return
                first = first or entry
        past = self.mappings.past(event.device, event.bus)
        if first is not None:
            how = f"{first.direction.name} synced as {event.direction.name}"
            self._note("sync-direction", event, first, how)
        elif past is not None:
            self._note("use-after-unmap", event, past, f"unmapped at record {_end(past)}")
        elif self.whole:
            self._note("use-after-unmap", event, None, f"nothing is mapped at {event.bus:#x}")

    def _pool_create(self, event: Event) -> None:
        if not event.error:
            self.pools[event.owner] = Entry(event)

    def _pool_alloc(self, event: Event) -> None:
        if not event.error:
            self.blocks.add(event.owner, Entry(event))

    def _pool_free(self, event: Event) -> None:
        found = self.blocks.at(event.owner, event.bus)
        if found:
            self.blocks.end(event.owner, found[-1], event)
            return
        past = self.blocks.past(event.owner, event.bus)
        if past is not None:
            self._note("pool-double-free", event, past, f"freed before, at record {_end(past)}")
        elif self.whole:
            self._note("free-address", event, None, f"the pool has handed out nothing at {event.bus:#x}")

    def _pool_destroy(self, event: Event) -> None:
        for block in self.blocks:
            if block.made.owner == event.owner:
                self._note("pool-leak", event, block, f"the block at {block.made.bus:#x} is still out")
                self.blocks.end(event.owner, block, event)
        pool = self.pools.pop(event.owner, None)
        if pool is not None:
            pool.ended = event

    def _set_mask(self, event: Event) -> None:
        coherent = event.kind is Kind.SET_COHERENT_MASK
        before = event.coherent_mask if coherent else event.mask
        if event.error or before == event.size:
            return
        for entry in self.buffers if coherent else self.mappings:
            if entry.made.device == event.device:
                changed = f"{before:#x} became {event.size:#x} while {entry.made.bus:#x} is alive"
                self._note("mask-after-alloc", event, entry, changed)
                return

    def _user(self, event: Event) -> None:
        if not event.error:
            self.users[event.owner] = event

    def _type(self, event: Event) -> None:
        if event.virtual % PAGE:
            self._note("unaligned-set-memory", event, None, f"{event.virtual:#x} is no page's address")
        if event.flags & Flag.VMALLOC:
            self._note("set-memory-on-vmalloc", event, None, f"{event.virtual:#x} is not in the direct map")
        if event.error or not event.physical:
            return
        first = event.physical // PAGE
        for frame in range(first, first + event.size):
            if event.kind in _WRITE_BACK:
                self.types.pop(frame, None)
            else:
                self.types[frame] = event


def _end(entry: Entry) -> str:
    return "?" if entry.ended is None else str(entry.ended.number)


def _likeness(made: Event, freed: Event) -> str:
    """Name what a free has wrong about a buffer it may mean; empty if it cannot mean that one."""
    if made.virtual == freed.virtual:
        return "device" if made.device != freed.device else "address"
    return "device" if made.bus == freed.bus and made.device != freed.device else ""
