# SPDX-License-Identifier: MIT
"""Very many translations at once: `paging.walk` for arrays of addresses."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from harness.oracle import paging
from harness.oracle.paging import ENTRIES, U64, Tables

NOWHERE: Final = 0xFFFF_FFFF_FFFF_FFFF
"""In place of a physical address where there is none; no physical address has more than 52 bits."""

_TABLE_SPAN = np.uint64(21)  # address bits that one table of the last level resolves, page offset included
_INDEX = np.uint64(ENTRIES - 1)
_ADDRESS = np.uint64(paging.ADDRESS)
_PRESENT = np.uint64(paging.PRESENT)


def translate(tables: Tables, roots: Sequence[int], levels: int, va: U64) -> U64:
    """Translate many virtual addresses as the processor would, without permission checks.

    Args:
        tables: the memory.
        roots: physical addresses of top tables; the first one that maps an address decides.
        levels: 4 or 5.
        va: the addresses, in any order. Neighbours that share their upper levels are walked there once.

    Returns:
        The physical address of each byte, `NOWHERE` where no root maps it.
    """
    physical = np.full(len(va), NOWHERE, dtype=np.uint64)
    missing = np.arange(len(va))
    for root in roots:
        if not len(missing):
            break
        found = _below(tables, root, levels, va[missing])
        physical[missing] = found
        missing = missing[found == np.uint64(NOWHERE)]
    return physical


def starts_of_runs(values: NDArray[np.uint64] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions at which a value differs from the one before it, the first position included."""
    new = np.ones(len(values), dtype=np.bool_)
    new[1:] = values[1:] != values[:-1]
    return np.flatnonzero(new).astype(np.int64)


def _below(tables: Tables, root: int, levels: int, va: U64) -> U64:
    begin = starts_of_runs(va >> _TABLE_SPAN)
    run = np.repeat(np.arange(len(begin)), np.diff(begin, append=len(va)))
    table, large, inside = _upper(tables, root, levels, va[begin])
    physical = np.full(len(va), NOWHERE, dtype=np.uint64)
    is_large, is_table = large != np.uint64(NOWHERE), table != np.uint64(NOWHERE)
    if is_large.any():
        mine = np.flatnonzero(is_large[run])
        physical[mine] = large[run[mine]] | va[mine] & inside[run[mine]]
    if is_table.any():
        mine = np.flatnonzero(is_table[run])
        entry = tables.entries(table[run[mine]], va[mine] >> np.uint64(12) & _INDEX)
        address = entry & _ADDRESS | va[mine] & np.uint64(paging.PAGE - 1)
        physical[mine] = np.where(entry & _PRESENT != 0, address, np.uint64(NOWHERE))
    return physical


def _upper(tables: Tables, root: int, levels: int, va: U64) -> tuple[U64, U64, U64]:
    """Walk down to the last level.

    Returns:
        The table of the last level, or else the physical start of a large leaf and the mask of the address
        bits inside it; `NOWHERE` for whichever of the two there is not.
    """
    ended = np.full(len(va), NOWHERE, dtype=np.uint64)
    table, large, inside = ended.copy(), ended, np.zeros(len(va), dtype=np.uint64)
    bits = np.uint64(paging.shift_of(levels + 1) - 1)
    top = va.astype(np.int64) >> bits.astype(np.int64)
    going = np.flatnonzero((top == 0) | (top == -1))  # the others are not canonical
    table[going] = np.uint64(root & paging.ADDRESS)
    for level in range(levels, 1, -1):
        index = va[going] >> np.uint64(paging.shift_of(level)) & _INDEX
        entry = tables.entries(table[going], index)
        table[going] = np.uint64(NOWHERE)
        sized = entry & np.uint64(paging.PAGE_SIZE_BIT) != 0
        present = entry & _PRESENT != 0
        if level <= paging.LARGEST_LEAF_LEVEL:
            leaf = going[present & sized]
            inside[leaf] = np.uint64(paging.leaf_size(level) - 1)
            large[leaf] = entry[present & sized] & _ADDRESS & ~inside[leaf]
        going, entry = going[present & ~sized], entry[present & ~sized]
        table[going] = entry & _ADDRESS
    return table, large, inside
