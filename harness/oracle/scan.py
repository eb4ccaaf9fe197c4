# SPDX-License-Identifier: MIT
"""All leaves of a set of page tables at once, and again later for the price of comparing bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from harness.oracle import paging
from harness.oracle.aliases import FLAG_EXECUTABLE, FLAG_USER, FLAG_WRITABLE, LeafTable
from harness.oracle.errors import OracleError
from harness.oracle.paging import U8, U64, Tables, as_addresses

MAX_PATHS = 16
"""A table page reached along more paths than this (KASAN's shadow is one page mapped everywhere) shows its
first `MAX_PATHS` virtual addresses. Its entries, and so its memory types, are all seen."""
MAX_TABLES = 1 << 17
"""Pointers to tables at one level above which page tables are taken for garbage. That many map 256 GiB in
4 KiB pages; what KASAN repeats comes on top, and stays far below."""

_REMEMBERED: Final = 1 << 13  # table pages of one level: 32 MiB of bytes to compare with
_WORTH_SPLICING: Final = 4  # one part in so many; with more changes it is quicker to decode all of a level
_ALL_FLAGS: Final = FLAG_USER | FLAG_WRITABLE | FLAG_EXECUTABLE
_ADDRESS = np.uint64(paging.ADDRESS)

I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Paths:
    """Ways by which tables of one level are reached."""

    va: U64
    table: U64
    flags: U8

    def __len__(self) -> int:
        return len(self.va)

    def take(self, which: I64 | Bools) -> "_Paths":
        return _Paths(self.va[which], self.table[which], self.flags[which])

    def equals(self, other: "_Paths") -> bool:
        return (
            np.array_equal(self.va, other.va)
            and np.array_equal(self.table, other.table)
            and np.array_equal(self.flags, other.flags)
        )


@dataclass(frozen=True, eq=False)
class _Level:
    """What the tables of one level hold, path by path.

    Attributes:
        paths: how the tables are reached.
        rows: their bytes.
        leaf_counts: leaves of each path.
        leaves: those leaves; the column called table is their entries.
        below_counts: pointers to tables of each path.
        below: those pointers.
    """

    paths: _Paths
    rows: U64
    leaf_counts: I64
    leaves: _Paths
    below_counts: I64
    below: _Paths


class Scanner:
    """Reads page tables again and again, and decodes only tables whose bytes differ from the last time.

    Every byte is read and compared every time; nothing is believed because of an address, a count or a time.
    A path of pointers that leads to the same table at the same place, with the same rights, to the same 512
    entries, has the same leaves.

    Attributes:
        decoded: table pages the last scan had to decode.
    """

    def __init__(self) -> None:
        self.decoded = 0
        self._top, self._no_execute = 0, True
        self._levels: dict[int, _Level] = {}
        self._last: tuple[tuple[_Level, ...], LeafTable] | None = None

    def scan(
        self, tables: Tables, roots: Sequence[int], levels: int, *, no_execute: bool = True
    ) -> LeafTable:
        """Read every leaf below *roots*, level by level.

        What several roots share (the kernel half) is read once. Depth is bounded by *levels*, and width by
        `MAX_PATHS` per table page, so tables that point at themselves or hold garbage end too.

        Args:
            tables: the memory.
            roots: physical addresses of top tables; those outside RAM are ignored.
            levels: 4 or 5.
            no_execute: see `paging.walk`.

        Returns:
            The leaves, in no particular order; never changed afterwards.

        Raises:
            OracleError: more tables than page tables can sensibly have.
        """
        if (self._top, self._no_execute) != (levels, no_execute):
            self._top, self._no_execute = levels, no_execute
            self._levels, self._last = {}, None
        self.decoded = folded = 0
        table = np.unique(as_addresses([root & paging.ADDRESS for root in roots]))
        table = table[tables.in_ram(table)]
        nothing = np.zeros(len(table), dtype=np.uint64)
        paths = _Paths(nothing, table, np.full(len(table), _ALL_FLAGS, dtype=np.uint8))
        found: list[_Level] = []
        for level in range(levels, 0, -1):
            found.append(self._read(tables, paths, level))
            paths, lost = _first_paths(tables, found[-1].below)
            folded += lost
        return self._collected(tuple(found), folded)

    def _read(self, tables: Tables, paths: _Paths, level: int) -> _Level:
        rows = tables.rows(paths.table)
        old = self._levels.get(level)
        match = np.full(len(paths), -1) if old is None else _matches(old.paths, paths)
        other = np.flatnonzero(~_unchanged(old, rows, match))
        if old is not None and not len(other) and len(old.paths) == len(paths):
            return old
        if old is None or len(other) > len(paths) // _WORTH_SPLICING:
            other = np.arange(len(paths))
            new = self._decoded(paths, rows, level)
        else:
            fresh = self._decoded(paths.take(other), rows[other], level)
            match[other] = len(old.paths) + np.arange(len(other))
            new = _spliced(paths, rows, old, fresh, match)
        self.decoded += len(other)
        self._levels.pop(level, None)
        if len(paths) <= _REMEMBERED:
            self._levels[level] = new
        return new

    def _decoded(self, paths: _Paths, rows: U64, level: int) -> _Level:
        position = np.flatnonzero((rows & np.uint64(paging.PRESENT)).view(np.int64))
        row, column = position >> 9, position & (paging.ENTRIES - 1)
        entry = rows.reshape(-1)[position]
        va = paths.va[row] | column.astype(np.uint64) << np.uint64(paging.shift_of(level))
        if level == self._top:
            va = _sign_extended(va, level)
        flags = paths.flags[row] & _entry_flags(entry, self._no_execute)
        leaf, pointer = _split(entry, level)
        found = _Paths(va, entry, flags)
        below = found.take(pointer)
        return _Level(
            paths,
            rows,
            np.bincount(row[leaf], minlength=len(paths)).astype(np.int64),
            found.take(leaf),
            np.bincount(row[pointer], minlength=len(paths)).astype(np.int64),
            _Paths(below.va, below.table & _ADDRESS, below.flags),
        )

    def _collected(self, found: tuple[_Level, ...], folded: int) -> LeafTable:
        if self._last is not None:
            before, table = self._last
            if table.folded == folded and all(a is b for a, b in zip(found, before, strict=True)):
                return table
        parts = [(part.leaves, level) for part, level in zip(found, range(len(found), 0, -1), strict=True)]
        va = np.concatenate([leaves.va for leaves, _ in parts])
        entry = np.concatenate([leaves.table for leaves, _ in parts])
        flags = np.concatenate([leaves.flags for leaves, _ in parts])
        counts = [len(leaves) for leaves, _ in parts]
        level = np.repeat(np.array([level for _, level in parts], dtype=np.uint8), counts)
        sizes = [paging.leaf_size(min(level, paging.LARGEST_LEAF_LEVEL)) for _, level in parts]
        size = np.repeat(as_addresses(sizes), counts)
        pa = entry & _ADDRESS & ~(size - np.uint64(1))
        read = sum(len(part.paths) for part in found)
        table = LeafTable(va, pa, size, entry, level, flags, _pat_indices(entry, level), folded, read)
        self._last = found, table
        return table


def scan(tables: Tables, roots: Sequence[int], levels: int, *, no_execute: bool = True) -> LeafTable:
    """Read every leaf below *roots* once; see `Scanner.scan`."""
    return Scanner().scan(tables, roots, levels, no_execute=no_execute)


def _matches(old: _Paths, new: _Paths) -> I64:
    """Return for each new path the position of the same old one, or -1."""
    if len(old) == len(new) and old.equals(new):
        return np.arange(len(new))
    va = np.concatenate([old.va, new.va])
    key = np.concatenate([old.table | old.flags, new.table | new.flags])
    order = np.lexsort((key, va))  # stable: an old path comes before the same new one
    first, second = order[:-1], order[1:]
    same = (va[first] == va[second]) & (key[first] == key[second]) & (first < len(old)) & (second >= len(old))
    match = np.full(len(new), -1, dtype=np.int64)
    match[second[same] - len(old)] = first[same]
    return match


def _unchanged(old: _Level | None, rows: U64, match: I64) -> Bools:
    """Return for each of *rows* whether it has the bytes of the old one that *match* names; -1 names none."""
    same = np.zeros(len(rows), dtype=np.bool_)
    known = np.flatnonzero(match >= 0)
    if old is None or not len(known):
        return same
    if len(known) == len(old.rows) and (known == match[known]).all():  # no copy in the usual case
        same[known] = (rows[: len(known)] == old.rows).all(axis=1)
    else:
        same[known] = (rows[known] == old.rows[match[known]]).all(axis=1)
    return same


def _spliced(paths: _Paths, rows: U64, old: _Level, fresh: _Level, source: I64) -> _Level:
    """Put a level together; *source* says for each path which one of the old and then the fresh it is."""
    leaf_counts, leaves = _gathered((old.leaf_counts, fresh.leaf_counts), (old.leaves, fresh.leaves), source)
    below_counts, below = _gathered((old.below_counts, fresh.below_counts), (old.below, fresh.below), source)
    return _Level(paths, rows, leaf_counts, leaves, below_counts, below)


def _gathered(counts: tuple[I64, I64], parts: tuple[_Paths, _Paths], source: I64) -> tuple[I64, _Paths]:
    every = np.concatenate(counts)
    begin = np.cumsum(every) - every
    mine = every[source]
    which = np.arange(mine.sum()) + np.repeat(begin[source] - (np.cumsum(mine) - mine), mine)
    old, fresh = parts
    joined = _Paths(
        np.concatenate([old.va, fresh.va]),
        np.concatenate([old.table, fresh.table]),
        np.concatenate([old.flags, fresh.flags]),
    )
    return mine, joined.take(which)


def _sign_extended(va: U64, levels: int) -> U64:
    bits = paging.shift_of(levels + 1)
    top = np.uint64(0xFFFF_FFFF_FFFF_FFFF ^ ((1 << bits) - 1))
    return np.where(va >> np.uint64(bits - 1) != 0, va | top, va)


def _entry_flags(entry: U64, no_execute: bool) -> U8:
    low = entry.astype(np.uint8)
    flags = low >> np.uint8(2) & np.uint8(FLAG_USER) | low & np.uint8(FLAG_WRITABLE)
    flags |= np.uint8(FLAG_EXECUTABLE)
    if no_execute:
        flags &= ~(entry >> np.uint64(63) << np.uint64(2)).astype(np.uint8)
    return flags


def _split(entry: U64, level: int) -> tuple[Bools, Bools]:
    """Tell leaves from pointers to tables; above level 3 the size bit is reserved, the entry neither."""
    if level == 1:
        return np.ones(len(entry), dtype=np.bool_), np.zeros(len(entry), dtype=np.bool_)
    sized = entry & np.uint64(paging.PAGE_SIZE_BIT) != 0
    leaf = sized if level <= paging.LARGEST_LEAF_LEVEL else np.zeros(len(entry), dtype=np.bool_)
    return leaf, ~sized


def _first_paths(tables: Tables, found: _Paths) -> tuple[_Paths, int]:
    """Choose which paths to follow: each once, at most `MAX_PATHS` per table and flags."""
    ram = np.flatnonzero(tables.in_ram(found.table))
    if len(ram) > MAX_TABLES:
        raise OracleError(
            f"more than {MAX_TABLES} page tables at one level: that is garbage, not a kernel at work",
            hint="a vCPU's CR3 points at something else than page tables, or they were overwritten",
        )
    key = found.table[ram] | found.flags[ram]
    order = np.lexsort((found.va[ram], key))
    ram, key, address = ram[order], key[order], found.va[ram][order]
    if not len(ram):
        return found.take(ram), 0
    new = np.ones(len(ram), dtype=np.bool_)
    new[1:] = (key[1:] != key[:-1]) | (address[1:] != address[:-1])
    ram, key = ram[new], key[new]
    first = np.ones(len(ram), dtype=np.bool_)
    first[1:] = key[1:] != key[:-1]
    begin = np.maximum.accumulate(np.where(first, np.arange(len(ram)), 0))
    followed = np.arange(len(ram)) - begin < MAX_PATHS
    return found.take(np.sort(ram[followed])), int(len(ram) - np.count_nonzero(followed))


def _pat_indices(entry: U64, level: U8) -> U8:
    """`paging.pat_index` for many leaves."""
    bits = entry.astype(np.uint16)
    where = np.where(level == 1, np.uint16(paging.PAT_SMALL), np.uint16(paging.PAT_LARGE))
    pat: U8 = (bits & where != 0).astype(np.uint8) << np.uint8(2)
    pat |= (bits >> np.uint16(3)).astype(np.uint8) & np.uint8(3)
    return pat
