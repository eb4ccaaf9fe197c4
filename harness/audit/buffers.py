# SPDX-License-Identifier: MIT
"""A driver's buffer as a test holds it: what the ledger says of it, and where to look from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from harness.audit.events import Direction, Event, Kind, Piece
from harness.audit.live import Entry, bus_ranges
from harness.oracle import Leaf, MemoryType, PhysRange, View
from harness.oracle.errors import Unmapped

_KERNEL_HALF = 0xFFFF_8000_0000_0000
_WORDS = {
    Kind.ALLOC: "coherent buffer",
    Kind.ALLOC_PAGES: "pages for streaming",
    Kind.ALLOC_NONCONTIGUOUS: "noncontiguous buffer",
    Kind.MAP_PAGE: "streaming mapping",
    Kind.MAP_SG: "list of mappings",
    Kind.MAP_SGTABLE: "list of mappings",
    Kind.MAP_RESOURCE: "mapping of a device's registers",
    Kind.POOL_CREATE: "pool",
    Kind.POOL_ALLOC: "block of a pool",
}


def word_for(kind: Kind) -> str:
    """Return what a call makes, for people."""
    return _WORDS.get(kind, kind.name.lower())


class Observer(Protocol):
    """What a buffer needs of `harness.oracle.Oracle`."""

    def frozen(self) -> AbstractContextManager[View]:
        """Stop the guest and show it."""


@dataclass(frozen=True)
class Sight:
    """A buffer as a stopped guest showed it.

    Attributes:
        physical: where it lies; walked from its virtual address where it has one, else as the ledger says.
        walked: whether page tables were asked for that.
        leaves: every page-table leaf that maps a byte of it.
        data: its bytes, out of physical memory; cut to what was asked for.
    """

    physical: tuple[PhysRange, ...]
    walked: bool
    leaves: tuple[Leaf, ...]
    data: bytes = b""

    @property
    def types(self) -> frozenset[MemoryType]:
        """Effective memory types over all its mappings."""
        return frozenset(leaf.effective for leaf in self.leaves)


@dataclass(frozen=True, eq=False)
class Buffer:
    """One allocation or streaming mapping of a driver; `harness.oracle.Oracle` takes it as a buffer as well.

    Attributes:
        entry: what the ledger knows of it.
        oracle: who looks at it from outside.
        place: names the code of a call.
    """

    entry: Entry
    oracle: Observer
    place: Callable[[Event], str]

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    @property
    def made(self) -> Event:
        """The call that made it: masks, flags, attributes, stack."""
        return self.entry.made

    @property
    def address(self) -> int:
        """Kernel virtual address of the first byte; 0 where it has none."""
        return self.made.virtual

    @property
    def storage(self) -> int:
        """Bytes, as they were asked for."""
        return self.made.size

    @property
    def size(self) -> int:
        """The same as `storage`."""
        return self.made.size

    @property
    def bus(self) -> int:
        """Address of the first byte as its device sees it."""
        return self.made.bus

    @property
    def bus_ranges(self) -> tuple[tuple[int, int], ...]:
        """Start and length in bytes of every range the device was given."""
        return tuple(bus_ranges(self.made))

    @property
    def claimed(self) -> Sequence[Piece]:
        """Where the ledger says that it lies."""
        return self.made.runs

    @property
    def direction(self) -> Direction:
        """Who writes it: what was said when it was mapped."""
        return self.entry.direction

    @property
    def device(self) -> str:
        """Its device's name."""
        return self.made.name

    @property
    def alive(self) -> bool:
        """Whether it has not been freed or unmapped, as far as the ledger was read."""
        return self.entry.ended is None

    @property
    def site(self) -> str:
        """The code that made it: ``ring.c:41 in ring_probe+0x5a [ring]``."""
        return self.place(self.made)

    def describe(self) -> str:
        """Return it in a line."""
        return (
            f"{word_for(self.made.kind)} of {self.size} bytes at bus address {self.bus:#x} of {self.device}"
        )

    def look(self, length: int = 0) -> Sight:
        """Look at it from outside, the guest stopped.

        Args:
            length: bytes of it to read as well.

        Raises:
            HarnessError: the machine's state cannot be read.
        """
        with self.oracle.frozen() as view:
            physical, walked = self._physical(view)
            data, left = b"", min(length, sum(part.length for part in physical))
            for part in physical:
                data += view.read(part.start, min(part.length, left - len(data)))
                if len(data) >= left:
                    break
            return Sight(physical, walked, view.aliases(physical), data)

    def _physical(self, view: View) -> tuple[tuple[PhysRange, ...], bool]:
        if self.made.kind not in (Kind.MAP_SG, Kind.MAP_SGTABLE) and self.address >= _KERNEL_HALF:
            try:
                return view.physical_of(self.address, self.storage), True
            except Unmapped:
                pass  # DMA_ATTR_NO_KERNEL_MAPPING: what looks like an address is none
        return tuple(PhysRange(run.physical, run.length) for run in self.claimed), False
