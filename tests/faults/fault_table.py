# SPDX-License-Identifier: MIT
"""The table of faults: what was injected, what it has to be called, how soon, and what is left of it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.errors import FailureKind, HarnessError

NOTHING = "nothing"
"""The name of what must not be called a failure."""
PANIC_SECONDS = 2.0
"""From a panic, or the end of QEMU, to its report."""
DEADLINE = 1.0
"""Of an operation that is made to hang."""
HANG_SECONDS = DEADLINE + 2.0
"""From the start of an operation that hangs to its report."""


@dataclass(frozen=True)
class Fault:
    """One way to break something.

    Attributes:
        name: of the function that does it.
        where: guest, channel or host.
        injected: what is done, in words.
        expected: what it has to be called; None: it is no failure.
        limit: seconds until the report.
        inject: does it, on a `Report` with what it needs.
    """

    name: str
    where: str
    injected: str
    expected: FailureKind | None
    limit: float
    inject: Callable[[Any], None]


@dataclass(frozen=True)
class Row:
    """What came of a fault.

    Attributes:
        name: as the fault's.
        where: likewise.
        injected: likewise.
        expected: the word of the kind, or `NOTHING`.
        named: what it was called.
        seconds: from the injection until it was called that, see `waiting_aside`.
        limit: what they may be.
        left: what was left over, one line each.
        said: the report's first line, and what was observed.
        why_not: why this row is red where its figures are not; ``""`` otherwise.
    """

    name: str
    where: str
    injected: str
    expected: str
    named: str
    seconds: float
    limit: float
    left: tuple[str, ...] = ()
    said: str = ""
    why_not: str = ""

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with this row; empty when it is green."""
        found = [self.why_not] if self.why_not else []
        if self.named != self.expected:
            found.append(f"it was called {self.named!r}, not {self.expected!r} ({self.said})")
        if self.seconds > self.limit:
            found.append(f"the report took {self.seconds:.2f} s, not at most {self.limit:.2f} s")
        found += [f"left over: {line}" for line in self.left]
        return tuple(found)


class Report:
    """What is noted while a fault takes place.

    Attributes:
        named: what the failure was called so far.
        seconds: from the injection to that.
        said: the report in a line.
    """

    def __init__(self) -> None:
        self.named: FailureKind | None = None
        self.seconds = 0.0
        self.said = ""

    @contextlib.contextmanager
    def injection(self) -> Iterator[None]:
        """Take the time of the block, and the name of the failure that ends it."""
        since = waiting_aside()
        try:
            yield
        except HarnessError as error:
            self.call(error.kind, f"{error.summary}; {error.observed}" if error.observed else error.summary)
        finally:
            self.seconds = waiting_aside() - since

    def call(self, kind: FailureKind | None, said: str = "", seconds: float | None = None) -> None:
        """Note what the failure was called; for who finds it out by other means than an exception."""
        self.named, self.said = kind, said
        self.seconds = self.seconds if seconds is None else seconds


def waiting_aside(pid: int | str = "self") -> float:
    """Return the time of a clock that stands still while a process waits for a processor.

    What is promised is how long the harness takes.  That others compute on the same host is none of it.

    Args:
        pid: of the process whose first thread counts (proc(5), schedstat); it may have ended, unless reaped.
    """
    try:
        _, queued, *_ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):  # a kernel that does not count
        queued = "0"
    return time.monotonic() - int(queued) / 1e9


def carry_out(fault: Fault, stage: Report, leftovers: Callable[[], Sequence[str]], scale: float = 1.0) -> Row:
    """Inject a fault and return its row; whatever goes wrong meanwhile makes it red.

    Args:
        fault: what to inject.
        stage: what it gets.
        leftovers: what is left of it, asked when all is over.
        scale: what the limit is multiplied by.
    """
    why_not = ""
    try:
        fault.inject(stage)
    except Exception as error:
        why_not = f"{type(error).__name__} outside of the injection: {error}"
    row = Row(
        name=fault.name,
        where=fault.where,
        injected=fault.injected,
        expected=word(fault.expected),
        named=word(stage.named),
        seconds=stage.seconds,
        limit=fault.limit * scale,
        said=stage.said.partition("\n")[0],
        why_not=why_not,
    )
    return replace(row, left=tuple(leftovers()))


def word(kind: FailureKind | None) -> str:
    """Return the word of a kind, `NOTHING` for none."""
    return NOTHING if kind is None else kind.word


def load(text: str) -> Row:
    """Return the row that `dump` wrote."""
    fields = json.loads(text)
    return Row(**{**fields, "left": tuple(fields["left"])})


def dump(row: Row) -> str:
    """Return a row as a line of JSON."""
    return json.dumps(asdict(row))


def write(rows: Sequence[Row], facts: Mapping[str, object], path: Path) -> None:
    """Write the whole table as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [{**asdict(row), "faults": row.faults} for row in rows]
    path.write_text(json.dumps({"facts": dict(facts), "rows": table}, indent=1) + "\n")


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title=f"{len(rows)} injected faults", title_justify="left")
    for heading, justify in (
        ("", "right"), ("injected", "left"), ("has to be called", "left"), ("was called", "left"),
        ("after", "right"), ("at most", "right"), ("left over", "right"),
    ):  # fmt: skip
        table.add_column(heading, justify=justify, no_wrap=heading != "injected")
    where = rows[0].where if rows else ""
    for number, row in enumerate(rows, 1):
        if row.where != where:
            table.add_section()
            where = row.where
        style = "red" if row.faults else ""
        mark = "" if not row.faults else " !"
        table.add_row(
            str(number), f"{row.where}: {row.injected}", row.expected, row.named + mark,
            f"{row.seconds:.2f} s", f"{row.limit:.2f} s", str(len(row.left)), style=style,
        )  # fmt: skip
    console.print(table)
    green = sum(not row.faults for row in rows)
    none = sum(row.expected == NOTHING for row in rows)
    left = sum(len(row.left) for row in rows)
    slowest = max((row.seconds / row.limit for row in rows), default=0.0)
    console.print(
        f"{green} of {len(rows)} as they have to be; {len(rows) - none} failures, {none} that are none; "
        f"{left} left over; the slowest took {slowest:.0%} of its limit"
    )
