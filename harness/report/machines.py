# SPDX-License-Identifier: MIT
"""One kernel's judgements on several machines, side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from harness.contract.catalogue import Catalogue
from harness.contract.catalogue import catalogue as shipped
from harness.contract.model import ClauseResult, Judgement, Verdict
from harness.report.complete import outside, require_complete
from harness.report.json_report import to_json, write_text
from harness.report.layout import Page
from harness.report.table import INDENT, WIDEST, print_clause, report_console

SCHEMA: Final = "iobmd.judgements/1"

_HEAD: Final = ("machine", "holds", "broken", "n/a", "unproved", "from outside", "seconds")


def print_machines(
    judgements: Mapping[str, Judgement],
    left_out: Sequence[str] = (),
    console: Console | None = None,
    *,
    verbose: bool = False,
    catalogue: Catalogue | None = None,
) -> None:
    """Print a row per machine, what is broken with its evidence, and which clause is decided nowhere.

    Args:
        judgements: by the machine's name; at least one, all of one kernel.
        left_out: machines that were not judged, each with the reason.
        console: where to; the default is `report_console`.
        verbose: show every clause that is not applicable, with its reason and machines.
        catalogue: what the judgements must cover; the default is the shipped catalogue.

    Raises:
        IncompleteJudgement: one does not cover it.
    """
    clauses = shipped() if catalogue is None else catalogue
    for judgement in judgements.values():
        require_complete(judgement, clauses)
    where = report_console() if console is None else console
    page = Page(where, min(where.width, WIDEST))
    release = next(iter(judgements.values())).provenance.release
    title = f"IOBufferMemoryDescriptor's contract on Linux {release}, on {len(judgements)} machines"
    page.hang(Text(), title, style="bold")
    page.line(Text())
    page.columns(0, _HEAD, [_row(name, one) for name, one in judgements.items()])
    for name, judgement in judgements.items():
        broken = [one for one in judgement.results if one.verdict is Verdict.BROKEN]
        if broken:
            page.line(Text())
            page.hang(Text(f"{name}  ", style="bold"), judgement.provenance.machine, style="bold")
        for result in broken:
            print_clause(page, result, verbose)
    page.line(Text())
    _print_nowhere(page, judgements, clauses, verbose)
    for line in left_out:
        page.hang(Text("left out: ", style="dim"), line)
    _print_sum(page, judgements)


def machines_to_json(
    judgements: Mapping[str, Judgement], left_out: Sequence[str] = (), catalogue: Catalogue | None = None
) -> str:
    """Return the judgements as one document: `harness.report.to_json` of each, by the machine's name.

    Raises:
        IncompleteJudgement: one does not cover the catalogue.
    """
    machines = {name: json.loads(to_json(one, catalogue)) for name, one in judgements.items()}
    document = {"schema": SCHEMA, "machines": machines, "left_out": list(left_out)}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_machines(judgements: Mapping[str, Judgement], left_out: Sequence[str], path: Path) -> None:
    """Write `machines_to_json` to *path*: all of it, or nothing at all.

    Raises:
        IncompleteJudgement: one does not cover the catalogue.
        ReportNotWritten: the file cannot be written.
    """
    write_text(machines_to_json(judgements, left_out), path)


def _row(name: str, judgement: Judgement) -> tuple[str, ...]:
    return (
        name,
        *(str(judgement.count(verdict)) for verdict in Verdict),
        str(len(outside(judgement)[1])),
        f"{judgement.boot_seconds + judgement.check_seconds:.1f}",
    )


def _print_nowhere(
    page: Page, judgements: Mapping[str, Judgement], clauses: Catalogue, verbose: bool
) -> None:
    """Say which clauses no machine could decide; with *verbose* also which ones only some could."""
    lacking: dict[str, dict[str, ClauseResult]] = {name: {} for name in clauses}
    for machine, judgement in judgements.items():
        for one in judgement.results:
            if one.verdict is Verdict.NOT_APPLICABLE:
                lacking[one.clause.id][machine] = one
    nowhere = [name for name, found in lacking.items() if len(found) == len(judgements)]
    words = " ".join(nowhere) or "none: each is decided on one of these machines at least"
    page.hang(Text("not applicable anywhere: ", style="dim"), words)
    for name, found in lacking.items():
        if found and (verbose or name in nowhere):
            reasons = dict.fromkeys(one.reason for one in found.values())
            page.hang(Text(f"{name:<4}  "), f"n/a on {', '.join(found)}")
            for reason in reasons:
                page.hang(Text(" " * INDENT), reason, style="dim")


def _print_sum(page: Page, judgements: Mapping[str, Judgement]) -> None:
    sums = {verdict: sum(one.count(verdict) for one in judgements.values()) for verdict in Verdict}
    counts = ", ".join(f"{verdict.value} {count}" for verdict, count in sums.items())
    total = sum(len(one.results) for one in judgements.values())
    style = "bold red" if sums[Verdict.BROKEN] else "bold"
    page.hang(Text(), f"{counts} of {total} on {len(judgements)} machines", style=style)
