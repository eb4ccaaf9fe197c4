# SPDX-License-Identifier: MIT
"""Streaming mappings: made, synced, undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from harness.audit.events import Direction, Event, Flag, Kind
from harness.audit.judging import Note, ended, judge_boundary
from harness.audit.live import Entry, Live, bus_ranges
from harness.audit.masks import Masks

UNMAPS: Final[Mapping[Kind, set[Kind]]] = {
    Kind.UNMAP_PAGE: {Kind.MAP_PAGE},
    Kind.UNMAP_SG: {Kind.MAP_SG, Kind.MAP_SGTABLE},
    Kind.UNMAP_RESOURCE: {Kind.MAP_RESOURCE},
}
"""What undoes what."""

_LISTS: Final = {Kind.SYNC_SG_FOR_CPU, Kind.SYNC_SG_FOR_DEVICE}
SYNCS: Final = _LISTS | {Kind.SYNC_FOR_CPU, Kind.SYNC_FOR_DEVICE}
"""Calls that sync."""

MAPPING_ERROR: Final = (1 << 64) - 1
"""DMA_MAPPING_ERROR (include/linux/dma-mapping.h)."""

_OBJECT_ALIGNMENT: Final = 8
"""ARCH_KMALLOC_MINALIGN of x86: whatever lies at another address is inside of an object, and shares its first
cache line with the object's beginning."""


class Streams:
    """Judges streaming mappings."""

    def __init__(self, note: Note, buffers: Live, mappings: Live, masks: Masks, *, whole: bool) -> None:
        """Name what is judged.

        Args:
            note: writes violations down.
            buffers: that are alive; pages made for streaming are synced without being mapped.
            mappings: that are alive; kept up to date here.
            masks: judges their addresses.
            whole: nothing was made before the first event.
        """
        self._note = note
        self._buffers = buffers
        self._mappings = mappings
        self._masks = masks
        self._whole = whole
        self._failed: dict[int, Entry] = {}

    def map(self, event: Event) -> None:
        """Take a new mapping, or one that could not be made."""
        entry = Entry(event)
        if event.flags & Flag.STACK:
            self._note("dma-from-stack", event, entry, f"{event.virtual:#x} is on the caller's stack")
        elif event.flags & Flag.NO_RAM and event.kind is not Kind.MAP_RESOURCE:
            self._note("dma-from-vmalloc", event, entry, f"no memory is behind {event.physical:#x}")
        if event.error:
            self._failed[event.device] = entry
            return
        self._masks.judge(entry, coherent=False)
        judge_boundary(self._note, entry)
        written = event.direction in (Direction.FROM_DEVICE, Direction.BIDIRECTIONAL)
        if event.kind is Kind.MAP_PAGE and written and event.physical % _OBJECT_ALIGNMENT:
            how = (
                f"{event.physical:#x}, which the device writes, shares its cache line with what is before it"
            )
            self._note("misaligned", event, entry, how)
        self._mappings.add(event.device, entry)

    def unmap(self, event: Event) -> None:
        """Take the end of a mapping."""
        if self._nowhere(event):
            return
        kinds = UNMAPS[event.kind]
        found = [entry for entry in self._mappings.at(event.device, event.bus) if entry.made.kind in kinds]
        if not found:
            past = self._mappings.past(event.device, event.bus)
            if past is not None:
                self._note("double-unmap", event, past, f"unmapped before, at record {ended(past)}")
            elif self._whole:
                self._note("unmap-address", event, None, f"nothing is mapped at {event.bus:#x}")
            return
        wanted = (event.size, event.direction)
        entry = next((one for one in found if (one.made.size, one.made.direction) == wanted), found[-1])
        if entry.made.size != event.size:
            self._note("unmap-size", event, entry, f"{entry.made.size} bytes unmapped as {event.size}")
        if entry.made.direction != event.direction:
            how = f"{entry.made.direction.name} unmapped as {event.direction.name}"
            self._note("unmap-direction", event, entry, how)
        self._mappings.end(event.device, entry, event)

    def sync(self, event: Event) -> None:
        """Take a sync: of bytes that are mapped, in the direction they are."""
        if self._nowhere(event):
            return
        # Pages made for streaming are synced without being mapped.
        around = [
            entry
            for live in (self._mappings, self._buffers)
            for entry in live.around(event.device, event.bus)
        ]
        if not around:
            past = self._mappings.past(event.device, event.bus)
            if past is not None:
                self._note("use-after-unmap", event, past, f"unmapped at record {ended(past)}")
            elif self._whole:
                self._note("use-after-unmap", event, None, f"nothing is mapped at {event.bus:#x}")
            return
        allowed = [one for one in around if one.direction in (Direction.BIDIRECTIONAL, event.direction)]
        if not allowed:
            how = f"{around[0].direction.name} synced as {event.direction.name}"
            self._note("sync-direction", event, around[0], how)
        enough = allowed or around
        if not any(_covers(one, event) for one in enough):
            how = f"{event.size} bytes at {event.bus:#x} are synced, {enough[0].made.size} are mapped"
            self._note("sync-range", event, enough[0], how)

    def _nowhere(self, event: Event) -> bool:
        """Tell whether an address is none: what a map call that failed has returned."""
        if event.bus != MAPPING_ERROR:
            return False
        failed = self._failed.get(event.device)
        since = "" if failed is None else f", and was told so at record {failed.made.number}"
        how = f"{event.kind.name} of {event.size} bytes that were never mapped{since}"
        self._note("unchecked-mapping-error", event, failed, how)
        return True


def _covers(entry: Entry, event: Event) -> bool:
    """Tell whether the bytes of a sync are all of one mapping; of lists only their number is compared."""
    if event.kind in _LISTS:
        return event.size <= entry.made.size
    return any(
        start <= event.bus and event.bus + event.size <= start + length
        for start, length in bus_ranges(entry.made)
    )
