# SPDX-License-Identifier: MIT
"""Memory types as drivers changed them, gave them to user space, and gave them back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from harness.audit.events import Event, Flag, Kind
from harness.audit.judging import Note
from harness.audit.live import Entry, Live

PAGE: Final = 4096
_WRITE_BACK: Final = {Kind.MEMORY_WB, Kind.PAGES_WB, Kind.PAGES_ARRAY_WB}
_BY_ADDRESS: Final = {Kind.MEMORY_UC, Kind.MEMORY_WC, Kind.MEMORY_WB}
_AS_GIVEN: Final = {Kind.USER_PAGE, Kind.USER_PAGES}
"""What maps pages with the very protection of the mapping. The others look the page's type up themselves
(arch/x86/mm/pat/memtype.c, track_pfn_remap and track_pfn_insert)."""
_CACHE_BITS: Final = 1 << 3 | 1 << 4 | 1 << 7
"""_PAGE_PWT, _PAGE_PCD and _PAGE_PAT; none of them is write-back under every PAT Linux sets up."""


class MemoryTypes:
    """Judges changes of memory types."""

    def __init__(self, note: Note, buffers: Live, types: dict[int, Event], users: dict[int, Event]) -> None:
        """Name what is judged.

        Args:
            note: writes violations down.
            buffers: that are alive.
            types: pages of another type than write-back, by frame; kept up to date here.
            users: calls that mapped into user space, by address there; kept up to date here.
        """
        self._note = note
        self._buffers = buffers
        self._types = types
        self._users = users
        self._refused: dict[int, Event] = {}
        self._accused: set[int] = set()

    def change(self, event: Event) -> None:
        """Take a call that changes a type."""
        if event.kind in _BY_ADDRESS and not self._undoes(event):
            self._address(event)
        for frame in _changed(event):
            if event.error:
                self._refused[frame] = event
                continue
            self._refused.pop(frame, None)
            if event.kind in _WRITE_BACK:
                self._types.pop(frame, None)
            else:
                self._types[frame] = event

    def _address(self, event: Event) -> None:
        if event.virtual % PAGE:
            self._accused.add(event.number)
            self._note("unaligned-set-memory", event, None, f"{event.virtual:#x} is no page's address")
        if event.flags & Flag.VMALLOC:
            self._accused.add(event.number)
            where = f"{event.virtual:#x} is not in the direct map"
            self._note("set-memory-on-vmalloc", event, None, where)

    def _undoes(self, event: Event) -> bool:
        """Tell whether a call takes back one whose address was wrong: that was told then."""
        changed = self._types.get(event.physical // PAGE)
        return event.kind in _WRITE_BACK and changed is not None and changed.number in self._accused

    def settle(self, event: Event) -> None:
        """Take the end of a probe, or of a module's start or life: by then it has looked, or it never will.

        What was refused and is still a live buffer's, or of yet another type, was not dealt with.
        """
        if not self._refused:
            return
        alive = frozenset(frame for entry in self._buffers for frame in _frames_of(entry))
        ignored: dict[int, Event] = {}
        for frame, refused in list(self._refused.items()):
            if refused.module != event.module:
                continue
            del self._refused[frame]
            if not event.error and (frame in alive or frame in self._types):
                ignored[refused.number] = refused
        for refused in ignored.values():
            wanted = refused.kind.name.rpartition("_")[2]
            how = (
                f"{wanted} of {refused.virtual:#x} was refused ({refused.error}), and it is used all the same"
            )
            self._note("type-not-set", refused, None, how)

    def give(self, event: Event) -> None:
        """Take a mapping of pages into user space."""
        if event.error:
            return
        self._users[event.owner] = event
        if event.kind not in _AS_GIVEN:
            return
        cached = not event.gfp & _CACHE_BITS
        for frame in _given(event):
            changed = self._types.get(frame)
            if cached == (changed is None):
                continue
            kernel = "WB" if changed is None else changed.kind.name.rpartition("_")[2]
            user = "write-back" if cached else "not write-back"
            how = f"page {frame * PAGE:#x} is {kernel}, and {user} at {event.owner:#x} for user space"
            self._note("user-mapping-type", event, None, how)
            return

    def freed(self, event: Event, entry: Entry) -> None:
        """Take the end of a buffer; what its next owner does with its pages is told by later calls."""
        if not self._types and not self._refused:
            return
        told = False
        for frame in _frames_of(entry):
            self._refused.pop(frame, None)
            changed = self._types.pop(frame, None)
            if changed is not None and not told:
                told = True
                how = f"page {frame * PAGE:#x} is freed as {changed.kind.name.rpartition('_')[2]}"
                self._note("type-not-restored", event, entry, how)


def _frames(start: int, length: int) -> range:
    return range(start // PAGE, -(-(start + length) // PAGE))


def _frames_of(entry: Entry) -> Iterator[int]:
    for run in entry.made.runs:
        yield from _frames(run.physical, run.length)


def _changed(event: Event) -> Iterator[int]:
    """Yield the frames a change is about, as far as its record knows them."""
    if event.pieces:
        for piece in event.pieces:
            yield from _frames(piece.physical, piece.length)
    elif event.physical:
        # The pages after the first of a vmalloc() area are anywhere.
        count = 1 if event.flags & Flag.VMALLOC else event.size
        yield from range(event.physical // PAGE, event.physical // PAGE + count)


def _given(event: Event) -> Iterator[int]:
    for run in event.runs:
        yield from _frames(run.physical, run.length)
