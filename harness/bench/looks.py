# SPDX-License-Identifier: MIT
"""How long a look from outside keeps the guest standing."""

import time
from collections import defaultdict
from contextlib import ExitStack
from functools import partial

from harness.bench.lab import Lab
from harness.bench.rounds import Measure, Side
from harness.errors import GuestFailure
from harness.iokit import IOBufferMemoryDescriptor, IOKit
from harness.iokit.constants import kIODirectionInOut
from harness.link import Guest
from harness.oracle import Oracle

_ROUNDS = 20
_GOAL_MS = 20.0
_SIZES_KIB = (64, 4096)
_STEPS = ("stop", "capture", "parse", "walk", "scan", "aliases", "continue")


def bench_looks(lab: Lab) -> None:
    """Measure stop, capture, walk, alias scan and going on, for a small and a large buffer."""
    with Guest(lab.image, lab.machine) as guest, IOKit(guest) as iokit:
        oracle, sides = Oracle(guest.machine), []
        for kib in _SIZES_KIB:
            side = Side(f"{kib} KiB", partial(_look, oracle, iokit, kib))
            sides.append(side)
            what = f"look from outside at {kib} KiB: stop, capture, walk, all aliases, go on"
            lab.board.row(what, "ms", side.series("whole"), goal=_GOAL_MS)
            for step in _STEPS:
                lab.board.row(f"  of it {step}", "ms", side.series(step))
        lab.measure("Looks from outside", sides, _ROUNDS)


def _look(oracle: Oracle, iokit: IOKit, kib: int, _: ExitStack) -> Measure:
    buffer = iokit.withOptions(kIODirectionInOut, kib << 10, 4096)
    if not isinstance(buffer, IOBufferMemoryDescriptor):
        raise GuestFailure(f"no buffer of {kib} KiB", observed=str(buffer))

    def measure() -> dict[str, float]:
        already, started = len(oracle.timings), time.perf_counter()
        with oracle.frozen() as view:
            view.walk(buffer.address)
            view.aliases(view.physical_of(buffer.address, buffer.storage))
        spent = defaultdict(float, whole=(time.perf_counter() - started) * 1000)
        for timing in oracle.timings[already:]:
            spent[timing.step] += timing.milliseconds
        return spent

    return measure
