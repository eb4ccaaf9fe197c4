# SPDX-License-Identifier: MIT
"""Memory types of very many pages at once, every alias counted."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.oracle.aliases import LeafTable
from harness.oracle.memtype import MemoryType, TypeRules
from harness.oracle.paging import PAGE, U8, U64, shift_of
from harness.oracle.translate import starts_of_runs

_ORDER = tuple(MemoryType)
_BIT = {kind: 1 << number for number, kind in enumerate(_ORDER)}
_DENSE = 1 << 24
"""Page numbers up to this far apart are counted rather than searched for: 64 GiB of memory."""


def types_in(mask: int) -> frozenset[MemoryType]:
    """Return the memory types whose bits are set in *mask*."""
    return frozenset(kind for kind in _ORDER if mask & _BIT[kind])


def mask_of(types: MemoryType | Iterable[MemoryType]) -> int:
    """Return the mask with the bits of *types* set; the other way round, `types_in`."""
    kinds = (types,) if isinstance(types, MemoryType) else types
    return sum(_BIT[kind] for kind in set(kinds))


def ranks(sorted_pages: U64, pages: U64) -> NDArray[np.int64]:
    """Return for each of *pages* how many of *sorted_pages* are below it, as np.searchsorted does.

    Memory is dense, so counting along all of it beats searching many times over.

    Args:
        sorted_pages: page numbers, rising, each once.
        pages: page numbers in any order.
    """
    span = int(sorted_pages[-1] - sorted_pages[0]) + 2 if len(sorted_pages) else 0
    if not span or span > _DENSE or len(pages) < span // 16:
        return np.searchsorted(sorted_pages, pages).astype(np.int64)
    first = sorted_pages[0]
    below = np.zeros(span, dtype=np.int64)
    below[(sorted_pages - first + np.uint64(1)).astype(np.int64)] = 1
    np.cumsum(below, out=below)
    place = np.where(pages > first, np.minimum(pages - first, np.uint64(span - 1)), np.uint64(0))
    return below[place.astype(np.int64)]


def leaves_of_frames(leaves: LeafTable, level: int, frames: U64) -> NDArray[np.int64]:
    """Return how many leaves of one level map each frame.

    Args:
        leaves: every leaf there is.
        level: 1, 2 or 3.
        frames: physical addresses divided by the size of a leaf of that level, rising, each once.
    """
    if not len(frames):
        return np.zeros(0, dtype=np.int64)
    mapped = leaves.pa[leaves.level == level] >> np.uint64(shift_of(level))
    place = np.minimum(ranks(frames, mapped), len(frames) - 1)
    return np.bincount(place[frames[place] == mapped], minlength=len(frames)).astype(np.int64)


def pat_slots_of_pages(leaves: LeafTable, pages: U64) -> U8:
    """Return for each page the PAT indices of all leaves that map it, as a mask of eight bits.

    Args:
        leaves: every leaf there is.
        pages: physical page numbers, rising, each once.
    """
    slots = np.zeros(len(pages), dtype=np.uint8)
    if not len(pages):
        return slots
    small = leaves.level == 1
    page = leaves.pa[small] >> np.uint64(12)
    place = np.minimum(ranks(pages, page), len(pages) - 1)
    hit = pages[place] == page
    place, pat = place[hit], leaves.pat[small][hit]
    for index in range(8):
        slots[place[pat == index]] |= np.uint8(1 << index)
    return slots | _large_slots(leaves.take(~small), pages)


def _large_slots(leaves: LeafTable, pages: U64) -> U8:
    """`pat_slots_of_pages` for leaves of many pages each."""
    first = leaves.pa >> np.uint64(12)
    begin = ranks(pages, first)
    end = ranks(pages, first + (leaves.size >> np.uint64(12)))
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


def joined(masks: U8, owner: NDArray[np.int64], count: int) -> U8:
    """OR the masks of each owner.

    Args:
        masks: one per page.
        owner: whose page it is, rising.
        count: number of owners; one without pages gets 0.
    """
    result = np.zeros(count, dtype=np.uint8)
    if len(owner):
        begin = starts_of_runs(owner)
        result[owner[begin]] = np.bitwise_or.reduceat(masks, begin)
    return result
