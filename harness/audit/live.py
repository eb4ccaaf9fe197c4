# SPDX-License-Identifier: MIT
"""What is alive: entries found again by bus address, exact or anywhere inside, per device or pool."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from harness.audit.events import Direction, Event

Key = tuple[int, int]
"""A device or pool, and a bus address."""


@dataclass(slots=True, eq=False)
class Entry:
    """A buffer, mapping, pool or block of a pool, from its making to its end.

    Attributes:
        made: the call that made it.
        ended: the call that ended it, None while it is alive.
        module: the module it was made by.
    """

    made: Event
    ended: Event | None = None

    @property
    def module(self) -> str:
        """Name of the module that made it, ``""`` for the kernel itself."""
        return self.made.module

    @property
    def direction(self) -> Direction:
        """As it was mapped; memory made without a direction is for both."""
        said = self.made.direction
        return Direction.BIDIRECTIONAL if said is Direction.UNSAID else said

    def __contains__(self, bus: int) -> bool:
        """Tell whether a bus address lies in it; of lists, in one of the entries."""
        return any(0 <= bus - start < length for start, length in bus_ranges(self.made))


def bus_ranges(event: Event) -> Iterator[tuple[int, int]]:
    """Yield the start and length, in bytes, of every range of bus addresses a call made."""
    listed = [(piece.bus, piece.bus_length) for piece in event.pieces if piece.bus_length]
    yield from listed or [(event.bus, event.size)]


class Live:
    """Entries that are alive, and the last one that was at each address."""

    def __init__(self) -> None:
        self._exact: dict[Key, list[Entry]] = {}
        self._starts: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._numbers: dict[int, Entry] = {}
        self._past: dict[Key, Entry] = {}
        self._longest = 0  # bytes; nothing reaches further back than this

    def __len__(self) -> int:
        """How many are alive."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[Entry]:
        """Yield all that are alive, in the order they were made."""
        return iter(list(self._numbers.values()))

    def add(self, owner: int, entry: Entry) -> None:
        """Note an entry; several can be at one address: the same page mapped twice."""
        self._exact.setdefault((owner, entry.made.bus), []).append(entry)
        for start, length in bus_ranges(entry.made):
            insort(self._starts[owner], (start, entry.made.number))
            self._longest = max(self._longest, length)
        self._numbers[entry.made.number] = entry

    def at(self, owner: int, bus: int) -> list[Entry]:
        """Return those that begin at an address, the oldest first."""
        return self._exact.get((owner, bus), [])

    def around(self, owner: int, bus: int) -> Iterator[Entry]:
        """Yield those that an address lies in, the nearest start first."""
        starts = self._starts[owner]
        for start, number in _backwards(starts, bisect_right(starts, (bus, 1 << 64))):
            if start + self._longest <= bus:
                return
            if bus in self._numbers[number]:
                yield self._numbers[number]

    def past(self, owner: int, bus: int) -> Entry | None:
        """Return the last one that began at an address and has ended."""
        return self._past.get((owner, bus))

    def gone(self) -> Iterator[Entry]:
        """Yield the last one at each address that has ended."""
        return iter(list(self._past.values()))

    def end(self, owner: int, entry: Entry, event: Event) -> None:
        """Note that one has ended."""
        key = (owner, entry.made.bus)
        here = self._exact[key]
        here.remove(entry)
        if not here:
            del self._exact[key]
        starts = self._starts[owner]
        for start, _ in bus_ranges(entry.made):
            starts.pop(bisect_right(starts, (start, entry.made.number)) - 1)
        del self._numbers[entry.made.number]
        entry.ended = event
        self._past[key] = entry


def _backwards(rows: list[Key], end: int) -> Iterator[Key]:
    """Yield the rows before a place from the last on, without a copy of them."""
    return (rows[place] for place in range(end - 1, -1, -1))
