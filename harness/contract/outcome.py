# SPDX-License-Identifier: MIT
"""How a check ends other than by returning, and what it leaves behind on its way."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.contract.model import Evidence, PageEvidence
from harness.oracle import Leaf, PhysRange

SAMPLE = 8
"""Page-table leaves and ranges kept per observation; a report with ten thousand leaves helps nobody."""


class Broken(Exception):
    """The clause is not kept.

    Attributes:
        expected: what the clause asks for.
        observed: what was there instead.
    """

    def __init__(self, expected: str, observed: str) -> None:
        super().__init__(f"expected {expected}, observed {observed}")
        self.expected = expected
        self.observed = observed


class NotApplicable(Exception):
    """The machine lacks what the clause speaks of; the message names the missing thing."""


class Unproved(Exception):
    """The check cannot decide here; the message says why."""


@dataclass
class Trail:
    """What a check saw so far, in order.

    Attributes:
        notes: sentences.
        ranges: guest physical (start, length in bytes).
        pages: page-table leaves.
        comparisons: how many values were compared.
        expected: the value asked for by the last comparison.
        observed: the value seen by the last comparison.
    """

    notes: list[str] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    pages: list[PageEvidence] = field(default_factory=list)
    comparisons: int = 0
    expected: str = ""
    observed: str = ""

    def note(self, text: str) -> None:
        """Keep one sentence; the same one is kept once."""
        if text not in self.notes:
            self.notes.append(text)

    def saw_ranges(self, of: str, ranges: Iterable[PhysRange]) -> None:
        """Keep where something lies in guest physical memory, a sample when it lies in many places."""
        found = [(one.start, one.length) for one in ranges]
        if len(found) > SAMPLE:
            self.note(f"{of}: {SAMPLE} of {len(found)} physical ranges are listed")
        self.ranges += [one for one in found[:SAMPLE] if one not in self.ranges]

    def saw_leaves(self, of: str, leaves: Iterable[Leaf]) -> None:
        """Keep page-table leaves, a sample when there are many."""
        found = tuple(leaves)
        if len(found) > SAMPLE:
            self.note(f"{of}: {SAMPLE} of {len(found)} page-table leaves are listed")
        pages = (
            PageEvidence(
                va=leaf.va,
                pa=leaf.pa,
                size=leaf.size,
                entry=leaf.entry,
                pat_index=leaf.pat_index,
                pat_type=leaf.pat_type.name,
                effective=leaf.effective.name,
            )
            for leaf in found[:SAMPLE]
        )
        self.pages += [page for page in pages if page not in self.pages]

    def evidence(self) -> Evidence:
        """Return all of it, frozen."""
        return Evidence(tuple(self.notes), tuple(self.ranges), tuple(self.pages))
