# SPDX-License-Identifier: MIT
"""Calls without end, two processors of the guest's on one of the host's; ``--calls`` says how many."""

import json
import os
from pathlib import Path

import pytest
from left_over import Census, left_over
from stage import Shop, Stage

_STRESS = Path(__file__).with_name("stress.py")
_SECONDS_PER_CALL = 0.02
"""A bound for the whole run; a call takes a fiftieth of that on a quiet machine."""


def test_no_call_is_lost_or_late(
    shop: Shop, world: Path, tmp_path: Path, pytestconfig: pytest.Config, record_property
):
    calls = pytestconfig.getoption("--calls")
    before = Census.take(world)
    stage = Stage(shop, tmp_path)
    one = str(min(os.sched_getaffinity(0)))
    words = [*stage.machine_words(), "--cpus", "2", "--calls", str(calls)]
    told = stage.finish(
        stage.start(["taskset", "-c", one, *stage.python(str(_STRESS)), *words]),
        seconds=60.0 + calls * _SECONDS_PER_CALL,
    )
    assert stage.named is None, told
    found = json.loads(told.splitlines()[-1])
    lost = found["calls"] - found["answered"]
    record_property(
        "note",
        f"{found['calls']} calls over one host processor to a guest with two, {found['alone']} alone and "
        f"{found['in_flight']} with others under way, {found['batches']} of them batches that made "
        f"{found['in_batches']} more in the guest: {lost} lost, {found['late']} late; the slowest took "
        f"{found['slowest']:.3f} s of {found['deadline']:g} s, all {found['seconds']:.0f} s",
    )
    assert found["processors"] == [int(one)]
    assert found["answered"] == found["calls"] == calls
    assert found["late"] == 0
    assert found["slowest"] < found["deadline"]
    assert left_over(before, world) == ()
