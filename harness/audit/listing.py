# SPDX-License-Identifier: MIT
"""Every buffer and mapping that was ever made, counted by who made it, where, for which device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from harness.audit.events import Direction, Event, Kind
from harness.audit.live import Entry, bus_ranges

MADE = frozenset(
    {
        *(Kind.ALLOC, Kind.ALLOC_PAGES, Kind.ALLOC_NONCONTIGUOUS),
        *(Kind.MAP_PAGE, Kind.MAP_SG, Kind.MAP_SGTABLE, Kind.MAP_RESOURCE),
        *(Kind.POOL_CREATE, Kind.POOL_ALLOC),
    }
)
"""Calls that make something."""


@dataclass(slots=True)
class Group:
    """What was made by the same code, for the same device, in the same direction.

    Attributes:
        first: the first call of it.
        calls: how many there were.
        failed: how many of them failed.
        smallest: bytes of the smallest.
        largest: bytes of the largest.
        lowest: lowest bus address that was given out.
        highest: last byte of the highest.
    """

    first: Event
    calls: int = 0
    failed: int = 0
    smallest: int = 0
    largest: int = 0
    lowest: int = 0
    highest: int = 0

    def add(self, event: Event) -> None:
        """Count one more call."""
        self.calls += 1
        if event.error:
            self.failed += 1
            return
        good = self.calls - self.failed
        self.smallest = event.size if good == 1 else min(self.smallest, event.size)
        self.largest = max(self.largest, event.size)
        for start, length in bus_ranges(event) if event.kind is not Kind.POOL_CREATE else ():
            self.lowest = start if good == 1 else min(self.lowest, start)
            self.highest = max(self.highest, start + length - 1)


Key = tuple[Kind, int, Direction, tuple[int, ...]]


@dataclass
class Listing:
    """Counts calls as they come; see `Group`.

    Attributes:
        groups: by kind, device, direction and call stack.
    """

    groups: dict[Key, Group] = field(default_factory=dict)
    _pools: dict[int, Event] = field(default_factory=dict)

    def replay(self, events: Iterable[Event]) -> None:
        """Count the events that follow those counted before."""
        for event in events:
            if event.kind in MADE:
                made = self._of_pool(event)
                key = key_of(made)
                group = self.groups.get(key)
                if group is None:
                    group = self.groups[key] = Group(made)
                group.add(made)

    def _of_pool(self, event: Event) -> Event:
        """A block has the size of its pool's, and is known by its name."""
        if event.kind is Kind.POOL_CREATE:
            self._pools[event.owner] = event
        pool = self._pools.get(event.owner) if event.kind is Kind.POOL_ALLOC else None
        return event if pool is None else replace(event, size=pool.size, name=pool.name)

    def of(self, ours: Callable[[Event], bool]) -> list[Group]:
        """Return the groups whose first call is one of *ours*, in the order they began."""
        return sorted(
            (one for one in self.groups.values() if ours(one.first)), key=lambda one: one.first.number
        )


def key_of(event: Event) -> Key:
    """Return the group a call belongs to."""
    return event.kind, event.device, event.direction, event.stack


def alive(entries: Iterable[Entry]) -> dict[Key, int]:
    """Count entries that are alive by group."""
    counted: dict[Key, int] = {}
    for entry in entries:
        key = key_of(entry.made)
        counted[key] = counted.get(key, 0) + 1
    return counted
