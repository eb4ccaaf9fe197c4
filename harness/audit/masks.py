# SPDX-License-Identifier: MIT
"""What devices can reach: as drivers told it, as it was refused, as it is; and what lies beyond."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.audit.events import Event, Kind
from harness.audit.judging import Note
from harness.audit.live import Entry, Live, bus_ranges

_Told = tuple[int, bool]
"""A device, and whether its coherent mask is meant."""


class Masks:
    """Judges the masks of devices, and addresses by them."""

    def __init__(self, note: Note, buffers: Live, mappings: Live, reach: Mapping[str, int]) -> None:
        """Name what is judged.

        Args:
            note: writes violations down.
            buffers: that are alive; they are below the coherent mask.
            mappings: that are alive; they are below the streaming mask.
            reach: the highest address a device drives, by its name, where that is known.
        """
        self._note = note
        self._buffers = buffers
        self._mappings = mappings
        self._reach = reach
        self._known: dict[int, tuple[int, int]] = {}
        self._refused: dict[_Told, Event] = {}
        self._accepted: dict[_Told, Event] = {}

    def look(self, event: Event) -> None:
        """Notice a mask that was written without a call of the API; any event of a device tells its masks."""
        if event.kind is Kind.POOL_CREATE:  # its name is not the device's
            return
        now = (event.mask, event.coherent_mask)
        before = self._known.setdefault(event.device, now)
        if before == now:
            return
        self._known[event.device] = now
        coherent = [entry for entry in self._buffers if entry.made.kind is Kind.ALLOC]
        if before[1] != now[1]:
            self._above(event, now[1], coherent)
        if before[0] != now[0]:
            others = [entry for entry in self._buffers if entry.made.kind is not Kind.ALLOC]
            self._above(event, now[0], (*others, *self._mappings))

    def told(self, event: Event) -> None:
        """Take a call that tells a mask."""
        coherent = event.kind is Kind.SET_COHERENT_MASK
        key = (event.device, coherent)
        if event.error:
            self._refused[key] = event
            return
        self._refused.pop(key, None)
        self._accepted[key] = event
        masks = (event.mask, event.size) if coherent else (event.size, event.coherent_mask)
        self._known[event.device] = masks
        before = event.coherent_mask if coherent else event.mask
        if event.size >= before:
            return
        for entry in self._buffers if coherent else self._mappings:
            if entry.made.device == event.device:
                changed = f"{before:#x} became {event.size:#x} while {entry.made.bus:#x} is alive"
                self._note("mask-after-alloc", event, entry, changed)
                return

    def tried(self, event: Event) -> None:
        """Take the end of a probe: what a driver that has failed was refused is of no meaning any more."""
        if event.error:
            self.left(event)

    def left(self, event: Event) -> None:
        """Take the end of a driver on a device."""
        for coherent in (False, True):
            self._refused.pop((event.device, coherent), None)
            self._accepted.pop((event.device, coherent), None)
        self._known.pop(event.device, None)

    def judge(self, entry: Entry, *, coherent: bool) -> None:
        """Judge addresses that were just made.

        Args:
            entry: a buffer or a mapping.
            coherent: whether the coherent mask is the one for it.
        """
        made = entry.made
        key = (made.device, coherent)
        refused = self._refused.pop(key, None)
        if refused is not None:
            mask = made.coherent_mask if coherent else made.mask
            how = f"{refused.size:#x} was refused ({refused.error}); {made.bus:#x} was made for {mask:#x}"
            self._note("mask-refused", refused, entry, how)
        if self._above(made, made.coherent_mask if coherent else made.mask, (entry,)):
            return
        reach = self._reach.get(made.name, 0)
        last = max(start + length - 1 for start, length in bus_ranges(made))
        if reach and last > reach:
            how = f"{made.bus:#x}..{last:#x} is above {reach:#x}, all that {made.name} drives"
            self._note("above-mask", self._accepted.get(key, made), entry, how)

    def _above(self, seen: Event, mask: int, entries: Iterable[Entry]) -> bool:
        """Note the entries of a device that are not all below a mask; 0 is none."""
        found = False
        for entry in entries if mask else ():
            made = entry.made
            if made.device != seen.device or made.name != seen.name:
                continue
            for start, length in bus_ranges(made):
                last = start + length - 1
                if last > mask:
                    later = "" if seen is made else f", which record {seen.number} is the first to show"
                    self._note("above-mask", made, entry, f"{start:#x}..{last:#x} is above {mask:#x}{later}")
                    found = True
                    break
        return found
