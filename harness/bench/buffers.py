# SPDX-License-Identifier: MIT
"""Very many buffers: in one trip and one at a time, with the look from outside, and beside many others."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median

from harness.bench.lab import Lab
from harness.bench.rounds import Measure, Side
from harness.errors import GuestFailure
from harness.iokit import Buffers, IOKit
from harness.iokit.constants import kIODirectionInOut, kIOMapWriteCombineCache
from harness.link import Guest
from harness.oracle import Oracle
from harness.oracle.memtype import MemoryType
from harness.oracle.pagetypes import mask_of

_ROUNDS = 7
_MASS_ROUNDS = 15
_FLAT = 1.2
_WC = kIODirectionInOut | kIOMapWriteCombineCache
_BYTES = 64 << 10
_BATCH = 1000
_THOUSAND = 1000
_SMALL_BYTES = 4096
_LIVE = (10, 100, 1000, 10_000)
_MORE, _TIMES = 100, 5


def bench_batches(lab: Lab) -> None:
    """Measure making, asking and releasing buffers in batches beside one at a time."""
    with Guest(lab.image, lab.machine) as guest, IOKit(guest) as iokit:
        single = Side("one at a time", lambda _: lambda: _rate(_BATCH, lambda: _singly(iokit)))
        batch = Side("batched", lambda _: lambda: _rate(_BATCH, lambda: _batched(iokit)))
        what = "batched: create, getPhysicalSegment, release of 64 KiB WC buffers"
        ours, peer = batch.series("rate"), single.series("rate")
        lab.board.row(
            what, "1/s", ours, peer=peer, against="one at a time", goal=8.0, more_is_better=True
        ).notes.append(f"{_BATCH} buffers by round")
        lab.measure("Batches", (batch, single), _ROUNDS)


def bench_mass(lab: Lab) -> None:
    """Measure buffers that are made, verified from outside and released, and what others cost them."""
    proved = Side("a thousand", partial(_proved, lab))
    note = "64 KiB WC; every alias of every page is seen to be WC, one physical piece each"
    what = f"{_THOUSAND} buffers made, verified from outside, released"
    lab.board.row(what, "1/s", proved.series("rate"), goal=1000.0, more_is_better=True, notes=[note])
    for step in ("create", "survey", "release"):
        lab.board.row(f"  of it {step}", "ms", proved.series(step))
    few, *many = (Side(f"beside {live}", partial(_beside, lab, live)) for live in _LIVE)
    note = "in guests of their own, which were given the others before the first round"
    for live, side in zip(_LIVE[1:], many, strict=True):
        what = f"4 KiB WC buffer created, asked, released beside {live}"
        ours, peer, against = side.series("each"), few.series("each"), f"beside {_LIVE[0]}"
        lab.board.row(what, "us", ours, peer=peer, against=against, goal=_FLAT, notes=[note])
    what = f"survey of {_LIVE[-1]} buffers, by buffer"
    ours, peer, against = many[-1].series("look"), many[-2].series("look"), f"of {_LIVE[-2]}"
    lab.board.row(what, "us", ours, peer=peer, against=against)
    lab.measure("Many buffers", (proved, few, *many), _MASS_ROUNDS)


def _rate(count: int, act: Callable[[], None]) -> dict[str, float]:
    started = time.perf_counter()
    act()
    return {"rate": count / (time.perf_counter() - started)}


def _singly(iokit: IOKit) -> None:
    for _ in range(_BATCH):
        buffer = iokit.withOptions(_WC, _BYTES)
        if not buffer:
            raise GuestFailure("the guest has no room for a buffer", observed=str(buffer))
        buffer.getPhysicalSegment(0)
        buffer.release()


def _batched(iokit: IOKit) -> None:
    buffers = _made(iokit, _BATCH, _BYTES)
    buffers.getPhysicalSegment(0)
    buffers.release()


def _made(iokit: IOKit, count: int, size: int) -> Buffers:
    buffers = iokit.batch(count).withOptions(_WC, size)
    if not buffers.made.all():
        row = int((~buffers.made).argmax())
        raise GuestFailure(f"the guest has no room for {count} buffers", observed=buffers.reason(row))
    return buffers


def _proved(lab: Lab, stack: ExitStack) -> Measure:
    guest = stack.enter_context(Guest(lab.image, lab.machine, lab.snapshots))
    iokit, oracle = stack.enter_context(IOKit(guest)), Oracle(guest.machine)

    def measure() -> dict[str, float]:
        moments = [time.perf_counter()]
        buffers = _made(iokit, _THOUSAND, _BYTES)
        moments.append(time.perf_counter())
        rows = oracle.survey(buffers).rows
        right = (rows["effective"] == mask_of([MemoryType.WC])) & (rows["pieces"] == 1) & rows["mapped"]
        moments.append(time.perf_counter())
        buffers.release()
        moments.append(time.perf_counter())
        if not right.all():
            raise GuestFailure("a buffer is not what it should be", observed=str(rows[~right][0]))
        steps = zip(("create", "survey", "release"), moments, moments[1:], strict=False)
        figures = {name: (end - start) * 1000 for name, start, end in steps}
        return figures | {"rate": _THOUSAND / (moments[-1] - moments[0])}

    return measure


def _beside(lab: Lab, live: int, stack: ExitStack) -> Measure:
    """What a buffer costs while ``live`` others exist."""
    guest = stack.enter_context(Guest(lab.image, lab.machine, lab.snapshots))
    iokit, oracle = stack.enter_context(IOKit(guest)), Oracle(guest.machine)
    others = _made(iokit, live, _SMALL_BYTES)

    def once() -> float:
        started = time.perf_counter()
        more = _made(iokit, _MORE, _SMALL_BYTES)
        more.getPhysicalSegment(0)
        more.release()
        return (time.perf_counter() - started) / _MORE

    def measure() -> dict[str, float]:
        each = median(once() for _ in range(_TIMES))
        started = time.perf_counter()
        oracle.survey(others)
        look = (time.perf_counter() - started) / live
        return {"each": each * 1e6, "look": look * 1e6}

    return measure
