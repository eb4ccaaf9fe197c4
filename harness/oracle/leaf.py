# SPDX-License-Identifier: MIT
"""Page-table leaves with the memory types they give."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from harness.oracle import paging
from harness.oracle.aliases import (
    FLAG_EXECUTABLE,
    FLAG_USER,
    FLAG_WRITABLE,
    LeafTable,
    PhysRange,
    merged,
)
from harness.oracle.memtype import MemoryType, TypeRules

Rules = Mapping[TypeRules, tuple[int, ...]]
"""How vCPUs type memory, and which vCPUs do it that way."""

_Types = tuple[MemoryType, MemoryType, MemoryType]


@dataclass(frozen=True)
class Leaf:
    """One page-table leaf and the memory type it gives.

    Attributes:
        va: virtual address of its first byte.
        pa: guest physical address of its first byte.
        size: bytes it maps (4 KiB, 2 MiB or 1 GiB).
        level: 1, 2 or 3.
        entry: the raw 64-bit entry.
        pat_index: 0..7, from the entry's PAT, PCD and PWT bits.
        pat_type: what IA32_PAT says for that index.
        mtrr_type: what the MTRRs say for the memory asked about.
        effective: both together (`memtype.EFFECTIVE`).
        user: user mode may use it.
        writable: it may be written.
        executable: code may be fetched from it.
        cpus: vCPUs on which the types are these. Where vCPUs disagree, or the memory asked about lies in
        MTRR ranges
            of several types, a leaf comes once per combination.
    """

    va: int
    pa: int
    size: int
    level: int
    entry: int
    pat_index: int
    pat_type: MemoryType
    mtrr_type: MemoryType
    effective: MemoryType
    user: bool
    writable: bool
    executable: bool = True
    cpus: tuple[int, ...] = ()

    @property
    def range(self) -> PhysRange:
        """The physical memory it maps."""
        return PhysRange(self.pa, self.size)


def walked_leaf(walk: paging.Walk, rules: Rules) -> Leaf:
    """Return the leaf a walk ended at, typed for the very byte asked for, as the first of *rules* has it."""
    index = paging.pat_index(walk.entry, walk.level)
    byte = walk.pa + walk.va - walk.base
    rule, cpus = next(iter(rules.items()))
    pat, mtrr = rule.pat[index], rule.mtrr.at(byte)
    return Leaf(
        va=walk.base,
        pa=walk.pa,
        size=walk.size,
        level=walk.level,
        entry=walk.entry,
        pat_index=index,
        pat_type=pat,
        mtrr_type=mtrr,
        effective=rule.effective(mtrr, pat),
        user=walk.user,
        writable=walk.writable,
        executable=walk.executable,
        cpus=cpus,
    )


def typed_leaves(table: LeafTable, rules: Rules, wanted: Iterable[PhysRange]) -> Iterator[Leaf]:
    """Yield the leaves of *table* with the types of those bytes of them that *wanted* names."""
    starts, ends = (edges.tolist() for edges in merged(wanted))
    columns = (table.va, table.pa, table.size, table.level, table.entry, table.flags, table.pat)
    for va, pa, size, level, entry, flags, index in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        for (pat, mtrr, effective), cpus in _typings(PhysRange(pa, size), index, rules, starts, ends).items():
            yield Leaf(
                va=va,
                pa=pa,
                size=size,
                level=level,
                entry=entry,
                pat_index=index,
                pat_type=pat,
                mtrr_type=mtrr,
                effective=effective,
                user=bool(flags & FLAG_USER),
                writable=bool(flags & FLAG_WRITABLE),
                executable=bool(flags & FLAG_EXECUTABLE),
                cpus=cpus,
            )


def _typings(
    memory: PhysRange, index: int, rules: Rules, starts: list[int], ends: list[int]
) -> dict[_Types, tuple[int, ...]]:
    found: dict[_Types, tuple[int, ...]] = {}
    for rule, cpus in rules.items():
        pat = rule.pat[index]
        types = rule.mtrr.over(memory.start, memory.length)
        if len(types) > 1:
            pieces = _overlaps(memory.start, memory.end, starts, ends)
            types = tuple(dict.fromkeys(kind for piece in pieces for kind in rule.mtrr.over(*piece)))
        for mtrr in types:
            key = (pat, mtrr, rule.effective(mtrr, pat))
            found[key] = tuple(sorted((*found.get(key, ()), *cpus)))
    return found


def _overlaps(start: int, end: int, starts: list[int], ends: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of what the sorted ranges have in common with one."""
    for number in range(bisect_right(ends, start), len(starts)):
        if starts[number] >= end:
            break
        low = max(start, starts[number])
        yield low, min(end, ends[number]) - low
