# SPDX-License-Identifier: MIT
"""Very many page-table leaves, and which of them touch given physical memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.oracle.paging import U8, U64, as_addresses

FLAG_USER, FLAG_WRITABLE, FLAG_EXECUTABLE = 1, 2, 4


@dataclass(frozen=True)
class PhysRange:
    """Contiguous guest physical memory.

    Attributes:
        start: first byte.
        length: bytes.
    """

    start: int
    length: int

    @property
    def end(self) -> int:
        """First byte behind the range."""
        return self.start + self.length


@dataclass(frozen=True)
class LeafTable:
    """Page-table leaves as parallel arrays, in any order.

    Attributes:
        va: first virtual address of each leaf.
        pa: physical address it maps.
        size: bytes it maps.
        entry: raw entry.
        level: 1, 2 or 3.
        flags: `FLAG_USER`, `FLAG_WRITABLE`, `FLAG_EXECUTABLE`, each as all levels together allow it.
        pat: PAT index 0..7.
        folded: paths not followed because of `scan.MAX_PATHS`.
        tables: table pages read.
    """

    va: U64
    pa: U64
    size: U64
    entry: U64
    level: U8
    flags: U8
    pat: U8
    folded: int
    tables: int

    def __len__(self) -> int:
        return len(self.va)

    def by_address(self) -> "LeafTable":
        """Return the leaves by rising virtual address."""
        return self.take(np.lexsort((self.entry, self.va)))

    def take(self, which: slice | NDArray[np.bool_] | NDArray[np.int64]) -> "LeafTable":
        """Return some of the leaves, in the same order."""
        return replace(
            self,
            va=self.va[which],
            pa=self.pa[which],
            size=self.size[which],
            entry=self.entry[which],
            level=self.level[which],
            flags=self.flags[which],
            pat=self.pat[which],
        )

    def touching(self, ranges: Sequence[PhysRange]) -> NDArray[np.int64]:
        """Return the positions of the leaves that map any byte of *ranges* (any number, any order)."""
        starts, ends = merged(ranges)
        if not len(starts) or not len(self):
            return np.zeros(0, dtype=np.int64)
        after = np.searchsorted(ends, self.pa, side="right")  # first range that ends behind the leaf's start
        inside = after < len(starts)
        candidate = np.where(inside, starts[np.minimum(after, len(starts) - 1)], 0)
        return np.flatnonzero(inside & (candidate < self.pa + self.size)).astype(np.int64)


def merged(ranges: Iterable[PhysRange]) -> tuple[U64, U64]:
    """Return the starts and ends of *ranges* after sorting and joining what overlaps or touches."""
    starts: list[int] = []
    ends: list[int] = []
    for item in sorted((r for r in ranges if r.length > 0), key=lambda r: r.start):
        if ends and item.start <= ends[-1]:
            ends[-1] = max(ends[-1], item.end)
        else:
            starts.append(item.start)
            ends.append(item.end)
    return as_addresses(starts), as_addresses(ends)
