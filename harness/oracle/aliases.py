# SPDX-License-Identifier: MIT
"""All leaves of a set of page tables at once, and which of them touch given physical memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.oracle import paging
from harness.oracle.errors import OracleError
from harness.oracle.paging import U8, U64, Tables, as_addresses

MAX_PATHS = 16
"""A table page reached along more paths than this (KASAN's shadow is one page mapped everywhere) shows its
first `MAX_PATHS` virtual addresses. Its entries, and so its memory types, are all seen."""
MAX_TABLES = 1 << 17
"""Pointers to tables at one level above which page tables are taken for garbage. That many map 256 GiB in
4 KiB pages; what KASAN repeats comes on top, and stays far below."""

FLAG_USER, FLAG_WRITABLE, FLAG_EXECUTABLE = 1, 2, 4
_ALL_FLAGS = FLAG_USER | FLAG_WRITABLE | FLAG_EXECUTABLE


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
    """Page-table leaves as parallel arrays, by rising virtual address.

    Attributes:
        va: first virtual address of each leaf.
        pa: physical address it maps.
        size: bytes it maps.
        entry: raw entry.
        level: 1, 2 or 3.
        flags: `FLAG_USER`, `FLAG_WRITABLE`, `FLAG_EXECUTABLE`, each as all levels together allow it.
        pat: PAT index 0..7.
        folded: paths not followed because of `MAX_PATHS`.
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

    def kernel_half(self) -> "LeafTable":
        """Return the leaves with addresses in the upper half, which every process shares."""
        return self.take(slice(int(np.searchsorted(self.va, np.uint64(1 << 63))), None))

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


def scan(tables: Tables, roots: Sequence[int], levels: int, *, no_execute: bool = True) -> LeafTable:
    """Read every leaf below *roots*, level by level.

    What several roots share (the kernel half) is read once. Depth is bounded by *levels*, and width by
    `MAX_PATHS` per table page, so tables that point at themselves or hold garbage end too.

    Args:
        tables: the memory.
        roots: physical addresses of top tables; those outside RAM are ignored.
        levels: 4 or 5.
        no_execute: see `paging.walk`.

    Raises:
        OracleError: more tables than page tables can sensibly have.
    """
    table = np.unique(as_addresses([root & paging.ADDRESS for root in roots]))
    table = table[tables.in_ram(table)]
    va = np.zeros(len(table), dtype=np.uint64)
    flags = np.full(len(table), _ALL_FLAGS, dtype=np.uint8)
    leaves: list[tuple[U64, U64, U8, int]] = []
    folded = read = 0
    for level in range(levels, 0, -1):
        read += len(table)
        rows = tables.rows(table)
        row, column = np.nonzero(rows & np.uint64(paging.PRESENT))
        entry = rows[row, column]
        va = va[row] | column.astype(np.uint64) << np.uint64(paging.shift_of(level))
        if level == levels:
            va = _sign_extended(va, levels)
        flags = flags[row] & _entry_flags(entry, no_execute)
        leaf, below = _split(entry, level)
        leaves.append((va[leaf], entry[leaf], flags[leaf], level))
        va, table, flags = va[below], entry[below] & np.uint64(paging.ADDRESS), flags[below]
        keep, lost = _first_paths(tables, va, table, flags)
        va, table, flags = va[keep], table[keep], flags[keep]
        folded += lost
    return _collect(leaves, folded, read)


def _sign_extended(va: U64, levels: int) -> U64:
    bits = paging.shift_of(levels + 1)
    top = np.uint64(0xFFFF_FFFF_FFFF_FFFF ^ ((1 << bits) - 1))
    return np.where(va >> np.uint64(bits - 1) != 0, va | top, va)


def _entry_flags(entry: U64, no_execute: bool) -> U8:
    flags = (entry & np.uint64(paging.USER)) >> np.uint64(2) | entry & np.uint64(paging.WRITABLE)
    flags |= np.uint64(FLAG_EXECUTABLE)
    if no_execute:
        flags &= ~(entry >> np.uint64(63) << np.uint64(2))
    return flags.astype(np.uint8)


def _split(entry: U64, level: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell leaves from pointers to tables; above level 3 the size bit is reserved, the entry neither."""
    sized = entry & np.uint64(paging.PAGE_SIZE_BIT) != 0
    if level == 1:
        return np.ones(len(entry), dtype=np.bool_), np.zeros(len(entry), dtype=np.bool_)
    leaf = sized if level <= paging.LARGEST_LEAF_LEVEL else np.zeros(len(entry), dtype=np.bool_)
    return leaf, ~sized


def _first_paths(tables: Tables, va: U64, table: U64, flags: U8) -> tuple[NDArray[np.int64], int]:
    """Choose which (address, table) pairs to follow: each once, at most `MAX_PATHS` per table and flags."""
    ram = np.flatnonzero(tables.in_ram(table))
    if len(ram) > MAX_TABLES:
        raise OracleError(
            f"more than {MAX_TABLES} page tables at one level: that is garbage, not a kernel at work",
            hint="a vCPU's CR3 points at something else than page tables, or they were overwritten",
        )
    key = table[ram] | flags[ram]
    order = np.lexsort((va[ram], key))
    ram, key, address = ram[order], key[order], va[ram][order]
    if not len(ram):
        return ram, 0
    new = np.ones(len(ram), dtype=np.bool_)
    new[1:] = (key[1:] != key[:-1]) | (address[1:] != address[:-1])
    ram, key = ram[new], key[new]
    first = np.ones(len(ram), dtype=np.bool_)
    first[1:] = key[1:] != key[:-1]
    begin = np.maximum.accumulate(np.where(first, np.arange(len(ram)), 0))
    followed = np.arange(len(ram)) - begin < MAX_PATHS
    return np.sort(ram[followed]), int(len(ram) - np.count_nonzero(followed))


def _collect(leaves: Sequence[tuple[U64, U64, U8, int]], folded: int, read: int) -> LeafTable:
    va = np.concatenate([part[0] for part in leaves])
    entry = np.concatenate([part[1] for part in leaves])
    flags = np.concatenate([part[2] for part in leaves])
    level = np.concatenate([np.full(len(part[0]), part[3], dtype=np.uint8) for part in leaves])
    order = np.lexsort((entry, va))
    va, entry, flags, level = va[order], entry[order], flags[order], level[order]
    size = np.uint64(1) << (np.uint64(12) + np.uint64(9) * (level.astype(np.uint64) - np.uint64(1)))
    pa = entry & np.uint64(paging.ADDRESS) & ~(size - np.uint64(1))
    return LeafTable(va, pa, size, entry, level, flags, _pat_indices(entry, level), folded, read)


def _pat_indices(entry: U64, level: U8) -> U8:
    """`paging.pat_index` for many leaves."""
    where = np.where(level == 1, np.uint64(paging.PAT_SMALL), np.uint64(paging.PAT_LARGE))
    pat: U8 = (entry & where != 0).astype(np.uint8) << np.uint8(2)
    low: U8 = (entry >> np.uint64(3) & np.uint64(3)).astype(np.uint8)
    return pat | low
