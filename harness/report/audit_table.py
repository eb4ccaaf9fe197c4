# SPDX-License-Identifier: MIT
"""Audits on the terminal: all that a driver made and how it was judged, the findings, what was not judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from harness.audit.result import AuditResult, Blind, Judged
from harness.audit.rules import Rule
from harness.report.layout import Page
from harness.report.table import report_console

_WIDEST: Final = 120
_INDENT: Final = 7
_DIRECTIONS: Final = {
    "BIDIRECTIONAL": "both ways",
    "TO_DEVICE": "to the device",
    "FROM_DEVICE": "from the device",
    "NONE": "in no direction",
}
_SHOWN: Final = 40


def print_audit(result: AuditResult, console: Console | None = None, *, verbose: bool = False) -> None:
    """Print one audit.

    Args:
        result: the audit.
        console: where to; standard output by default.
        verbose: all of what the driver made, and the call stacks of findings.
    """
    console = console or report_console()
    page = Page(console, min(console.width, _WIDEST))
    made_on = result.provenance
    page.hang(Text(), f"Audit of {result.driver} on Linux {made_on.release}", style="bold")
    page.hang(_label("driver"), f"{result.source}, loaded as {', '.join(result.loaded) or 'nothing'}")
    page.hang(_label("devices"), ", ".join(result.bound) or "none: no device was bound to it")
    page.hang(_label("exercise"), result.exercised or "none")
    page.hang(_label("machine"), _machine(result))
    page.line(Text())
    _print_judged(page, result.judged, verbose)
    for number, finding in enumerate(result.findings, 1):
        page.line(Text())
        first, *rest = page.safe(finding.render(stack=verbose)).splitlines()
        page.line(Text.assemble((f"finding {number}  ", "bold red"), (first, "bold")))
        for line in rest:
            page.line(Text(line))
    for line in result.complaints:
        page.line(Text())
        page.hang(Text("the kernel complained  ", style="bold red"), line)
    page.line(Text())
    _print_blind(page, result.blind)
    _print_closing(page, result)


def print_rules(rules: Iterable[Rule], console: Console | None = None) -> None:
    """Print every rule's id and sentence."""
    console = console or report_console()
    page = Page(console, min(console.width, _WIDEST))
    listed = list(rules)
    width = max((len(rule.id) for rule in listed), default=0)
    for rule in listed:
        page.hang(Text(f"{rule.id:<{width}}  ", style="bold"), rule.sentence)


def print_rule(rule: Rule, console: Console | None = None) -> None:
    """Print all that is known of one rule."""
    console = console or report_console()
    page = Page(console, min(console.width, _WIDEST))
    page.hang(Text(f"{rule.id}  ", style="bold"), rule.sentence, style="bold")
    for label, text in (
        ("why", rule.why),
        ("seen by", _OBSERVED[rule.observed.value]),
        ("the line", _POINTS[rule.points.value]),
        ("not seen", rule.limits),
        ("read", rule.read),
    ):
        if text:
            page.hang(_label(label), text)


_OBSERVED: Final = {
    "ledger": "the calls of the DMA API, recorded in the guest",
    "oracle": "page tables and memory, from outside the guest",
    "both": "the calls of the DMA API say where to look, the machine what is there",
    "log": "the kernel refuses by itself and warns in its log",
}
_POINTS: Final = {
    "call": "of the call that shows the breach",
    "making": "of the call that made the buffer: the one that ends it is missing",
}


def _label(word: str) -> Text:
    return Text(f"  {word:<10}", style="dim")


def _print_judged(page: Page, judged: Sequence[Judged], verbose: bool) -> None:
    if not judged:
        page.hang(Text("  "), "no buffer, no mapping: the driver never asked the DMA API for anything")
    rows = sorted(judged, key=lambda row: not row.rules)  # what is wrong first
    shown = rows if verbose else rows[:_SHOWN]
    for row in shown:
        word, style = ("WRONG", "bold red") if row.rules else ("well", "green")
        page.hang(Text.assemble((f"{word:<{_INDENT}}", style)), _told(row))
        page.hang(Text(" " * _INDENT), row.site)
    if len(rows) > len(shown):
        page.hang(Text(" " * _INDENT), f"and {len(rows) - len(shown)} more, all well; -v shows them")


def _told(row: Judged) -> str:
    made = f"{row.calls} made" + (f", {row.failed} of them refused" if row.failed else "")
    left = f", {row.alive} left" if row.alive else ""
    size = f"{row.smallest}" if row.smallest == row.largest else f"{row.smallest} to {row.largest}"
    where = f", at {row.lowest:#x}..{row.highest:#x}" if row.highest else ""
    reach = f", device reaches {_reach(row.mask)}" if row.highest and row.mask else ""
    broken = f"; breaks {', '.join(row.rules)}" if row.rules else ""
    direction = _DIRECTIONS.get(row.direction, row.direction)
    return f"{row.what}, {direction}, {row.device}: {made}{left}, {size} bytes{where}{reach}{broken}"


def _machine(result: AuditResult) -> str:
    made_of = result.provenance.machine
    words = [word for word in result.asked.split(", ") if word and word not in made_of.split(", ")]
    return ", ".join([*words, made_of])


def _reach(mask: int) -> str:
    return f"{mask.bit_length()} bits" if not mask & (mask + 1) else f"{mask:#x}"


def _print_blind(page: Page, blind: Sequence[Blind]) -> None:
    if blind:
        page.line(Text("Not judged:", style="bold"))
    for one in blind:
        rules = f" [{', '.join(one.rules)}]" if one.rules else ""
        hint = f"; {one.hint}" if one.hint else ""
        page.hang(Text("- ", style="yellow"), f"{one.what}{hint}{rules}")


def _print_closing(page: Page, result: AuditResult) -> None:
    found, made_on = len(result.findings), result.provenance
    made = sum(row.calls for row in result.judged)
    count = _of(found, "finding", "findings") if found else "no findings"
    if result.failure is not None:
        count += f", and the audit did not come to its end: {result.failure.kind.word}"
    page.line(Text())
    style = "bold red" if found or result.failure is not None else "bold"
    if made:
        count += f" in {_of(made, 'buffer or mapping', 'buffers and mappings')}"
        count += f" from {_of(len(result.judged), 'place', 'places')}"
    page.hang(Text(), count, style=style)
    lost = f", {result.lost} lost" if result.lost else ", none lost"
    page.hang(_label("ledger"), f"{result.events} calls of the DMA API recorded{lost}")
    page.hang(_label("outside"), f"{result.looks} looks at the stopped machine")
    page.hang(_label("time"), f"{result.seconds:.2f} s, on a guest that was {made_on.start}")
    page.hang(_label("qemu"), f"{made_on.qemu}, accelerator {made_on.accelerator}")


def _of(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
