# SPDX-License-Identifier: MIT
"""Measuring by turns: every side once per round, so that whatever the host does hits all of them alike."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from harness.bench.board import Series, percentile
from harness.errors import HarnessError
from harness.images import Task

Measure = Callable[[], Mapping[str, float]]
"""One round of one side: its figures by name."""


class Side:
    """One of those that are compared.

    Args:
        name: what to call it while it runs.
        prepare: makes everything ready, leaves what has to be given back on the stack, and returns what
            measures one round.
        each: single timings behind one figure.

    Attributes:
        name: as given.
        problem: why it cannot run, or did not go on; empty while all is well.
    """

    def __init__(self, name: str, prepare: Callable[[ExitStack], Measure], each: int = 1) -> None:
        self.name = name
        self.problem = ""
        self._prepare = prepare
        self._measure: Measure | None = None
        self._each = each
        self._series: dict[str, Series] = {}

    def series(self, figure: str) -> Series:
        """The series one of its figures goes to; it can be asked for before there is anything in it."""
        return self._series.setdefault(figure, Series(each=self._each, problem=self.problem))

    def open(self, stack: ExitStack) -> None:
        """Prepare; a failure is the side's problem and ends nobody else's measurement."""
        try:
            self._measure = self._prepare(stack)
        except HarnessError as error:
            self._give_up(error)

    def step(self) -> None:
        """Measure once; after a failure the side stays out of the coming rounds."""
        if self._measure is None:
            return
        try:
            figures = self._measure()
        except HarnessError as error:
            self._give_up(error)
            return
        for name, value in figures.items():
            self.series(name).values.append(value)

    def _give_up(self, error: HarnessError) -> None:
        self._measure = None
        last = error.evidence[-1].strip() if error.evidence else ""
        parts = (error.summary, error.observed, error.hint, last)
        self.problem = f"{self.name}: " + "; ".join(part for part in parts if part)
        for series in self._series.values():
            series.problem = self.problem


def interleave(sides: Sequence[Side], rounds: int, task: Task) -> None:
    """Measure all sides ``rounds`` times; who goes first changes from round to round.

    Args:
        sides: those compared.
        rounds: how often.
        task: hears of every step; its total is ``rounds * len(sides)``.
    """
    with ExitStack() as stack:
        for side in sides:
            task.update(f"preparing {side.name}")
            side.open(stack)
        for number in range(rounds):
            turn = number % len(sides)
            for side in (*sides[turn:], *sides[:turn]):
                task.update(f"round {number + 1} of {rounds}, {side.name}")
                side.step()
                task.advance(1)


def cost(command: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock (``wall``) and of CPU of all processes that ended meanwhile (``cpu``)."""
    before, started = _children_cpu(), time.perf_counter()
    command()
    return {"wall": time.perf_counter() - started, "cpu": _children_cpu() - before}


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def timings_of(call: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each of ``count`` calls."""
    now, timings = time.perf_counter, []
    for _ in range(count):
        started = now()
        call()
        timings.append((now() - started) * 1e6)
    return timings


def p50_p99(timings: Sequence[float]) -> dict[str, float]:
    """The two figures that describe a request: the usual one and the bad one."""
    return {"p50": percentile(timings, 0.50), "p99": percentile(timings, 0.99)}
