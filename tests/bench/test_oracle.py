# SPDX-License-Identifier: MIT
"""How long a look from outside keeps the guest standing."""

import time
from collections import defaultdict

import pytest
from bench_board import Board, Series

from harness.iokit import IOBufferMemoryDescriptor, IOKit
from harness.iokit.constants import kIODirectionInOut
from harness.link import Guest
from harness.oracle import Oracle

pytestmark = pytest.mark.bench

_ROUNDS = 20
_GOAL_MS = 20.0


@pytest.mark.parametrize("kib", [64, 4096])
def test_a_look_at_a_buffer(board: Board, bench_guest: Guest, kib: int) -> None:
    oracle, whole, parts = Oracle(bench_guest.machine), [], defaultdict[str, list[float]](list)
    with IOKit(bench_guest) as iokit:
        buffer = iokit.withOptions(kIODirectionInOut, kib << 10, 4096)
        assert isinstance(buffer, IOBufferMemoryDescriptor), buffer
        for _ in range(_ROUNDS):
            already = len(oracle.timings)
            started = time.perf_counter()
            with oracle.frozen() as view:
                leaf = view.walk(buffer.address)
                aliases = view.aliases(view.physical_of(buffer.address, buffer.storage))
            whole.append((time.perf_counter() - started) * 1000)
            assert leaf is not None
            assert sum(alias.size for alias in aliases) >= buffer.storage
            spent: dict[str, float] = defaultdict(float)
            for timing in oracle.timings[already:]:
                spent[timing.step] += timing.milliseconds
            for step, milliseconds in spent.items():
                parts[step].append(milliseconds)
    board.row(
        f"stop, capture, walk, all aliases, go on: {kib} KiB", "ms", Series(tuple(whole)), goal=_GOAL_MS
    )
    for step, values in parts.items():
        board.row(f"  of it {step}", "ms", Series(tuple(values)))
