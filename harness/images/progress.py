# SPDX-License-Identifier: MIT
"""How long steps say that they are alive."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars

_PLAIN_INTERVAL = 5.0
"""Seconds between two lines of one task when there is no terminal to redraw."""


class Task(Protocol):
    """One running step."""

    def advance(self, amount: float) -> None:
        """Add ``amount`` to what is done, in the unit of the task's total."""

    def update(self, text: str) -> None:
        """Say what is being done right now."""


class Progress(Protocol):
    """Receives what long steps have to say."""

    def task(self, title: str, total: float | None = None) -> AbstractContextManager[Task]:
        """Open a step; ``total`` is its size in any unit, None when it is not known."""

    def note(self, text: str) -> None:
        """Say one thing that stays visible."""


class _SilentTask:
    def advance(self, amount: float) -> None:
        pass

    def update(self, text: str) -> None:
        pass


class SilentProgress:
    """Says nothing: for tests and libraries."""

    @contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:  # noqa: ARG002
        """Open a step nobody hears of."""
        yield _SilentTask()

    def note(self, text: str) -> None:
        """Drop the text."""


class _BarTask:
    def __init__(self, bars: RichBars, identity: TaskID, title: str) -> None:
        self._bars, self._id, self._title = bars, identity, title

    def advance(self, amount: float) -> None:
        self._bars.advance(self._id, amount)

    def update(self, text: str) -> None:
        self._bars.update(self._id, description=f"{self._title}: {text}")


class _LineTask:
    """A task on something that cannot be redrawn: a line now and then."""

    def __init__(self, console: Console, title: str, total: float | None) -> None:
        self._console, self._title, self._total = console, title, total
        self._done = 0.0
        self._said = time.monotonic()
        console.print(f"{title} ...", highlight=False)

    def advance(self, amount: float) -> None:
        self._done += amount
        if self._total:
            self._say(f"{100 * self._done / self._total:.0f} %")

    def update(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if now - self._said >= _PLAIN_INTERVAL:
            self._said = now
            self._console.print(f"{self._title}: {text}", highlight=False)


class RichProgress:
    """Bars on stderr; without a terminal one line per step and one every few seconds of a long one."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)

    @contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        """Show a step until the block is left."""
        if not self._console.is_terminal:
            yield _LineTask(self._console, title, total)
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with RichBars(*columns, console=self._console, transient=True) as bars:
            yield _BarTask(bars, bars.add_task(title, total=total), title)

    def note(self, text: str) -> None:
        """Print one line on stderr."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
