# SPDX-License-Identifier: MIT
"""Judgements on the terminal, for people.

Group by group as the catalogue is; what is broken shows its evidence at once, what is unproved takes one line
per group, and the sum stands at the end, where a terminal leaves the eye. Every verdict is a word: colour
only repeats it.
"""

import os
import sys
from collections.abc import Container
from contextlib import suppress
from statistics import median
from typing import Final, TextIO

from rich.console import Console
from rich.text import Text

from harness.contract.catalogue import Catalogue
from harness.contract.catalogue import catalogue as shipped
from harness.contract.model import ClauseResult, Judgement, PageEvidence, Verdict
from harness.report.complete import by_group, outside, require_complete
from harness.report.layout import Page

_PIPE_WIDTH: Final = 110
WIDEST: Final = 120
"""Columns of the widest report."""
_SAMPLE: Final = 8
INDENT: Final = 6
"""Columns before what belongs to a clause."""

_WORDS: Final = {
    Verdict.HOLDS: ("holds", "green"),
    Verdict.BROKEN: ("BROKEN", "bold red"),
    Verdict.NOT_APPLICABLE: ("n/a", "yellow"),
    Verdict.UNPROVED: ("unproved", "dim"),
}
_KINDS: Final = (
    "D documented; I only implemented; D/I a documented rule, its breach only implemented; "
    "X contradicted, and the documented side is kept"
)
_LEAF_HEAD: Final = ("VA", "PA", "size", "entry", "PAT index", "PAT type", "effective")


class _ReportConsole(Console):
    def on_broken_pipe(self) -> None:
        """Print no more, but live on: `head` has read enough, and the exit code is still the verdict's."""
        with suppress(SystemExit):
            super().on_broken_pipe()


def report_console(file: TextIO | None = None) -> Console:
    """Return a console fit for a report.

    A terminal is used up to 120 columns, anything else gets 110 unless ``COLUMNS`` says otherwise; colours
    come only on a terminal, and not with ``NO_COLOR``.

    Args:
        file: where to; the default is standard output.
    """
    out = sys.stdout if file is None else file
    width = None if out.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return _ReportConsole(file=out, width=width, highlight=False, markup=False, emoji=False)


def print_judgement(
    judgement: Judgement,
    console: Console | None = None,
    *,
    verbose: bool = False,
    asked: Container[str] | None = None,
    catalogue: Catalogue | None = None,
) -> None:
    """Print *judgement*: groups, clauses, evidence, sums, provenance.

    Args:
        judgement: what to print.
        console: where to; the default is `report_console`.
        verbose: show the evidence of every clause and each unproved one on its own line with its reason.
        asked: ids of the clauses somebody wants to read about; the others are only counted. All if None.
        catalogue: what the judgement must cover; the default is the shipped catalogue.

    Raises:
        IncompleteJudgement: it does not cover the catalogue.
    """
    clauses = shipped() if catalogue is None else catalogue
    require_complete(judgement, clauses)
    where = report_console() if console is None else console
    page = Page(where, min(where.width, WIDEST))
    page.hang(
        Text(), f"IOBufferMemoryDescriptor's contract on Linux {judgement.provenance.release}", style="bold"
    )
    aside = []
    for letter, results in by_group(judgement, clauses).items():
        wanted = tuple(result for result in results if asked is None or result.clause.id in asked)
        if not wanted:
            aside.append(letter)
            continue
        page.line(Text())
        page.hang(
            Text(f"{letter}  ", style="bold"), f"{clauses.groups[letter]}: {_sums(results)}", style="bold"
        )
        _print_group(page, wanted, verbose)
        if len(wanted) < len(results):
            others = " ".join(result.clause.id for result in results if result not in wanted)
            page.hang(Text("not asked for: ", style="dim"), others, style="dim")
    page.line(Text())
    if aside:
        page.hang(Text("not asked for: ", style="dim"), f"groups {' '.join(aside)}", style="dim")
        page.line(Text())
    _print_closing(page, judgement, len(clauses))


def _sums(results: tuple[ClauseResult, ...]) -> str:
    counted = ((verdict, sum(result.verdict is verdict for result in results)) for verdict in Verdict)
    return (
        ", ".join(f"{verdict.value} {count}" for verdict, count in counted if count) + f" of {len(results)}"
    )


def _print_group(page: Page, results: tuple[ClauseResult, ...], verbose: bool) -> None:
    unproved = [result.clause.id for result in results if result.verdict is Verdict.UNPROVED]
    for result in results:
        if verbose or result.verdict is not Verdict.UNPROVED:
            print_clause(page, result, verbose)
    if unproved and not verbose and len(unproved) < len(results):
        page.hang(Text("unproved: ", style="dim"), " ".join(unproved), style="dim")


def print_clause(page: Page, result: ClauseResult, verbose: bool) -> None:
    """Print one clause: its sentence, a reason, and its evidence where it is broken or *verbose* is on."""
    clause, (word, style) = result.clause, _WORDS[result.verdict]
    lead = Text.assemble(f"{clause.id:<4}  ", (f"{word:<8}", style), f"  {clause.kind.value:<3}  ")
    page.hang(lead, clause.sentence)
    if result.reason or result.verdict in (Verdict.NOT_APPLICABLE, Verdict.UNPROVED):
        _detail(page, "reason", result.reason or "none was given")
    if verbose or result.verdict is Verdict.BROKEN:
        _print_evidence(page, result, None if verbose else _SAMPLE)


def _print_evidence(page: Page, result: ClauseResult, limit: int | None) -> None:
    clause, evidence = result.clause, result.evidence
    _detail(page, "expected", result.expected)
    _detail(page, "observed", result.observed)
    for note in evidence.notes:
        _detail(page, "note", note)
    for start, length in evidence.ranges[:limit]:
        _detail(page, "range", f"{start:#x}, {_size(length)}")
    _left_out(page, len(evidence.ranges), limit, "ranges")
    if evidence.pages:
        page.columns(INDENT, _LEAF_HEAD, [_leaf(leaf) for leaf in evidence.pages[:limit]])
        _left_out(page, len(evidence.pages), limit, "page-table leaves")
    if clause.decision:
        _detail(page, "decision", f"{clause.decision}; Apple's code: {clause.implementation}")
    _detail(page, "source", clause.source)


def _leaf(leaf: PageEvidence) -> tuple[str, ...]:
    return (
        f"{leaf.va:#018x}",
        f"{leaf.pa:#x}",
        _size(leaf.size),
        f"{leaf.entry:#018x}",
        str(leaf.pat_index),
        leaf.pat_type,
        leaf.effective,
    )


def _detail(page: Page, label: str, text: str) -> None:
    if text:
        page.hang(Text(f"{'':<{INDENT}}{label:<8}  ", style="dim"), text)


def _left_out(page: Page, count: int, limit: int | None, what: str) -> None:
    if limit is not None and count > limit:
        _detail(page, "", f"and {count - limit} more {what}; -v shows all of them")


def _size(length: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if length >= unit and length % unit == 0:
            return f"{length // unit} {name}"
    return f"{length} B"


def _print_closing(page: Page, judgement: Judgement, total: int) -> None:
    broken = [result.clause.id for result in judgement.results if result.verdict is Verdict.BROKEN]
    counts = ", ".join(f"{verdict.value} {judgement.count(verdict)}" for verdict in Verdict)
    page.hang(Text(), f"{counts} of {total}", style="bold red" if broken else "bold")
    for label, text in (("broken", " ".join(broken)), *_closing(judgement)):
        if text:
            page.hang(Text(f"{label:<8}  ", style="dim"), text)


def _closing(judgement: Judgement) -> tuple[tuple[str, str], ...]:
    made_on = judgement.provenance
    decided, seen_outside = outside(judgement)
    recipe = "no recipe" if made_on.kernel == "custom" else f"recipe {made_on.kernel}"
    why = f": {made_on.accelerator_reason}" if made_on.accelerator_reason else ""
    no_caches = ": TCG models no caches" if made_on.accelerator == "tcg" else ""
    return (
        (
            "evidence",
            f"{len(seen_outside)} of {len(decided)} decided verdicts rest on evidence from outside the guest",
        ),
        (
            "time",
            f"{made_on.start} in {judgement.boot_seconds:.2f} s, checks {judgement.check_seconds:.2f} s",
        ),
        ("oracle", _captures(judgement.oracle_milliseconds)),
        ("kernel", f"{made_on.release} ({recipe}), module {made_on.module}"),
        ("qemu", f"{made_on.qemu}, accelerator {made_on.accelerator}{why}"),
        ("machine", made_on.machine),
        ("kinds", _KINDS),
        ("judged", f"attributes are judged, not caching behaviour{no_caches}"),
    )


def _captures(milliseconds: tuple[float, ...]) -> str:
    if not milliseconds:
        return "not asked"
    return (
        f"{median(milliseconds):.1f} ms median, {max(milliseconds):.1f} ms at most, "
        f"{len(milliseconds)} capture{'s' if len(milliseconds) != 1 else ''}"
    )
