# SPDX-License-Identifier: MIT
"""The board on a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.bench.board import Board, Breakdown, Row, Series

_BAR = 24
_SMALL_RATIO = 0.2


def show(board: Board, console: Console) -> None:
    """Print every table, then the notes; figures are medians with their spread."""
    notes: list[str] = []
    if board.rows:
        console.print(_rows(board.rows, notes))
    for parts in board.breakdowns:
        console.print(_breakdown(parts, notes))
    for number, note in enumerate(notes, 1):
        console.print(Text(f"[{number}] {note}"))
    console.print(Text("; ".join(f"{name}: {value}" for name, value in board.facts.items())))
    console.print(Text("Figures are medians (min..max); ratios are medians over rounds. Slow fails nothing."))
    if board.interrupted:
        console.print(Text("Interrupted: this is what was measured until then.", style="bold yellow"))


def ratio_text(ratio: float) -> str:
    """A ratio as people say it: ``1/14`` when one side is many times the other, else two decimals."""
    return f"1/{1 / ratio:.3g}" if 0 < ratio < _SMALL_RATIO else f"{ratio:.2f}"


def figures_text(series: Series, unit: str) -> str:
    """A median with its spread, in as many digits as mean something; empty without values."""
    if not series:
        return ""
    middle = series.median
    size = abs(middle)
    digits = 3 if size < 0.1 else 2 if unit == "s" or size < 10 else 1 if size < 100 else 0
    low, high = min(series.values), max(series.values)
    spread = "" if len(series.values) == 1 else f" ({low:.{digits}f}..{high:.{digits}f})"
    return f"{middle:.{digits}f}{spread}"


def _rows(rows: list[Row], notes: list[str]) -> Table:
    table = Table(title="iobmd against its peers, in one run", title_justify="left", expand=False)
    table.add_column("what", ratio=3)
    table.add_column("unit")
    for name in ("ours", "peer", "ratio", "goal", "n"):
        table.add_column(name, justify="right")
    for row in rows:
        marks = [_mark(notes, note) for note in (*row.notes, *row.problems)]
        what = row.what + (f" / {row.against}" if row.against else "") + "".join(f" [{n}]" for n in marks)
        table.add_row(
            Text(what),
            row.unit,
            _side(row.ours, row.unit),
            _side(row.peer, row.unit) if row.peer is not None else Text(""),
            "" if row.ratio is None else ratio_text(row.ratio),
            _goal(row),
            row.ours.repetitions if row.ours else "",
        )
    return table


def _breakdown(parts: Breakdown, notes: list[str]) -> Table:
    marks = "".join(f" [{_mark(notes, note)}]" for note in (*parts.notes, parts.problem) if note)
    whole = parts.whole
    title = f"{parts.title}{marks}" + (f": {whole:.0f} {parts.unit}" if whole else "")
    table = Table(title=Text(title), title_justify="left", expand=False)
    table.add_column("part", ratio=2)
    for name in (parts.unit, "share", "n"):
        table.add_column(name, justify="right")
    table.add_column("")
    if parts.problem and not parts.parts:
        table.add_row(Text("could not run", style="yellow"), "", "", "", "")
    for name, part in parts.parts.items():
        share = part.median / whole if whole else 0.0
        bar = "#" * round(share * _BAR)
        table.add_row(Text(name), figures_text(part, parts.unit), f"{share:.1%}", part.repetitions, bar)
    if parts.details:
        table.add_section()
    for name, part in parts.details.items():
        table.add_row(Text(name, style="dim"), figures_text(part, parts.unit), "", part.repetitions, "")
    return table


def _mark(notes: list[str], note: str) -> int:
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _side(series: Series, unit: str) -> Text:
    if series:
        return Text(figures_text(series, unit))
    return Text("could not run" if series.problem else "-", style="yellow")


def _goal(row: Row) -> Text:
    if row.goal is None:
        return Text("")
    words = {True: ("reached", "green"), False: ("missed", "bold yellow"), None: ("not judged", "yellow")}
    word, style = words[row.reached]
    sign = ">=" if row.more_is_better else "<="
    figure = ratio_text(row.goal) if row.peer is not None and row.goal < 1 else f"{row.goal:g}"
    return Text(f"{sign} {figure} {word}", style=style)
