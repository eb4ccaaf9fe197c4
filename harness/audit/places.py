# SPDX-License-Identifier: MIT
"""Where a book's live entries say they are, as flat lists of stretches that can be looked at all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.audit.book import Book
from harness.audit.events import Event, Kind
from harness.audit.live import Entry, bus_ranges

NO_KERNEL_MAPPING = 1 << 4
"""DMA_ATTR_NO_KERNEL_MAPPING (include/linux/dma-mapping.h): the address returned is no address."""

_HAS_ADDRESS = {Kind.ALLOC, Kind.POOL_ALLOC}
"""What these return is a kernel address; elsewhere the ledger writes down an object, or the direct map's."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Contiguous memory of an entry.

    Attributes:
        entry: whose.
        address: what it is looked up by: a kernel address, a bus address, or the physical one again.
        physical: where the ledger says it is; -1 where it does not say.
        length: bytes.
    """

    entry: Entry
    address: int
    physical: int
    length: int


@dataclass(frozen=True)
class Places:
    """The stretches of all live entries of a book.

    Attributes:
        kernel: by kernel address, where the driver was given one.
        memory: by physical address.
        bus: by bus address.
    """

    kernel: list[Stretch]
    memory: list[Stretch]
    bus: list[Stretch]


def places_of(book: Book) -> Places:
    """Collect what is alive in a book: buffers, mappings and blocks of pools."""
    places = Places([], [], [])
    for entry in (*book.buffers, *book.mappings):
        _add(places, entry, entry.made.size)
    for entry in book.blocks:
        pool = book.pools.get(entry.made.owner)
        _add(places, entry, max(1, entry.made.size or (pool.made.size if pool else 0)))
    return places


def _add(places: Places, entry: Entry, size: int) -> None:
    made = entry.made
    runs = _runs(made, size)
    places.memory.extend(Stretch(entry, start, start, length) for start, length in runs)
    if made.kind in _HAS_ADDRESS and not made.attrs & NO_KERNEL_MAPPING:
        at = made.virtual
        for start, length in runs:
            places.kernel.append(Stretch(entry, at, start, length))
            at += length
    ranges = list(bus_ranges(made)) if made.size else [(made.bus, size)]
    places.bus.extend(Stretch(entry, *piece) for piece in _paired(ranges, runs))


def _runs(made: Event, size: int) -> list[tuple[int, int]]:
    if made.pieces:
        return [(piece.physical, piece.length) for piece in made.pieces]
    return [(made.physical, size)] if made.physical else []


def _paired(ranges: list[tuple[int, int]], runs: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield (bus, physical, length): the bytes of both in their order, which is the same.

    An IOMMU joins entries of a list: the addresses are fewer then than the pieces of memory
    (drivers/iommu/dma-iommu.c, __finalise_sg).
    """
    memory = list(reversed(runs))
    for begin, length in ranges:
        done = 0
        while done < length:
            if not memory:
                yield begin + done, -1, length - done
                break
            start, left = memory.pop()
            step = min(left, length - done)
            if step < left:
                memory.append((start + step, left - step))
            if step:
                yield begin + done, start, step
            done += step
