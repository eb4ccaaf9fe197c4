# SPDX-License-Identifier: MIT
"""What was measured, beside what it was measured against, as values and as one JSON document."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from harness.errors import BadInput

SCHEMA = 2


@dataclass
class Series:
    """Repetitions of one measurement, in the order they were taken; grows while a bench runs.

    Attributes:
        values: in the row's unit.
        each: single timings behind one value, 1 when a value is a timing and not a percentile of many.
        problem: why there is nothing, or nothing more, in it.
    """

    values: list[float] = field(default_factory=list)
    each: int = 1
    problem: str = ""

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def median(self) -> float:
        """The middle value.

        Raises:
            statistics.StatisticsError: nothing was measured.
        """
        return median(self.values)

    @property
    def repetitions(self) -> str:
        """How many values, and of how many timings each."""
        return f"{len(self.values)}" if self.each == 1 else f"{len(self.values)} x {self.each}"

    def as_json(self) -> dict[str, Any]:
        """Return the series with every value; without any, only why."""
        if not self.values:
            return {"values": [], "problem": self.problem or None}
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": self.values,
            "timings_per_value": self.each,
            "problem": self.problem or None,
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
        ours: our side's series.
        peer: the other side's, None when there is none.
        against: what the other side is.
        goal: the highest ratio wished for; without a peer the highest median.
        more_is_better: turns the goal round: the lowest ratio, the lowest median.
        notes: what a reader has to know to believe the figures.
    """

    what: str
    unit: str
    ours: Series
    peer: Series | None = None
    against: str = ""
    goal: float | None = None
    more_is_better: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Ours by the peer's: the median over pairs taken in the same round, which cancels drift.

        None while either side is missing.
        """
        if not self.ours or not self.peer:
            return None
        pairs = zip(self.ours.values, self.peer.values, strict=False)
        return median(a / b for a, b in pairs if b)

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None without a goal or without what it is about."""
        figure = self.ratio if self.peer is not None else (self.ours.median if self.ours else None)
        if self.goal is None or figure is None:
            return None
        return figure >= self.goal if self.more_is_better else figure <= self.goal

    @property
    def problems(self) -> tuple[str, ...]:
        """Why a side is missing or stopped early, ours first."""
        sides = (self.ours, self.peer)
        return tuple(side.problem for side in sides if side is not None and side.problem)

    def as_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return {
            "what": self.what,
            "unit": self.unit,
            "ours": self.ours.as_json(),
            "against": self.against or None,
            "peer": self.peer and self.peer.as_json(),
            "ratio": self.ratio,
            "goal": self.goal,
            "more_is_better": self.more_is_better,
            "goal_reached": self.reached,
            "notes": self.notes,
            "problems": list(self.problems),
        }


@dataclass
class Breakdown:
    """Where the time of one thing goes: parts in the order they happen, which add up to the whole.

    Attributes:
        title: what was taken apart.
        unit: of all values.
        parts: by name.
        details: by name; what is inside of a part, or was measured in another run, and adds nothing.
        notes: what a reader has to know.
        problem: why it is empty.
    """

    title: str
    unit: str = "ms"
    parts: dict[str, Series] = field(default_factory=dict)
    details: dict[str, Series] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problem: str = ""

    def add(self, parts: Mapping[str, float]) -> None:
        """Add one round's values to the parts."""
        for name, value in parts.items():
            self.parts.setdefault(name, Series()).values.append(value)

    def detail(self, name: str, value: float) -> None:
        """Add one value to a detail."""
        self.details.setdefault(name, Series()).values.append(value)

    @property
    def whole(self) -> float:
        """The sum of the parts' medians."""
        return sum(part.median for part in self.parts.values() if part)

    def as_json(self) -> dict[str, Any]:
        """Return the breakdown as a JSON object."""
        return {
            "title": self.title,
            "unit": self.unit,
            "whole": self.whole,
            "parts": {name: part.as_json() for name, part in self.parts.items()},
            "details": {name: part.as_json() for name, part in self.details.items()},
            "notes": self.notes,
            "problem": self.problem or None,
        }


class Board:
    """Collects rows while the benches run; what is on it can be shown at any time.

    Attributes:
        facts: what the figures depend on besides this project.
        rows: in the order they were begun.
        breakdowns: likewise.
        interrupted: whether somebody ended the run before its end.
    """

    def __init__(self) -> None:
        self.facts = machine_facts()
        self.rows: list[Row] = []
        self.breakdowns: list[Breakdown] = []
        self.interrupted = False

    def row(self, what: str, unit: str, ours: Series, **fields: Any) -> Row:
        """A line of the table; its series may grow later, and it stays whatever happens."""
        row = Row(what, unit, ours, **fields)
        self.rows.append(row)
        return row

    def breakdown(self, title: str) -> Breakdown:
        """A table of parts, in milliseconds."""
        parts = Breakdown(title)
        self.breakdowns.append(parts)
        return parts

    def finish(self) -> None:
        """Note what the machine was busy with besides."""
        self.facts["load_at_end"] = round(os.getloadavg()[0], 2)

    def as_json(self) -> dict[str, Any]:
        """Return everything, single values included."""
        return {
            "schema": SCHEMA,
            "interrupted": self.interrupted,
            "machine": self.facts,
            "rows": [row.as_json() for row in self.rows],
            "breakdowns": [parts.as_json() for parts in self.breakdowns],
        }

    def write(self, path: Path) -> None:
        """Leave `as_json` in a file.

        Raises:
            BadInput: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"cannot write {path}", observed=str(error), hint="name another file") from error


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
        "host": _distribution(),
        "host_kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
