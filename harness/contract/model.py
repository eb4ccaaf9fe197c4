# SPDX-License-Identifier: MIT
"""The words of a judgement: clauses, verdicts, evidence and what came of a check."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Self


class Kind(Enum):
    """Where a clause comes from."""

    DOCUMENTED = "D"
    """Apple's documentation or header says it."""
    IMPLEMENTATION = "I"
    """Only the open-source implementation shows it."""
    CONTRADICTED = "X"
    """Documented, but the implementation does otherwise; `Clause.decision` says which side is kept here."""
    DOCUMENTED_AND_IMPLEMENTATION = "D/I"
    """The rule is documented, what happens to an offender is implementation."""


class Verdict(Enum):
    """What is known about one clause on one kernel and machine."""

    HOLDS = "holds"
    BROKEN = "broken"
    NOT_APPLICABLE = "not applicable"
    """The machine lacks what the clause speaks of; the reason names the missing thing."""
    UNPROVED = "unproved"
    """No check decides it yet; the reason says why."""


@dataclass(frozen=True)
class Clause:
    """One numbered promise.

    Attributes:
        id: letter and number, ``"F04"``.
        group: its letter.
        kind: where it comes from.
        sentence: the promise in this project's words, one sentence.
        source: document or file the promise was read from.
        observable: what shows whether it is kept.
        decision: for contradicted clauses the side this project keeps, else ``""``.
        implementation: what Apple's code does in place of `decision`, else ``""``.
    """

    id: str
    group: str
    kind: Kind
    sentence: str
    source: str
    observable: str
    decision: str = ""
    implementation: str = ""


@dataclass(frozen=True)
class PageEvidence:
    """One page-table leaf as it was found from outside.

    Attributes:
        va: virtual address of the leaf's first byte.
        pa: guest physical address of the leaf's first byte.
        size: bytes the leaf maps (4 KiB, 2 MiB or 1 GiB).
        entry: the raw 64-bit page-table entry.
        pat_index: 0..7, from the entry's PAT, PCD and PWT bits.
        pat_type: memory type IA32_PAT gives for that index.
        effective: memory type after the MTRRs (Intel SDM Vol. 3A, table 12-7).
    """

    va: int
    pa: int
    size: int
    entry: int
    pat_index: int
    pat_type: str
    effective: str


@dataclass(frozen=True)
class Evidence:
    """What a check saw, in order, for people and for machines.

    Attributes:
        notes: sentences, one observation each.
        ranges: guest physical ranges looked at, as (start, length in bytes).
        pages: page-table leaves looked at (a sample when there are very many; the notes say so).
    """

    notes: tuple[str, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    pages: tuple[PageEvidence, ...] = ()


@dataclass(frozen=True)
class ClauseResult:
    """The verdict on one clause.

    Attributes:
        clause: what was judged.
        verdict: the judgement.
        reason: why, for not applicable and unproved; else ``""``.
        expected: what the clause asks for, where something was compared.
        observed: what was seen instead, for broken; else a summary of what was seen.
        evidence: what the verdict rests on.
        seconds: wall time of the check.
        from_outside: the verdict rests on the oracle, not only on the module's word.
    """

    clause: Clause
    verdict: Verdict
    reason: str = ""
    expected: str = ""
    observed: str = ""
    evidence: Evidence = field(default_factory=Evidence)
    seconds: float = 0.0
    from_outside: bool = False


@dataclass(frozen=True)
class Provenance:
    """What the judgement was made on.

    Attributes:
        kernel: recipe name, or ``custom``.
        release: the guest's ``uname -r``.
        qemu: version of QEMU.
        accelerator: ``kvm`` or ``tcg``.
        accelerator_reason: why that one.
        machine: QEMU machine type, CPU model, memory in MiB and CPU count in one line.
        module: build id of the kernel module.
        start: how the guest came to run: ``booted``, or from a snapshot.
    """

    kernel: str
    release: str
    qemu: str
    accelerator: str
    accelerator_reason: str
    machine: str
    module: str
    start: str = "booted"


@dataclass(frozen=True)
class Judgement:
    """Every clause of the catalogue, decided or not, on one machine.

    Attributes:
        results: one per clause, in catalogue order; never fewer than the catalogue has.
        provenance: what it was made on.
        boot_seconds: QEMU spawned to a guest that answered, whichever way it started.
        check_seconds: all checks together.
        oracle_milliseconds: per capture from outside (stop, state, walk, aliases, continue), in order.
    """

    results: tuple[ClauseResult, ...]
    provenance: Provenance
    boot_seconds: float
    check_seconds: float
    oracle_milliseconds: tuple[float, ...] = ()

    def covering(self, clauses: Iterable[Clause], reason: str) -> Self:
        """Return this judgement with a result for each of *clauses*, in their order.

        Args:
            clauses: what a report must speak of, usually the whole catalogue.
            reason: why the ones that were not judged are unproved.
        """
        judged = {result.clause.id: result for result in self.results}
        return replace(
            self,
            results=tuple(
                judged.get(clause.id) or ClauseResult(clause, Verdict.UNPROVED, reason=reason)
                for clause in clauses
            ),
        )

    def count(self, verdict: Verdict) -> int:
        """Return how many clauses got *verdict*."""
        return sum(result.verdict is verdict for result in self.results)
