# SPDX-License-Identifier: MIT
"""What was measured, beside what it was measured against: one table, one JSON document."""

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

SCHEMA = 1


@dataclass(frozen=True)
class Series:
    """Repetitions of one measurement, in the order they were taken.

    Attributes:
        values: in the row's unit.
        each: single timings behind one value, 1 when a value is a timing and not a percentile of many.
    """

    values: tuple[float, ...]
    each: int = 1

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def repetitions(self) -> str:
        return f"{len(self.values)}" if self.each == 1 else f"{len(self.values)} x {self.each}"

    def as_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": self.values,
            "timings_per_value": self.each,
        }


def percentile(timings: Sequence[float], share: float) -> float:
    """The smallest timing that ``share`` of all timings do not exceed (nearest rank)."""
    ordered = sorted(timings)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: our side.
        unit: of all values.
        ours: our side's series, None when it could not be measured.
        peer: the other side's, None when there is none.
        against: what the other side is.
        goal: the highest ratio wished for; without a peer the highest median.
        more_is_better: turns the goal round: the lowest ratio, the lowest median.
        notes: what a reader has to know to believe the figures.
        problem: why a side is missing.
    """

    what: str
    unit: str
    ours: Series | None = None
    peer: Series | None = None
    against: str = ""
    goal: float | None = None
    more_is_better: bool = False
    notes: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by the peer's: the median over pairs taken in the same round, which cancels drift."""
        if self.ours is None or self.peer is None:
            return None
        if len(self.ours.values) == len(self.peer.values):
            return median(a / b for a, b in zip(self.ours.values, self.peer.values, strict=True))
        return self.ours.median / self.peer.median

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None without a goal or without what it is about."""
        figure = self.ratio if self.against else (self.ours.median if self.ours else None)
        if self.goal is None or figure is None:
            return None
        return figure >= self.goal if self.more_is_better else figure <= self.goal

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours and self.ours.as_json(),
            "against": self.against or None,
            "peer": self.peer and self.peer.as_json(),
            "ratio": self.ratio,
            "goal": self.goal,
            "goal_reached": self.reached,
            "notes": self.notes,
            "problem": self.problem or None,
        }


class Board:
    """Collects rows while the benches run."""

    def __init__(self) -> None:
        self.facts = machine_facts()
        self.rows: list[Row] = []

    def row(self, what: str, unit: str, ours: Series | None = None, **fields: Any) -> Row:
        """A line of the table; it may be filled in later and stays whatever happens."""
        row = Row(what, unit, ours, **fields)
        self.rows.append(row)
        return row

    def finish(self) -> None:
        """Note what the machine was busy with besides."""
        self.facts["load_at_end"] = round(os.getloadavg()[0], 2)

    def write(self, path: Path) -> None:
        """Leave everything, single values included, as JSON."""
        document = {"schema": SCHEMA, "machine": self.facts, "rows": [row.as_json() for row in self.rows]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def show(self, console: Console) -> None:
        """Print the table, then the notes."""
        table = Table(title="iobmd against its peers, in one run", title_justify="left", expand=False)
        table.add_column("what", ratio=3)
        table.add_column("unit")
        for name in ("ours", "peer", "ratio", "goal", "n"):
            table.add_column(name, justify="right")
        notes: list[str] = []
        for row in self.rows:
            marks = [_mark(notes, note) for note in (*row.notes, row.problem) if note]
            what = row.what + (f" / {row.against}" if row.against else "") + "".join(f" [{n}]" for n in marks)
            table.add_row(
                Text(what),
                row.unit,
                _figures(row.ours, row),
                _figures(row.peer, row) if row.against else Text(""),
                "" if row.ratio is None else f"{row.ratio:.2f}",
                _goal(row),
                row.ours.repetitions if row.ours else "",
            )
        console.print(table)
        for number, note in enumerate(notes, 1):
            console.print(Text(f"[{number}] {note}"))
        console.print(Text("; ".join(f"{name}: {value}" for name, value in self.facts.items())))
        console.print(Text("Figures are medians (min..max). Nothing fails for being slow."))


def machine_facts() -> dict[str, Any]:
    """What the figures depend on besides this project."""
    cpu = [
        line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")
    ]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory[0] / (1 << 20), 1) if memory else None,
        "host": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "host_kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()


def _mark(notes: list[str], note: str) -> int:
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _figures(series: Series | None, row: Row) -> Text:
    if series is None:
        return Text("could not run" if row.problem else "-", style="yellow")
    digits = 2 if row.unit == "s" or series.median < 10 else 1 if series.median < 100 else 0
    low, high = min(series.values), max(series.values)
    return Text(f"{series.median:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})")


def _goal(row: Row) -> Text:
    if row.goal is None:
        return Text("")
    words = {True: ("reached", "green"), False: ("missed", "bold yellow"), None: ("not judged", "yellow")}
    word, style = words[row.reached]
    sign = ">=" if row.more_is_better else "<="
    return Text(f"{sign} {row.goal:g} {word}", style=style)
