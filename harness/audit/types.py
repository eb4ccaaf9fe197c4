# SPDX-License-Identifier: MIT
"""Memory types as page tables give them, against those that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from harness.audit.book import Book, Violation
from harness.audit.events import Event, Kind
from harness.audit.live import Entry
from harness.audit.places import Stretch
from harness.oracle import Leaf, MemoryType, Survey, View, decode_pat, mask_of

PAGE = 4096
_WB, _WC, _UC = MemoryType.WB, MemoryType.WC, MemoryType.UC
_WHOLE = {Kind.ALLOC, Kind.ALLOC_PAGES, Kind.ALLOC_NONCONTIGUOUS}
"""What is one buffer: its pages have one type. A list may well be of pages of different ones."""


@dataclass
class _Page:
    """A page to be looked at, and why."""

    frame: int
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True)
class _Seen:
    """A page as all its mappings show it."""

    frame: int
    types: frozenset[MemoryType]
    asked: MemoryType
    call: Event | None


class Types:
    """Judges the types of memory in one view.

    Compared is what page tables say, not what MTRRs make of it: a machine without MTRRs has no other type
    than UC, and its drivers are no worse for that. UC- and UC differ for MTRRs only and count as one.

    Args:
        view: the stopped machine.
        book: as of the same moment.
    """

    def __init__(self, view: View, book: Book) -> None:
        self._view = view
        self._book = book
        self._accused = {violation.event.number for violation in book.violations}
        # Without a slot for it the kernel's WC is UC- (arch/x86/mm/pat/memtype.c, __init_cache_modes).
        has = frozenset.intersection(*(frozenset(decode_pat(cpu.pat)) for cpu in view.cpus))
        self._write_combined = _WC if _WC in has else _UC

    def judge(self, memory: Sequence[Stretch]) -> Iterator[Violation]:
        """Yield what is wrong with the memory of live entries, and with pages whose type was changed.

        Args:
            memory: by physical address.
        """
        wanted = self._suspects(memory)
        if not wanted:
            return
        frames = np.array([page.frame for page in wanted], dtype=np.uint64)
        survey = self._view.survey_physical(frames * np.uint64(PAGE), PAGE)
        seen = {page.frame: self._seen(survey, row, page) for row, page in enumerate(wanted)}
        yield from self._conflicts(survey, wanted, seen)
        yield from self._mixtures(wanted, seen)

    def _suspects(self, memory: Sequence[Stretch]) -> list[_Page]:
        """Return the pages that are not plainly write-back, as nearly all are."""
        pages = {frame: _Page(frame) for frame in self._book.types}
        if memory:
            start = np.array([one.physical for one in memory], dtype=np.uint64)
            length = np.array([one.length for one in memory], dtype=np.uint64)
            survey = self._view.survey_physical(start, length)
            plain = (survey.rows["pat"] == mask_of(_WB)) | (survey.rows["aliases"] == 0)
            odd = np.flatnonzero(~plain | self._changed(start, length)).tolist()
            # All of a buffer is one thing to look at, however many pieces it is in.
            whole = {id(memory[number].entry) for number in odd if memory[number].entry.made.kind in _WHOLE}
            odd += [number for number, one in enumerate(memory) if id(one.entry) in whole] if whole else []
            for number in dict.fromkeys(odd):
                one = memory[number]
                for frame in range(one.physical // PAGE, -(-(one.physical + one.length) // PAGE)):
                    pages.setdefault(frame, _Page(frame)).entries.append(one.entry)
        return [pages[frame] for frame in sorted(pages)]

    def _changed(self, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        changed = np.array(sorted(self._book.types), dtype=np.uint64)
        first, end = start // np.uint64(PAGE), (start + length + np.uint64(PAGE - 1)) // np.uint64(PAGE)
        return np.asarray(np.searchsorted(changed, end) > np.searchsorted(changed, first))

    def _seen(self, survey: Survey, row: int, page: _Page) -> _Seen:
        call = self._book.types.get(page.frame)
        asked = _WB if call is None else self._asked(call)
        return _Seen(page.frame, _folded(survey.pat_types(row)), asked, call)

    def _asked(self, call: Event) -> MemoryType:
        return self._write_combined if call.kind.name.endswith("WC") else _UC

    def _conflicts(
        self, survey: Survey, pages: Sequence[_Page], seen: dict[int, _Seen]
    ) -> Iterator[Violation]:
        """Yield pages whose mappings differ, the first one of each entry or change."""
        told: set[int] = set()
        for row, page in enumerate(pages):
            one = seen[page.frame]
            entry = page.entries[0] if page.entries else None
            key = id(entry if entry is not None else one.call)
            if len(one.types) < 2 or key in told:
                continue
            told.add(key)
            event = one.call or (entry.made if entry else None)
            if event is None or event.number in self._accused:
                continue
            leaves = survey.leaves(row)
            kernel = {_fold(leaf.pat_type) for leaf in leaves if not leaf.user}
            rule = "alias-conflict"
            if len(kernel) < 2:
                rule, event = "user-mapping-type", self._mapped_by(leaves, kernel) or event
            yield Violation(rule, event, entry, f"page {page.frame * PAGE:#x} is {_listed(leaves)}")

    def _mapped_by(self, leaves: Sequence[Leaf], kernel: set[MemoryType]) -> Event | None:
        """Return the call that gave user space the first mapping of another type than the kernel's."""
        for leaf in leaves:
            if leaf.user and _fold(leaf.pat_type) not in kernel:
                calls = self._book.users.values()
                mine = (one for one in calls if 0 <= leaf.va - one.owner < max(one.size, PAGE))
                return max(mine, key=lambda one: one.number, default=None)
        return None

    def _mixtures(self, pages: Sequence[_Page], seen: dict[int, _Seen]) -> Iterator[Violation]:
        """Yield buffers of several types, and memory of another type than was asked for."""
        buffers: dict[int, tuple[Entry, list[_Seen]]] = {}
        for page in pages:
            one = seen[page.frame]
            odd = len(one.types) == 1 and one.types != {one.asked}
            if odd and not page.entries and one.call and one.call.number not in self._accused:
                yield self._other(one, None)
            for entry in page.entries:
                buffers.setdefault(id(entry), (entry, []))[1].append(one)
        for entry, its in buffers.values():
            yield from self._buffer(entry, its)

    def _buffer(self, entry: Entry, its: Sequence[_Seen]) -> Iterator[Violation]:
        # What was changed before this memory was handed out is somebody else's doing, and was told then.
        mine = [
            one
            for one in its
            if (one.frame not in self._left if one.call is None else one.call.number > entry.made.number)
        ]
        single = [one for one in mine if len(one.types) == 1]
        kinds = {one.types for one in single}
        last = max((one.call for one in mine if one.call), key=lambda call: call.number, default=None)
        if len(kinds) > 1 and entry.made.kind in _WHOLE:
            event = last or entry.made
            if event.number not in self._accused:
                counts = ", ".join(
                    f"{sum(one.types == kind for one in single)} {_names(kind)}"
                    for kind in sorted(kinds, key=_names)
                )
                yield Violation("mixed-types", event, entry, f"pages of one buffer: {counts}")
            return
        for one in single:
            if one.types == {one.asked} or self._explained(one, entry):
                continue
            if (one.call or entry.made).number not in self._accused:
                yield self._other(one, entry)
            return

    def _explained(self, one: _Seen, entry: Entry) -> bool:
        """Tell whether memory nobody is known to have changed has a window besides, as of ioremap_wt().

        Of memory from before the ledger watched, nobody knows what was asked.
        """
        if one.call is not None:
            return False
        if not self._book.whole:
            return True
        survey = self._view.survey_physical([one.frame * PAGE], PAGE)
        base, made = self._view.direct_map.base, entry.made
        own = range(made.virtual & -PAGE, made.virtual + max(made.size, 1))
        return any(
            not leaf.user and leaf.va - leaf.pa != base and leaf.va not in own for leaf in survey.leaves(0)
        )

    @cached_property
    def _left(self) -> frozenset[int]:
        """Pages that were freed with another type than write-back."""
        freed = (one.entry for one in self._book.violations if one.rule == "type-not-restored")
        runs = (run for entry in freed if entry is not None for run in entry.made.runs)
        return frozenset(
            frame
            for run in runs
            for frame in range(run.physical // PAGE, -(-(run.physical + run.length) // PAGE))
        )

    def _other(self, one: _Seen, entry: Entry | None) -> Violation:
        event = one.call or (entry.made if entry else None)
        assert event is not None  # noqa: S101  a page without either is looked at by nobody
        how = f"page {one.frame * PAGE:#x} is {_names(one.types)}; {one.asked.value} was asked for"
        return Violation("mixed-types", event, entry, how)


def _fold(kind: MemoryType) -> MemoryType:
    return _UC if kind is MemoryType.UC_MINUS else kind


def _folded(kinds: frozenset[MemoryType]) -> frozenset[MemoryType]:
    return frozenset(map(_fold, kinds))


def _names(kinds: frozenset[MemoryType]) -> str:
    return "+".join(sorted(kind.value for kind in kinds))


def _listed(leaves: Sequence[Leaf]) -> str:
    """Say what a page is through which address; user addresses are marked."""
    parts = [f"{leaf.pat_type.value} at {'user ' if leaf.user else ''}{leaf.va:#x}" for leaf in leaves]
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
