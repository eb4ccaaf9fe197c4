# SPDX-License-Identifier: MIT
"""How long the oracle keeps a guest standing, step by step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Timing:
    """One step of one capture.

    Attributes:
        capture: number of the capture, from 1; 0 is outside of any.
        step: ``stop``, ``capture``, ``parse``, ``scan``, ``walk``, ``aliases``, ``types``, ``survey``,
            ``direct map`` or ``continue``.
        milliseconds: wall time of the step without the steps inside it.
    """

    capture: int
    step: str
    milliseconds: float


class Clock:
    """Records the steps in the order they ended."""

    def __init__(self) -> None:
        self.timings: list[Timing] = []
        self.capture = 0
        self._inner: list[float] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block; time spent in steps inside it counts for those only."""
        started = perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = perf_counter() - started
            own = whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole
            self.timings.append(Timing(self.capture, name, own * 1000))

    def per_capture(self) -> tuple[float, ...]:
        """Return the milliseconds each capture cost in all its steps."""
        totals: dict[int, float] = {}
        for timing in self.timings:
            totals[timing.capture] = totals.get(timing.capture, 0.0) + timing.milliseconds
        return tuple(totals.values())
