# SPDX-License-Identifier: MIT
"""x86-64 page tables read out of physical memory: entry format, table access, one walk.

Source of the format: Intel SDM Vol. 3A, "4-Level Paging and 5-Level Paging", tables of paging-structure
entries.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.oracle.errors import OracleError

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

PRESENT, WRITABLE, USER, PWT, PCD = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
PAGE_SIZE_BIT = 1 << 7
"""In entries of levels 2 and 3: this is a leaf. In a level 1 entry the same bit is PAT."""
PAT_SMALL, PAT_LARGE = 1 << 7, 1 << 12
NO_EXECUTE = 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000
"""Bits 51..12: where a table or a 4 KiB page is. The bits above are flags (protection key, NX, software)."""

PAGE = 4096
ENTRIES = 512
LARGEST_LEAF_LEVEL = 3
KPTI_USER_HALF = 1 << 12
"""Kernel page-table isolation keeps a second, smaller root one page above the kernel's (arch/x86/mm/pti.c)"""
# Below lies no process's root, but the one for starting processors, which maps RAM at its own addresses
# (arch/x86/realmode/init.c).
_REAL_MODE_END = 1 << 20


class PhysicalMemory(Protocol):
    """Guest RAM by guest physical address."""

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(start, length) in bytes of every stretch of RAM, rising."""

    def array(self, gpa: int, n: int, /) -> U8:
        """Return *n* bytes from *gpa* as a live view, within one range."""


def shift_of(level: int) -> int:
    """Return the number of address bits below the index of a table at *level* (1 is the last level)."""
    return 12 + 9 * (level - 1)


def leaf_size(level: int) -> int:
    """Return the bytes one leaf at *level* maps: 4 KiB, 2 MiB or 1 GiB."""
    return 1 << shift_of(level)


def leaf_address(entry: int, level: int) -> int:
    """Return the physical address a leaf entry maps; in large leaves bits below the page size are flags."""
    return entry & ADDRESS & ~(leaf_size(level) - 1)


def pat_index(entry: int, level: int) -> int:
    """Return PAT*4 + PCD*2 + PWT of a leaf entry. PAT is bit 7 of a 4 KiB leaf and bit 12 of larger ones."""
    pat = entry & (PAT_SMALL if level == 1 else PAT_LARGE)
    return (4 if pat else 0) | (2 if entry & PCD else 0) | (1 if entry & PWT else 0)


def is_leaf(entry: int, level: int) -> bool:
    """Return whether a present entry maps memory itself."""
    return level == 1 or (level <= LARGEST_LEAF_LEVEL and bool(entry & PAGE_SIZE_BIT))


def canonical(va: int, levels: int) -> int:
    """Return *va* with its top bits made copies of the highest translated bit."""
    bits = shift_of(levels + 1)
    va &= (1 << bits) - 1
    return va | (0xFFFF_FFFF_FFFF_FFFF ^ ((1 << bits) - 1)) if va >> (bits - 1) else va


class Tables:
    """Physical memory seen as 4 KiB tables of 512 entries."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._stretches: list[tuple[int, int, U64]] = []
        for start, length in memory.ranges:
            first = -(-start // PAGE)
            pages = (start + length) // PAGE - first
            if pages > 0:
                words = memory.array(first * PAGE, pages * PAGE).view("<u8").reshape(pages, ENTRIES)
                self._stretches.append((first, first + pages, words))

    def entry(self, table: int, index: int) -> int | None:
        """Return entry *index* of the table at physical address *table*, or None where there is no RAM."""
        page = table // PAGE
        for first, end, words in self._stretches:
            if first <= page < end:
                return int(words[page - first, index])
        return None

    def entries(self, tables: U64, indices: U64) -> U64:
        """Return `entry` for many tables, an index each; 0, which is not present, where there is no RAM."""
        place = ((tables >> np.uint64(3)) + indices).astype(np.int64)  # in words of 8 bytes
        found = np.zeros(len(tables), dtype=np.uint64)
        for first, end, words in self._stretches:
            here = (place >= first * ENTRIES) & (place < end * ENTRIES)
            flat = words.reshape(-1)
            if here.all():
                return flat[place - first * ENTRIES]
            found[here] = flat[place[here] - first * ENTRIES]
        return found

    def in_ram(self, tables: U64) -> NDArray[np.bool_]:
        """Return for each physical address whether its page is RAM."""
        pages = tables // np.uint64(PAGE)
        found = np.zeros(len(tables), dtype=np.bool_)
        for first, end, _ in self._stretches:
            found |= (pages >= first) & (pages < end)
        return found

    def rows(self, tables: U64) -> U64:
        """Return the entries of many tables, one row each; all must be in RAM."""
        pages = (tables // np.uint64(PAGE)).astype(np.int64)
        if len(self._stretches) == 1:
            first, _, words = self._stretches[0]
            return words[pages - first]
        out = np.zeros((len(tables), ENTRIES), dtype=np.uint64)
        for first, end, words in self._stretches:
            here = (pages >= first) & (pages < end)
            out[here] = words[pages[here] - first]
        return out

    def columns(self, index: int, stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, U64]]:
        """Yield entry *index* of every page in *stretches*: (address of the first, value per page)."""
        for start, length in stretches:
            low, high = start // PAGE, -(-(start + length) // PAGE)
            for first, end, words in self._stretches:
                if max(low, first) < min(high, end):
                    begin = max(low, first)
                    yield begin * PAGE, words[begin - first : min(high, end) - first, index]


@dataclass(frozen=True)
class Walk:
    """Where one translation ended.

    Attributes:
        va: the address asked for.
        level: level of the last entry read (1 is the last level).
        entry: that entry, 0 when its table lies outside RAM.
        mapped: the entry is a leaf and the address is mapped.
        user: every level allows user mode.
        writable: every level allows writes.
        executable: no level forbids fetching.
    """

    va: int
    level: int
    entry: int
    mapped: bool
    user: bool
    writable: bool
    executable: bool

    @property
    def size(self) -> int:
        """Bytes the entry spans."""
        return leaf_size(self.level)

    @property
    def base(self) -> int:
        """First virtual address the entry spans."""
        return self.va & ~(self.size - 1)

    @property
    def pa(self) -> int:
        """Physical address of the leaf's first byte."""
        return leaf_address(self.entry, self.level)


def walk(tables: Tables, root: int, levels: int, va: int, *, no_execute: bool = True) -> Walk:
    """Translate one virtual address as the processor would, without permission checks.

    Args:
        tables: the memory.
        root: physical address of the top table.
        levels: 4 or 5.
        va: the address; one that is not canonical is unmapped.
        no_execute: EFER.NXE is set, so that bit 63 means "no fetching" rather than "reserved".
    """
    user, writable, executable = True, True, True
    table, entry, level = root, 0, levels
    if va == canonical(va, levels):
        while True:
            entry = tables.entry(table, va >> shift_of(level) & (ENTRIES - 1)) or 0
            if not entry & PRESENT:
                break
            user &= bool(entry & USER)
            writable &= bool(entry & WRITABLE)
            executable &= not (no_execute and entry & NO_EXECUTE)
            if is_leaf(entry, level):
                return Walk(va, level, entry, True, user, writable, executable)
            if level > LARGEST_LEAF_LEVEL and entry & PAGE_SIZE_BIT:
                break  # a reserved bit at these levels: the processor faults
            table = entry & ADDRESS
            level -= 1
    return Walk(va, level, entry, False, False, False, False)


def kernel_root(tables: Tables, cr3: int) -> int:
    """Return the top table that maps the kernel, from a CR3 that may be a user root of page-table isolation.

    Bit 12 of CR3 selects the user root on kernels with isolation, and is an ordinary address bit on kernels
    that allocate single-page roots. The table one page below is taken for the kernel's if it maps CR3's user
    half through the same tables, and all that CR3's kernel half maps and more.
    """
    table = cr3 & ADDRESS
    if not table & KPTI_USER_HALF:
        return table
    pair = as_addresses([table, table ^ KPTI_USER_HALF])
    if not tables.in_ram(pair).all():
        return table
    mine, below = tables.rows(pair)
    half = ENTRIES // 2
    mine_used, below_used = (rows & np.uint64(PRESENT) != 0 for rows in (mine, below))
    same_users = ((mine[:half] ^ below[:half]) & np.uint64(ADDRESS))[mine_used[:half]] == 0
    richer = np.count_nonzero(below_used[half:]) > np.count_nonzero(mine_used[half:])
    paired = bool(same_users.all()) and bool(below_used[mine_used].all()) and richer
    return table ^ KPTI_USER_HALF if paired else table


def process_roots(tables: Tables, root: int, populated: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Return every top table whose kernel half is that of *root*: the address spaces of all processes.

    A process that is on no vCPU at this moment maps memory too. The kernel empties the user half of a root
    before it gives the page back (mm/memory.c:free_pgd_range), so a dead root found here adds nothing.

    Args:
        tables: the memory.
        root: physical address of a top table in use.
        populated: (start, length) of the RAM worth searching, in bytes; untouched RAM holds no tables.

    Raises:
        OracleError: *root* is not in RAM or maps nothing in the kernel half.
    """
    if not tables.in_ram(as_addresses([root])).all():
        raise OracleError(f"the top table at {root:#x} is not in RAM")
    half = ENTRIES // 2
    status = np.uint64(~0x60 & 0xFFFF_FFFF_FFFF_FFFF)  # accessed and dirty differ from root to root
    model = tables.rows(as_addresses([root]))[0][half:] & status
    filled = np.flatnonzero(model)
    if not len(filled):
        raise OracleError(f"the top table at {root:#x} maps nothing in the kernel half")
    last = int(filled[-1])
    found = [root]
    for start, column in tables.columns(half + last, populated):
        candidates = np.flatnonzero((column & status) == model[last]).astype(np.uint64)
        addresses = candidates * np.uint64(PAGE) + np.uint64(start)
        different = np.count_nonzero((tables.rows(addresses)[:, half:] & status) != model, axis=1)
        # One slot of the kernel half is the process's own: its LDT, under isolation (arch/x86/kernel/ldt.c).
        alike = addresses[(different <= 1) & (addresses >= _REAL_MODE_END)]
        found += alike.tolist()
    return tuple(dict.fromkeys(found))


def as_addresses(values: Sequence[int]) -> U64:
    """Return addresses as an array."""
    return np.array(values, dtype=np.uint64)
