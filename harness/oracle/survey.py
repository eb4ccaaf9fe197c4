# SPDX-License-Identifier: MIT
"""What one stopped moment shows of very many buffers: a row for each, and the leaves behind every row."""

from dataclasses import dataclass, field
from typing import Final, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.oracle import expect, pagetypes
from harness.oracle.aliases import LeafTable, PhysRange
from harness.oracle.expect import Expectations, Mismatch, SurveyMismatch
from harness.oracle.leaf import Leaf, Rules, typed_leaves
from harness.oracle.memtype import MemoryType
from harness.oracle.pages import I64, Placed, distinct
from harness.oracle.pagetypes import types_in
from harness.oracle.paging import PAGE, U64
from harness.oracle.translate import NOWHERE, starts_of_runs

ROW: Final = np.dtype(
    [
        ("address", "<u8"),
        ("storage", "<u8"),
        ("physical", "<u8"),
        ("alignment", "<u8"),
        ("address_bits", "<u8"),
        ("pieces", "<i8"),
        ("aliases", "<i8"),
        ("shared", "<i8"),
        ("effective", "u1"),
        ("pat", "u1"),
        ("mapped", "?"),
    ]
)
"""A row of `Survey.rows`."""
SEGMENT: Final = np.dtype([("address", "<u8"), ("length", "<u8")])
"""An element of `Survey.segments`."""
_HIGHEST_ALIGNMENT = 1 << 52
_LEVELS = (1, 2, 3)


@dataclass(frozen=True, eq=False)
class Survey:
    """Many buffers as one stopped moment showed them. Stays readable when the guest goes on.

    Attributes:
        rows: one row per buffer, in the order asked, with the columns

            * ``address``, ``storage``: what was asked for: virtual address of the first byte, and bytes;
            * ``physical``: physical address of the first byte, `NOWHERE` if it is not mapped;
            * ``alignment``: the largest power of two that divides it, 0 if it is not mapped;
            * ``address_bits``: all physical page addresses ORed: bits that none of them has are clear;
            * ``pieces``: physically contiguous stretches, 1 for a contiguous buffer;
            * ``aliases``: page-table leaves of any address space that map any byte of it, its own included;
            * ``shared``: pages that another buffer of this survey has too;
            * ``effective``, ``pat``: memory types over all aliases of all pages on all vCPUs, as bit sets:
              PAT and MTRRs together, and the PAT alone (`types_in` reads them, `mask_of` writes them);
            * ``mapped``: whether every byte is mapped.
    """

    rows: NDArray[np.void]
    _placed: Placed = field(repr=False)
    _leaves: LeafTable = field(repr=False)
    _rules: Rules = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def unmapped_pages(self) -> I64:
        """Pages of each buffer that are not mapped."""
        return self._placed.unmapped_pages

    def types(self, number: int) -> frozenset[MemoryType]:
        """Return the effective types of buffer *number*."""
        return types_in(int(self.rows["effective"][number]))

    def pat_types(self, number: int) -> frozenset[MemoryType]:
        """Return the PAT types of buffer *number*."""
        return types_in(int(self.rows["pat"][number]))

    def segments(self, offset: ArrayLike = 0, length: ArrayLike | None = None) -> NDArray[np.void]:
        """Return where byte *offset* of each buffer is, and how far memory is contiguous from there on.

        Args:
            offset: bytes from the buffer's start; one for all or one each.
            length: bytes of each buffer that count, for instance its getLength(); its storage if None.

        Returns:
            Rows of ``address`` and ``length``, for comparison with what getPhysicalSegment answers;
            (`NOWHERE`, 0) where the byte is not mapped or not inside *length*.

        Raises:
            BadInput: not one number for all or one each, or a negative one.
        """
        found = np.zeros(len(self), dtype=SEGMENT)
        whole = self.rows["storage"] if length is None else length
        found["address"], found["length"] = self._placed.segments(offset, whole)
        return found

    def ranges(self, number: int) -> tuple[PhysRange, ...]:
        """Return where the mapped bytes of buffer *number* are, in virtual order; neighbours are joined."""
        placed, spans = self._placed, self._placed.spans
        begin, address = int(spans.begin[number]), int(spans.address[number])
        end = address + int(spans.storage[number])
        parts: list[PhysRange] = []
        for page in range(begin, begin + int(spans.count[number])):
            if not placed.mapped[page]:
                continue
            va = int(spans.va[page])
            low, high = max(va, address), min(va + PAGE, end)
            start = int(placed.physical[page]) + low - va
            if parts and not placed.starts[page]:
                parts[-1] = PhysRange(parts[-1].start, parts[-1].length + high - low)
            else:
                parts.append(PhysRange(start, high - low))
        return tuple(parts)

    def covers(self, start: U64, length: U64) -> NDArray[np.bool_]:
        """Return for each stretch of physical memory whether all its pages belong to buffers of this survey.

        Args:
            start: physical addresses.
            length: bytes of each.
        """
        first = start >> np.uint64(12)
        end = start + length + np.uint64(PAGE - 1) >> np.uint64(12)
        pages = distinct(self._placed.owned[1])
        owned = pagetypes.ranks(pages, end) - pagetypes.ranks(pages, first)
        return np.asarray(owned == (end - first).astype(np.int64))

    def leaves(self, number: int) -> tuple[Leaf, ...]:
        """Return every leaf that maps a byte of buffer *number*, as `View.aliases` of its memory does."""
        wanted = self.ranges(number)
        mine = self._leaves.take(self._leaves.touching(wanted)).by_address()
        return tuple(typed_leaves(mine, self._rules, wanted))

    def mismatches(self, **expected: Unpack[Expectations]) -> tuple[Mismatch, ...]:
        """Return how buffers differ from what is expected of them, by number; empty if nothing does.

        That every byte is mapped is expected always.

        Args:
            **expected: any of `Expectations`: ``types``, ``pat_types``, ``physical``, ``pieces``,
                ``aliases``, ``alignment``, ``mask``, ``segments`` with ``offset`` and ``length``, ``apart``.

        Raises:
            BadInput: an unknown name, a value of another kind, or neither one nor one each.
        """
        return expect.mismatches(self, expected)

    def require(self, **expected: Unpack[Expectations]) -> None:
        """Raise unless every buffer is as expected; arguments as for `mismatches`.

        Raises:
            SurveyMismatch: one is not; the text says which ones, how they differ, and shows their leaves.
            BadInput: as for `mismatches`.
        """
        found = expect.mismatches(self, expected)
        if found:
            raise SurveyMismatch(self, found)


def survey_of(placed: Placed, leaves: LeafTable, rules: Rules) -> Survey:
    """Sum up what all leaves say about buffers.

    Args:
        placed: the buffers' pages.
        leaves: every leaf there is.
        rules: how the vCPUs type memory.
    """
    spans, typing = placed.spans, tuple(rules)
    owner, pages = placed.owned
    every, place = np.unique(pages, return_inverse=True)
    slots = pagetypes.pat_slots_of_pages(leaves, every)
    pat = pagetypes.pat_types_of_pages(typing, slots)
    effective = pagetypes.effective_types_of_pages(typing, slots, every)
    again = np.bincount(place, minlength=len(every))[place] > 1
    rows = np.zeros(len(spans), dtype=ROW)
    rows["address"], rows["storage"] = spans.address, spans.storage
    rows["physical"], rows["alignment"] = placed.first, _alignments(placed.first)
    rows["address_bits"] = _address_bits(placed)
    rows["pieces"] = placed.per_buffer(placed.starts)
    rows["aliases"] = _aliases(leaves, owner, pages, len(spans))
    rows["shared"] = np.bincount(owner[again], minlength=len(spans))
    rows["pat"] = pagetypes.joined(pat[place], owner, len(spans))
    rows["effective"] = pagetypes.joined(effective[place], owner, len(spans))
    rows["mapped"] = placed.unmapped_pages == 0
    return Survey(rows, placed, leaves, rules)


def _alignments(physical: U64) -> U64:
    lowest = physical & (~physical + np.uint64(1))
    lowest[physical == 0] = _HIGHEST_ALIGNMENT
    lowest[physical == np.uint64(NOWHERE)] = 0
    return lowest


def _address_bits(placed: Placed) -> U64:
    bits = np.zeros(len(placed.spans), dtype=np.uint64)
    owner = placed.spans.owner[placed.mapped]
    if len(owner):
        begin = starts_of_runs(owner)
        bits[owner[begin]] = np.bitwise_or.reduceat(placed.physical[placed.mapped], begin)
    return bits


def _aliases(leaves: LeafTable, owner: I64, pages: U64, count: int) -> I64:
    """Count each buffer's leaves. A large leaf counts once, however many of the buffer's pages it maps."""
    total = np.zeros(count, dtype=np.int64)
    for level in _LEVELS:
        if not (leaves.level == level).any():
            continue
        mine, frames = owner, pages
        if level > 1:
            frames = pages >> np.uint64(9 * (level - 1))
            once = np.ones(len(frames), dtype=np.bool_)
            once[1:] = (frames[1:] != frames[:-1]) | (owner[1:] != owner[:-1])
            mine, frames = owner[once], frames[once]
        every, place = np.unique(frames, return_inverse=True)
        each = pagetypes.leaves_of_frames(leaves, level, every)[place]
        total += np.bincount(mine, weights=each, minlength=count).astype(np.int64)
    return total
