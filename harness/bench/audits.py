# SPDX-License-Identifier: MIT
"""What the ledger costs a driver at work: the same traffic with and without it, by turns in one guest."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np

from harness.audit import Ledger, build_ledger, resolve
from harness.audit.disk_traffic import PARAMETERS
from harness.audit.named import disk_name, network_name
from harness.audit.network_traffic import Card
from harness.auditing import Equipment
from harness.bench.lab import Lab
from harness.bench.rounds import Measure, Side
from harness.errors import HarnessError
from harness.images import ModuleBuild
from harness.link import Guest, Nr
from harness.vm import process_stat

_ROUNDS = 11
_GOAL = 1.3
_MIB = 1 << 20
_SMALL_BYTES, _SMALL = 4096, 512
_LARGE = 16
_STREAM_BYTES = 4 * _MIB
_NOTES = {
    "nvme": f"{_SMALL} random pages and {_LARGE} MiB in a row, each written and read around the page cache",
    "e1000e": f"TCP, {_STREAM_BYTES // _MIB} MiB from the guest and as many to it",
}

Traffic = Callable[[], None]
Prepare = Callable[[Guest, ExitStack], Traffic]


def bench_audit(lab: Lab) -> None:
    """Measure traffic of two drivers of the kernel's, unwatched, and with the ledger on and being read."""
    equipment = Equipment(tuple(_NOTES))
    ledger = build_ledger(lab.image.kernel, lab.progress)
    with ExitStack() as stack:
        guest = stack.enter_context(Guest(lab.image, equipment.added_to(lab.machine)))
        for name, prepare in (("nvme", _disk), ("e1000e", _network)):
            with_it = Side(f"{name}, watched", partial(_watched, guest, ledger, prepare))
            without = Side(f"{name}, unwatched", partial(_unwatched, guest, prepare))
            for figure, what in (("wall", "traffic with the ledger on"), ("cpu", "the same, QEMU's CPU")):
                ours, peer = with_it.series(figure), without.series(figure)
                row = lab.board.row(f"{name} {what}", "ms", ours, peer=peer, against="off", goal=_GOAL)
            row.notes.append(_NOTES[name])
            calls = with_it.series("calls")
            lab.board.row("  of it calls of the DMA API, all recorded", "", calls)
            _load(lab, guest, name)
            lab.measure(f"Traffic of {name}", (with_it, without), _ROUNDS)


def _load(lab: Lab, guest: Guest, name: str) -> None:
    """Load a driver for good: loading it is not what is measured."""
    for module in resolve(name, lab.image.kernel, lab.progress).modules:
        guest.load_module(module.read(), PARAMETERS.get(module.name, ""))


def _unwatched(guest: Guest, prepare: Prepare, stack: ExitStack) -> Measure:
    traffic = prepare(guest, stack)
    return lambda: _spent(guest, traffic)


def _watched(guest: Guest, build: ModuleBuild, prepare: Prepare, stack: ExitStack) -> Measure:
    traffic = prepare(guest, stack)

    def measure() -> dict[str, float]:
        with Ledger(guest, build) as ledger:
            with ledger.keep_up():
                spent = _spent(guest, traffic)
            calls = len(ledger.drain())
            if ledger.lost or ledger.missed:
                raise HarnessError(f"{ledger.lost} records lost, {ledger.missed} calls missed")
        return spent | {"calls": calls}

    return measure


def _spent(guest: Guest, traffic: Traffic) -> dict[str, float]:
    """Milliseconds by the clock, and of QEMU's CPU: what others on the host do changes only the first.

    Once unmeasured: where a ledger has come or gone, an emulator has to translate code anew.
    """
    traffic()
    before, started = process_stat(guest.machine.pid)[1], time.perf_counter()
    traffic()
    wall = time.perf_counter() - started
    return {"wall": wall * 1000, "cpu": (process_stat(guest.machine.pid)[1] - before) * 1000}


def _disk(guest: Guest, stack: ExitStack) -> Traffic:
    path = f"/dev/{disk_name(guest)}"
    fd = guest.open(path, os.O_RDWR | os.O_DIRECT)
    stack.callback(guest.close, fd)
    memory = stack.enter_context(guest.memory(_MIB))
    places = np.random.default_rng(0).permutation(_SMALL) * _SMALL_BYTES

    def traffic() -> None:
        for size, starts in ((_SMALL_BYTES, places), (_MIB, np.arange(_LARGE) * _MIB)):
            batch = guest.batch(len(starts))
            for number in (Nr.PWRITE64, Nr.PREAD64):
                batch.call(number, fd, memory.address, size, starts, what=f"direct, {path}")
            batch.run()
            batch.check(0)
            batch.check(1)

    return traffic


def _network(guest: Guest, stack: ExitStack) -> Traffic:
    card = Card(guest, network_name(guest), guest.machine.attached.wires[0])
    memory = stack.enter_context(guest.memory(_STREAM_BYTES))
    stack.enter_context(card.up())
    card.lease(b"wait")  # which waits for the link
    card.address()
    data = bytes(_STREAM_BYTES)

    def traffic() -> None:
        with card.connected() as fd:
            card.pour(fd, memory)
            card.fill(fd, memory, data)

    return traffic
