# SPDX-License-Identifier: MIT
"""What came out of an audit, as data: for reports, which never see a guest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.audit.findings import Finding
from harness.contract import Provenance
from harness.errors import FailureKind, HarnessError


@dataclass(frozen=True)
class Judged:
    """Buffers or mappings made by the same code for the same device, and what they were judged to be.

    Attributes:
        what: ``"coherent buffer"``, ``"streaming mapping"``, ...
        device: its name.
        driver: the device's driver.
        direction: who writes them.
        site: the code that made them.
        calls: how many were made.
        failed: how many of them the kernel refused.
        alive: how many were left when the driver was gone; when it crashed, then.
        smallest: bytes of the smallest.
        largest: bytes of the largest.
        lowest: lowest bus address.
        highest: last byte of the highest one.
        mask: the device's reach: the mask that counted when the first was made.
        rules: ids of the rules that some of them break; empty: all of them were found well.
    """

    what: str
    device: str
    driver: str
    direction: str
    site: str
    calls: int
    failed: int
    alive: int
    smallest: int
    largest: int
    lowest: int
    highest: int
    mask: int
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blind:
    """Something that was not judged.

    Attributes:
        what: a sentence.
        rules: ids of the rules that could not be judged because of it, or only in part; empty: all of them.
        hint: what to do about it, ``""`` if there is nothing.
    """

    what: str
    rules: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class AuditResult:
    """One driver on one kernel and machine.

    Attributes:
        driver: the module's name.
        source: where it comes from, for people.
        provenance: kernel, QEMU and machine.
        asked: the machine's name and devices, as they were asked for.
        loaded: modules that were loaded, in order.
        bound: devices the driver drove, by name.
        exercised: what was done with it, ``""`` for nothing.
        events: calls of the DMA API in the ledger, everybody's.
        lost: records that found no room.
        missed: calls that could not be led through the ledger.
        looks: how often the machine was stopped and looked at from outside.
        judged: all that the driver made.
        findings: what is wrong.
        complaints: what the kernel itself warned of, a line each.
        blind: what was not judged.
        failure: what ended the audit before its time; None: nothing did.
        seconds: from loading the ledger to the last look.
    """

    driver: str
    source: str
    provenance: Provenance
    asked: str
    loaded: tuple[str, ...]
    bound: tuple[str, ...]
    exercised: str
    events: int
    lost: int
    missed: int
    looks: int
    judged: tuple[Judged, ...]
    findings: tuple[Finding, ...]
    complaints: tuple[str, ...]
    blind: tuple[Blind, ...]
    failure: HarnessError | None
    seconds: float

    @property
    def exit_code(self) -> int:
        """What ``iobmd audit`` exits with: a failure, 1 with findings, a complaint of the kernel, 0."""
        if self.failure is not None:
            return self.failure.exit_code
        if self.findings:
            return FailureKind.CLAUSE_BROKEN.exit_code
        return FailureKind.KERNEL_TAINTED.exit_code if self.complaints else 0


def exit_code(results: Iterable[AuditResult]) -> int:
    """Return the exit code of several audits: the highest of theirs."""
    return max((result.exit_code for result in results), default=0)
