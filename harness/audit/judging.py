# SPDX-License-Identifier: MIT
"""What those who judge events have in common."""

from __future__ import annotations

from typing import Protocol

from harness.audit.events import Event
from harness.audit.live import Entry, bus_ranges


class Note(Protocol):
    """Writes a violation down."""

    def __call__(self, rule: str, event: Event, entry: Entry | None, evidence: str) -> None:
        """Take what a `harness.audit.book.Violation` is made of."""


def judge_boundary(note: Note, entry: Entry, mask: int | None = None) -> None:
    """Note the ranges of an entry that cross a boundary its device counts in.

    Args:
        note: writes it down.
        entry: a mapping, a block.
        mask: boundary minus one; None: the device's own when it was made, which may be none.
    """
    made = entry.made
    limit = made.boundary if mask is None else mask
    if not limit:
        return
    for start, length in bus_ranges(made):
        last = start + length - 1
        if start & ~limit != last & ~limit:
            note("above-boundary", made, entry, f"{start:#x}..{last:#x} crosses a boundary of {limit + 1:#x}")
            return


def ended(entry: Entry) -> str:
    """Return the number of the record that ended an entry, for a sentence."""
    return "?" if entry.ended is None else str(entry.ended.number)
