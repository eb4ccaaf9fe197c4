# SPDX-License-Identifier: MIT
"""The pages of many buffers as flat arrays."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import BadInput
from harness.oracle.paging import PAGE, U64
from harness.oracle.translate import NOWHERE

I64 = NDArray[np.int64]

_PAGE = np.uint64(PAGE)
_IN_PAGE = np.uint64(PAGE - 1)
_PAGE_BITS = np.uint64(12)
_OWNER_SHIFT = np.uint64(40)  # a physical page number has 40 bits
_MOST_BUFFERS = 1 << 24
_MOST_PAGES = 1 << 24


class Buffer(Protocol):
    """Anything with kernel memory: a descriptor, a driver's DMA block."""

    @property
    def address(self) -> int:
        """Kernel virtual address of the first byte."""

    @property
    def storage(self) -> int:
        """Bytes of memory from there on."""


@runtime_checkable
class Buffers(Protocol):
    """Many of them at once, as arrays."""

    @property
    def address(self) -> ArrayLike:
        """Kernel virtual addresses of the first bytes."""

    @property
    def storage(self) -> ArrayLike:
        """Bytes of memory from there on, for each."""


def extents(bufs: Buffers | Iterable[Buffer]) -> tuple[ArrayLike, ArrayLike]:
    """Return the addresses and the sizes of many buffers."""
    if isinstance(bufs, Buffers):  # it may well be iterable besides
        return bufs.address, bufs.storage
    found = [(buf.address, buf.storage) for buf in bufs]
    return [address for address, _ in found], [storage for _, storage in found]


@dataclass(frozen=True, eq=False)
class Spans:
    """Where buffers are in virtual memory, page by page.

    Attributes:
        address: virtual address of each buffer's first byte.
        storage: bytes of each buffer.
        count: pages each buffer touches.
        begin: position of each buffer's first page in `owner` and `va`.
        owner: number of the buffer, per page.
        va: virtual address of each page.
    """

    address: U64
    storage: U64
    count: I64
    begin: I64
    owner: I64
    va: U64

    @classmethod
    def of(cls, address: ArrayLike, storage: ArrayLike) -> "Spans":
        """Lay buffers out.

        Args:
            address: virtual addresses.
            storage: bytes, one number for all or one each.

        Raises:
            BadInput: an address or a size is negative, a buffer goes beyond the end of all addresses, or all
                together have more than 64 GiB.
        """
        addresses = np.array(unsigned(address, "address"), ndmin=1)
        sizes = spread(storage, len(addresses), "storage")
        if len(addresses) > _MOST_BUFFERS:
            raise BadInput(f"{len(addresses)} buffers are more than {_MOST_BUFFERS}")
        beyond = np.flatnonzero((sizes > 0) & (addresses + (sizes - np.uint64(1)) < addresses))
        if len(beyond):
            one = int(beyond[0])
            raise BadInput(
                f"buffer {one} goes beyond the end of all addresses",
                observed=f"{int(sizes[one])} bytes at {int(addresses[one]):#x}",
            )
        pages = (sizes >> _PAGE_BITS) + ((addresses & _IN_PAGE) + (sizes & _IN_PAGE) + _IN_PAGE >> _PAGE_BITS)
        if np.sum(pages, dtype=np.float64) > _MOST_PAGES:
            one = int(np.argmax(pages))
            raise BadInput(
                f"{len(addresses)} buffers of more than {_MOST_PAGES} pages together",
                observed=f"the largest one, {one}, has {int(sizes[one])} bytes at {int(addresses[one]):#x}",
                hint="storage is in bytes; ask in parts if it is right",
            )
        count = np.where(sizes > 0, pages, 0).astype(np.int64)
        begin = np.cumsum(count) - count
        owner = np.repeat(np.arange(len(count)), count)
        within = (np.arange(len(owner)) - begin[owner]).astype(np.uint64)
        va = (addresses & ~_IN_PAGE)[owner] + within * _PAGE
        return cls(addresses, sizes, count, begin, owner, va)

    def __len__(self) -> int:
        return len(self.address)


def unsigned(values: ArrayLike, name: str) -> U64:
    """Return whole numbers that are not negative as an array.

    Raises:
        BadInput: they are something else; *name* says what they should have been.
    """
    if isinstance(values, np.ndarray):
        kind = values.dtype.kind
        right = kind == "u" or (kind == "i" and not (values < 0).any()) or not values.size
        if right:
            return values.astype(np.uint64, copy=False)
        raise BadInput(f"{name}: {values.dtype} numbers, some of them negative or no whole numbers")
    try:
        return np.array(values, dtype=np.uint64)
    except (OverflowError, TypeError, ValueError) as error:
        raise BadInput(f"{name}: whole numbers from 0 on are needed", observed=str(error)) from error


def spread(values: ArrayLike, count: int, name: str) -> U64:
    """Return one number per buffer, from one for all or one each.

    Raises:
        BadInput: they are as many as neither.
    """
    found = unsigned(values, name)
    if found.ndim > 1 or found.size not in (1, count):
        raise BadInput(f"{name}: {found.size} values for {count} buffers", hint="one for all, or one each")
    return np.broadcast_to(found, (count,)).copy()


@dataclass(frozen=True, eq=False)
class Placed:
    """Where buffers are in physical memory, page by page, in virtual order.

    Attributes:
        spans: the same pages in virtual memory.
        physical: physical address of each page, `NOWHERE` where it is not mapped.
    """

    spans: Spans
    physical: U64

    @cached_property
    def mapped(self) -> NDArray[np.bool_]:
        """Whether each page is mapped."""
        mapped: NDArray[np.bool_] = self.physical != np.uint64(NOWHERE)
        return mapped

    @cached_property
    def unmapped_pages(self) -> I64:
        """Pages of each buffer that are not mapped."""
        return self.per_buffer(~self.mapped)

    @cached_property
    def starts(self) -> NDArray[np.bool_]:
        """Whether each page begins a physically contiguous piece of its buffer."""
        owner, physical = self.spans.owner, self.physical
        new = self.mapped.copy()
        # A page behind NOWHERE would be at no page's address.
        new[1:] &= (physical[1:] != physical[:-1] + _PAGE) | (owner[1:] != owner[:-1])
        return new

    @cached_property
    def first(self) -> U64:
        """Physical address of each buffer's first byte, `NOWHERE` where it has none."""
        return self.segments(0, self.spans.storage)[0]

    def per_buffer(self, pages: NDArray[np.bool_]) -> I64:
        """Return how many pages of each buffer are marked."""
        return np.bincount(self.spans.owner[pages], minlength=len(self.spans)).astype(np.int64)

    def segments(self, offset: ArrayLike, length: ArrayLike) -> tuple[U64, U64]:
        """Return for one byte of each buffer where it is, and how many bytes are contiguous from there on.

        Args:
            offset: which byte; one for all buffers or one each.
            length: bytes of the buffer that count; one for all or one each. More than its storage is less.

        Returns:
            Physical addresses and bytes; `NOWHERE` and 0 where the byte is not mapped or not in the buffer.
        """
        spans = self.spans
        at = spread(offset, len(spans), "offset")
        ends = np.minimum(spread(length, len(spans), "length"), spans.storage)
        address = np.full(len(spans), NOWHERE, dtype=np.uint64)
        run = np.zeros(len(spans), dtype=np.uint64)
        inside = np.flatnonzero(at < ends)
        position = (spans.address[inside] & _IN_PAGE) + at[inside]
        page = spans.begin[inside] + (position >> _PAGE_BITS).astype(np.int64)
        there = self.mapped[page]
        inside, position, page = inside[there], position[there], page[there]
        address[inside] = self.physical[page] + (position & _IN_PAGE)
        bytes_left = (self._piece_end[page] - page).astype(np.uint64) * _PAGE - (position & _IN_PAGE)
        run[inside] = np.minimum(bytes_left, ends[inside] - at[inside])
        return address, run

    @cached_property
    def _piece_end(self) -> I64:
        """Position behind the last page of the piece each mapped page is in."""
        borders = np.flatnonzero(self.starts | ~self.mapped)
        ends = np.append(borders, len(self.physical))[1:]
        return np.repeat(ends, ends - borders).astype(np.int64)

    @cached_property
    def owned(self) -> tuple[I64, U64]:
        """Every (buffer, physical page number) there is, each once, by buffer and then by page."""
        owner = self.spans.owner[self.mapped].astype(np.uint64)
        keys = distinct(owner << _OWNER_SHIFT | self.physical[self.mapped] >> _PAGE_BITS)
        pages = keys & np.uint64((1 << 40) - 1)
        return (keys >> _OWNER_SHIFT).astype(np.int64), pages


def distinct(values: U64) -> U64:
    """Return the values, rising, each once (np.unique has a hash table, which takes many times as long)."""
    ordered = np.sort(values)
    new = np.ones(len(ordered), dtype=np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new]
