# SPDX-License-Identifier: MIT
"""Judging the DMA buffers of any driver: the ledger's records, and the book they are replayed into."""

from harness.audit.book import Book, Violation
from harness.audit.events import Decoder, Direction, Event, Flag, Kind, Piece, check_layouts
from harness.audit.findings import Finding, findings
from harness.audit.ledger import Ledger, build_ledger
from harness.audit.live import Entry, Live
from harness.audit.log import read_log
from harness.audit.outside import Outside
from harness.audit.rules import Observed, Points, Rule, rule, rules
from harness.audit.sites import Site, Sites

__all__ = [
    "Book",
    "Decoder",
    "Direction",
    "Entry",
    "Event",
    "Finding",
    "Flag",
    "Kind",
    "Ledger",
    "Live",
    "Observed",
    "Outside",
    "Piece",
    "Points",
    "Rule",
    "Site",
    "Sites",
    "Violation",
    "build_ledger",
    "check_layouts",
    "findings",
    "read_log",
    "rule",
    "rules",
]
