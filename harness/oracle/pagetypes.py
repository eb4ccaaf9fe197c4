# SPDX-License-Identifier: MIT
"""Memory types of very many pages at once, every alias counted."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.oracle.aliases import LeafTable
from harness.oracle.memtype import MemoryType, TypeRules
from harness.oracle.paging import PAGE, U8, U64

_ORDER = tuple(MemoryType)
_BIT = {kind: 1 << number for number, kind in enumerate(_ORDER)}


def types_in(mask: int) -> frozenset[MemoryType]:
    """Return the memory types whose bits are set in *mask*."""
    return frozenset(kind for kind in _ORDER if mask & _BIT[kind])


def pat_slots_of_pages(leaves: LeafTable, pages: U64) -> U8:
    """Return for each page the PAT indices of all leaves that map it, as a mask of eight bits.

    Args:
        leaves: every leaf there is.
        pages: physical page numbers, rising, each once.
    """
    first = leaves.pa // np.uint64(PAGE)
    begin = np.searchsorted(pages, first)
    end = np.searchsorted(pages, first + leaves.size // np.uint64(PAGE))
    slots = np.zeros(len(pages), dtype=np.uint8)
    for index in range(8):
        mine = (leaves.pat == index) & (end > begin)
        if mine.any():
            opened = np.bincount(begin[mine], minlength=len(pages) + 1)
            closed = np.bincount(end[mine], minlength=len(pages) + 1)
            slots |= (np.cumsum(opened - closed)[:-1] > 0).astype(np.uint8) << np.uint8(index)
    return slots


def pat_types_of_pages(rules: Sequence[TypeRules], slots: U8) -> U8:
    """Return for each page the PAT types of its aliases on any vCPU, as a mask for `types_in`."""
    table = np.zeros(256, dtype=np.uint8)
    for mask in np.unique(slots):
        for rule in rules:
            for index in range(8):
                if mask >> index & 1:
                    table[mask] |= _BIT[rule.pat[index]]
    return table[slots]


def effective_types_of_pages(rules: Sequence[TypeRules], slots: U8, pages: U64) -> U8:
    """Return for each page the effective types of its aliases on any vCPU, as a mask for `types_in`."""
    result = np.zeros(len(pages), dtype=np.uint8)
    for rule in rules:
        segment = (
            np.searchsorted(np.array(rule.mtrr.starts, dtype=np.uint64), pages * np.uint64(PAGE), "right") - 1
        )
        keys, which = np.unique(segment * 256 + slots, return_inverse=True)
        masks = [_effective_mask(rule, rule.mtrr.types[key // 256], key % 256) for key in keys.tolist()]
        result |= np.array(masks, dtype=np.uint8)[which] if masks else result
    return result


def _effective_mask(rule: TypeRules, mtrr: MemoryType, slots: int) -> int:
    mask = 0
    for index in range(8):
        if slots >> index & 1:
            mask |= _BIT[rule.effective(mtrr, rule.pat[index])]
    return mask


def joined_per_group(masks: U8, positions: NDArray[np.int64], lengths: Sequence[int]) -> list[int]:
    """OR the masks at consecutive runs of *positions*; run *n* is ``lengths[n]`` long and may be empty."""
    counts = np.array(lengths, dtype=np.int64)
    joined = np.zeros(len(counts), dtype=np.uint8)
    filled = np.flatnonzero(counts)
    if len(filled):
        begin = np.concatenate(([0], np.cumsum(counts)[:-1]))[filled]
        joined[filled] = np.bitwise_or.reduceat(masks[positions], begin)
    return [int(mask) for mask in joined]
