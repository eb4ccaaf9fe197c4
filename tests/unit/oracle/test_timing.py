# SPDX-License-Identifier: MIT
import pytest

from harness.oracle import timing
from harness.oracle.timing import Clock, Timing


@pytest.fixture(autouse=True)
def _ticks(monkeypatch):
    """Every look at the clock is 10 ms after the last one."""
    now = iter(range(1000))
    monkeypatch.setattr(timing, "perf_counter", lambda: next(now) / 100)


def test_a_step_inside_a_step_counts_once():
    clock = Clock()
    clock.capture = 3
    with clock.step("outer"), clock.step("middle"):
        with clock.step("inner"):
            pass
        with clock.step("inner"):
            pass
    found = [(entry.step, round(entry.milliseconds)) for entry in clock.timings]
    assert found == [("inner", 10), ("inner", 10), ("middle", 30), ("outer", 20)]
    assert clock.per_capture() == (pytest.approx(70),)


def test_a_step_that_fails_is_recorded():
    clock = Clock()
    with pytest.raises(ValueError, match="x"), clock.step("bad"):
        raise ValueError("x")
    assert clock.timings == [Timing(0, "bad", pytest.approx(10))]


def test_captures_are_summed_apart():
    clock = Clock()
    for clock.capture in (1, 1, 2):
        with clock.step("step"):
            pass
    assert clock.per_capture() == (pytest.approx(20), pytest.approx(10))
