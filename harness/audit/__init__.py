# SPDX-License-Identifier: MIT
"""Judging the DMA buffers of any driver, unchanged: what it asks the kernel for, and what came of it.

`Ledger` records the calls, `Book` replays them, `Outside` looks at the memory itself, `findings` names what
is wrong; `AuditRun` does all of it with one driver in one guest.
"""

from harness.audit.book import Book, Violation
from harness.audit.buffers import Buffer, Sight
from harness.audit.errors import DriverNotLoaded, DriverNotUnloaded, ExerciseFailed
from harness.audit.events import Decoder, Direction, Event, Flag, Kind, Piece, check_layouts
from harness.audit.exercises import Exercise, exercise_of
from harness.audit.expect import Expect, NotAsExpected, expect
from harness.audit.findings import Finding, findings
from harness.audit.ledger import Ledger, LedgerGone, build_ledger
from harness.audit.live import Entry, Live
from harness.audit.log import read_log
from harness.audit.outside import Outside
from harness.audit.result import AuditResult, Blind, Judged
from harness.audit.rules import Observed, Points, Rule, rule, rules
from harness.audit.run import AuditRun
from harness.audit.sites import Site, Sites
from harness.audit.sources import KernelModule, Origin, Subject, kind_of, resolve

__all__ = [
    "AuditResult",
    "AuditRun",
    "Blind",
    "Book",
    "Buffer",
    "Decoder",
    "Direction",
    "DriverNotLoaded",
    "DriverNotUnloaded",
    "Entry",
    "Event",
    "Exercise",
    "ExerciseFailed",
    "Expect",
    "Finding",
    "Flag",
    "Judged",
    "KernelModule",
    "Kind",
    "Ledger",
    "LedgerGone",
    "Live",
    "NotAsExpected",
    "Observed",
    "Origin",
    "Outside",
    "Piece",
    "Points",
    "Rule",
    "Sight",
    "Site",
    "Sites",
    "Subject",
    "Violation",
    "build_ledger",
    "check_layouts",
    "exercise_of",
    "expect",
    "findings",
    "kind_of",
    "read_log",
    "resolve",
    "rule",
    "rules",
]
