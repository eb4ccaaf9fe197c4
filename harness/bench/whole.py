# SPDX-License-Identifier: MIT
"""The main job as a whole, and the same tests with one worker and with two."""

import importlib.util
import os
import re
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.bench.lab import Lab
from harness.bench.rounds import Measure, Side, cost
from harness.contract.catalogue import catalogue
from harness.contract.engine import judge
from harness.errors import GuestFailure, HostLacks
from harness.images import SilentProgress
from harness.images.run import run, start
from harness.iokit import IOKit
from harness.link import Guest
from harness.options import make_guest
from harness.oracle import Oracle
from harness.vm import SnapshotStore

_ROUNDS = 1
_WORKER_ROUNDS = 2
_SECONDS = 900.0
_BUSY = "for number in range(5_000_000): number * number"
_TESTS = '''"""What a user's tests do: a clause of the contract each, claim and evidence."""

import pytest

from harness.contract import Verdict, catalogue, judge
from harness.images import SilentProgress


@pytest.mark.parametrize("clause", list(catalogue()))
def test_clause(clause, guest, iobmd, oracle):
    (result,) = judge(guest, iobmd, oracle, catalogue().select(clause), SilentProgress()).results
    assert result.verdict in (Verdict.HOLDS, Verdict.NOT_APPLICABLE), result
'''


def bench_contract(lab: Lab) -> None:
    """Measure the whole contract, started from a snapshot and from a boot."""
    warm = Side("warm", lambda _: lambda: _judged(lab, lab.snapshots))
    cold = Side("cold", lambda _: lambda: _judged(lab, None))
    for what, figure in (
        (f"whole contract, {len(catalogue())} clauses, from snapshot", "whole"),
        ("  of it the start", "start"),
        ("  of it the checks", "checks"),
    ):
        ours, peer = warm.series(figure), cold.series(figure)
        lab.board.row(what, "s", ours, peer=peer, against="from a boot")
    lab.measure("Whole contract", (warm, cold), _ROUNDS)


def bench_workers(lab: Lab) -> None:
    """Measure a fixed set of guest tests in one process and with two workers of pytest-xdist."""
    two, one = (Side(f"{count} workers", partial(_tests, lab, count)) for count in (2, 1))
    both, alone = (_busy_side(count) for count in (2, 1))
    note = f"{len(catalogue())} tests, a clause each; pytest's own start and end included"
    against, notes = "one process", [note]
    ours, peer = two.series("rate"), one.series("rate")
    lab.board.row(
        "tests per second with two xdist workers",
        "1/s",
        ours,
        peer=peer,
        against=against,
        goal=1.7,
        more_is_better=True,
        notes=notes,
    )
    ours, peer = two.series("cpu"), one.series("cpu")
    lab.board.row(
        "CPU time of all tests, QEMU's included", "s", ours, peer=peer, against=against, notes=notes
    )
    what = "what the host gives: busy loops per second, two at once"
    lab.board.row(
        what, "1/s", both.series("rate"), peer=alone.series("rate"), against="one alone", more_is_better=True
    )
    lab.measure("Workers", (two, one, both, alone), _WORKER_ROUNDS)
    if two.series("cpu") and one.series("wall"):
        cores = len(os.sched_getaffinity(0))
        most = cores * one.series("wall").median / two.series("cpu").median
        busy = one.series("cpu").median / one.series("wall").median
        notes.append(
            f"one process and its QEMU keep {busy:.2f} cores busy; with the CPU time two workers take, "
            f"{cores} cores give {most:.2f} at most"
        )


def _busy_side(count: int) -> Side:
    return Side(f"{count} busy", lambda _: partial(_busy, count))


def _busy(count: int) -> dict[str, float]:
    """Loops per second of processes that do nothing but count: no host is faster with real work."""
    started = time.perf_counter()
    loops = [start([sys.executable, "-c", _BUSY]) for _ in range(count)]
    for loop in loops:
        loop.communicate()
    return {"rate": count / (time.perf_counter() - started)}


def _judged(lab: Lab, snapshots: SnapshotStore | None) -> dict[str, float]:
    """Seconds of one judgement of everything, and of its start."""
    started = time.perf_counter()
    with Guest(lab.image, lab.machine, snapshots) as guest, IOKit(guest) as iokit:
        begun = time.perf_counter()
        judge(guest, iokit, Oracle(guest.machine), catalogue().values(), SilentProgress())
        ended = time.perf_counter()
    return {
        "whole": time.perf_counter() - started,
        "start": begun - started,
        "checks": ended - begun,
    }


def _tests(lab: Lab, workers: int, stack: ExitStack) -> Measure:
    """Tests per second of a run of pytest, in a folder that has nothing but one file of tests."""
    if importlib.util.find_spec("xdist") is None:
        raise HostLacks("pytest-xdist is not installed", hint="pip install 'pytest-xdist>=3.5'")
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="iobmd-bench-")))
    (folder / "test_clauses.py").write_text(_TESTS, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    options = lab.options
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--kernel", options.kernel]
    argv += ["--memory", str(lab.machine.memory_mib), "--cpus", str(lab.machine.cpus)]
    argv += ["--accel", options.accel.value, "-n", str(workers) if workers > 1 else "0"]
    for name, path in (("--modules", options.modules), ("--headers", options.headers)):
        argv += [name, str(path)] if path else []
    wanted = len(catalogue())
    with make_guest(options, lab.image):  # leaves a snapshot: the first run has no boot to do either
        pass

    def tests() -> None:
        done = run(argv, doing="running the tests", timeout=_SECONDS, cwd=folder, env=dict(os.environ))
        passed = re.search(r"(\d+) passed", done.stdout)
        if passed is None or int(passed[1]) != wanted:
            raise GuestFailure("not every test passed", observed=done.stdout[-300:])

    def measure() -> dict[str, float]:
        figures = cost(tests)
        return figures | {"rate": wanted / figures["wall"]}

    return measure
