# SPDX-License-Identifier: MIT
"""Random tests with random faults for ``--soak`` seconds: every failure has its cause, and memory stays flat.

One process and one guest with many lives, looked after by what looks after the guests of a pytest session.
Every other round is a test without a fault, which must not suffer from the ones before.
"""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from channel_faults import SOUND_GARBAGE, send
from fault_table import DEADLINE, NOTHING, word
from left_over import Census, left_over
from stage import DEVICE, Shop

from harness.errors import FailureKind, GuestFailure, HarnessError
from harness.iokit import IOKit, kIODirectionInOut, kIOMapWriteCombineCache
from harness.link import Guest, In, Nr
from harness.options import make_guest
from harness.oracle import Oracle
from harness.pytest_plugin.seat import Ground, Role, Seat

K = FailureKind
_GROWTH_MIB = 6.0
"""What the memory may seem to grow by in a run; what leaks shows in an hour, what is only reused does not."""
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)

BY_WORD = {
    "panic": K.KERNEL_PANICKED,
    "oops": K.KERNEL_PANICKED,
    "bug": K.KERNEL_PANICKED,
    "double-free": K.KERNEL_PANICKED,
    "stack-overflow": K.KERNEL_PANICKED,
    "stack-smash": K.KERNEL_PANICKED,
    "kill-agent": K.KERNEL_PANICKED,
    "triple-fault": K.QEMU_DIED,
    "spin": K.KERNEL_HUNG,
    "spin-deaf": K.KERNEL_HUNG,
    "lock-twice-deaf": K.KERNEL_HUNG,
    "spin-politely": K.OPERATION_TIMED_OUT,
    "mutex-twice": K.OPERATION_TIMED_OUT,
    "hang": K.OPERATION_TIMED_OUT,
    "warn": K.KERNEL_TAINTED,
    "sleep-atomic": K.KERNEL_TAINTED,
    "leave-combined": None,
    "nothing": None,
}
BY_SIGNAL = {
    signal.SIGKILL: K.QEMU_DIED,
    signal.SIGSEGV: K.QEMU_DIED,
    signal.SIGSTOP: K.QEMU_STUCK,
}


@dataclass
class Soak:
    """What came of it so far.

    Attributes:
        rounds: how many.
        kinds: how often each kind was named.
        wrong: what was named wrongly, one line each.
        memory: anonymous memory of this process after each round, in MiB.
        warm: after so many rounds everything is there that is loaded once and kept.
    """

    rounds: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    warm: int = 0

    def note(self, what: str, expected: FailureKind | None, named: FailureKind | None, said: str) -> None:
        """Count a round."""
        self.rounds += 1
        self.kinds[word(named)] += 1
        if named is not expected:
            self.wrong.append(
                f"round {self.rounds}, {what}: called {word(named)!r}, not {word(expected)!r}: {said}"
            )
        found = _ANONYMOUS.search(Path("/proc/self/status").read_text())
        self.memory.append(int(found[1]) / 1024 if found else 0.0)

    @property
    def settled(self) -> list[float]:
        """The memory of all but the first fifth of the rounds that were warm."""
        warm = self.memory[self.warm :]
        return warm[len(warm) // 5 :]

    @property
    def growth(self) -> float:
        """MiB by which the memory has grown, by a line."""
        settled = np.array(self.settled)
        if len(settled) < 3:
            return 0.0
        return float(np.polyfit(np.arange(len(settled)), settled, 1)[0] * len(settled))


def test_every_failure_has_its_cause_and_memory_stays_flat(
    shop: Shop, world: Path, pytestconfig: pytest.Config, record_property
):
    before = Census.take(world)
    soak, choice = Soak(), random.Random(8)
    with make_guest(shop.options, shop.image) as guest:
        seat = Seat(Role.FRESH, guest, Ground(None, shop.options.machine), snapshots=True)
        for what, expected, act in _once_of_each_sort(shop):
            seat.ready(what, clean=True)
            soak.note(what, expected, *_carried_out(seat, act))
        soak.warm = len(soak.memory)
        end = time.monotonic() + pytestconfig.getoption("--soak")
        while time.monotonic() < end:
            for faulty in (True, False):
                what, expected, act = _draw(choice, shop, faulty)
                seat.ready(what, clean=choice.random() < 0.5)
                soak.note(what, expected, *_carried_out(seat, act))
    counts = ", ".join(f"{count} {kind}" for kind, count in soak.kinds.most_common() if kind != NOTHING)
    record_property(
        "note",
        f"soaked for {pytestconfig.getoption('--soak'):.0f} s: {soak.rounds} tests, "
        f"{soak.kinds[NOTHING]} without a failure, {counts}; {len(soak.wrong)} called wrongly; memory went "
        f"from {soak.settled[0]:.1f} to {soak.memory[-1]:.1f} MiB (trend "
        f"{soak.growth:+.2f} MiB)",
    )
    assert soak.wrong == []
    assert soak.growth < _GROWTH_MIB, soak.memory
    assert left_over(before, world) == ()


def _carried_out(seat: Seat, act: Callable[[Guest], None]) -> tuple[FailureKind | None, str]:
    """Do as the plugin does with a test; return what it would call the outcome."""
    failed: HarnessError | None = None
    try:
        act(seat.guest)
    except HarnessError as error:
        failed = error
        seat.call_sick(error.summary)
    trouble = seat.ended(ask=not isinstance(failed, GuestFailure))
    if trouble:
        seat.call_sick(trouble.title)
    if failed is not None:
        return failed.kind, f"{failed.summary}; {failed.observed}"
    return (K.KERNEL_TAINTED, trouble.title) if trouble else (None, "")


def _draw(
    choice: random.Random, shop: Shop, faulty: bool
) -> tuple[str, FailureKind | None, Callable[[Guest], None]]:
    if not faulty:
        name = choice.choice(sorted(_TESTS))
        return name, None, _TESTS[name]
    kind = choice.choice(("word", "word", "word", "signal", "noise"))
    if kind == "word":
        told = choice.choice(sorted(BY_WORD))
        return f"fault {told}", BY_WORD[told], lambda guest: _break(guest, shop, told)
    if kind == "signal":
        number = choice.choice(sorted(BY_SIGNAL))
        return f"QEMU gets {number.name}", BY_SIGNAL[number], lambda guest: _signal(guest, number)
    name = choice.choice(sorted(SOUND_GARBAGE))
    return f"garbage: {name}", K.CHANNEL_BROKEN, lambda guest: _garbage(guest, name)


def _once_of_each_sort(shop: Shop) -> Iterator[tuple[str, FailureKind | None, Callable[[Guest], None]]]:
    """What makes the harness load what it loads once: names, line tables, the oracle's arrays."""
    for name, test in _TESTS.items():
        yield name, None, test
    for told in ("warn", "oops", "spin", "hang"):
        yield f"fault {told}", BY_WORD[told], partial(_break, shop=shop, told=told)
    yield "QEMU gets SIGKILL", K.QEMU_DIED, partial(_signal, number=signal.SIGKILL)


def _break(guest: Guest, shop: Shop, told: str) -> None:
    if b"iobmd_faults" not in guest.read_file("/proc/modules"):
        guest.load_module(shop.injector)
    fd = guest.open(DEVICE, os.O_RDWR)
    guest.link.syscall(Nr.WRITE, fd, In(told.encode()), len(told), timeout=DEADLINE)
    guest.link.ping(timeout=DEADLINE)


def _signal(guest: Guest, number: signal.Signals) -> None:
    os.kill(guest.machine.pid, number)
    guest.link.ping(timeout=DEADLINE)


def _garbage(guest: Guest, name: str) -> None:
    send(guest, SOUND_GARBAGE[name](guest.link.protocol))
    for _ in range(3):  # it is told as soon as anything comes behind it
        guest.link.ping(timeout=DEADLINE)


def _buffers(guest: Guest) -> None:
    oracle = Oracle(guest.machine)
    with IOKit(guest) as iokit:
        for options in (kIODirectionInOut, kIODirectionInOut | kIOMapWriteCombineCache):
            buf = iokit.withOptions(options, 65536)
            assert len(oracle.types_of(buf)) == 1


def _files(guest: Guest) -> None:
    data = os.urandom(200_000)
    guest.write_file("/tmp/soak", data)
    assert guest.read_file("/tmp/soak") == data


def _pings(guest: Guest) -> None:
    for size in (0, 100, 300_000):
        payload = os.urandom(size)
        assert guest.link.ping(payload) == payload


def _peer(guest: Guest) -> None:
    assert guest.peer.link.ping(b"both") == b"both"
    guest.peer.kill()


def _batches(guest: Guest) -> None:
    batch = guest.batch(300)
    batch.call(Nr.GETPID)
    batch.run()
    assert (batch.values == 1).all()


_TESTS: dict[str, Callable[[Guest], None]] = {
    "buffers": _buffers,
    "files": _files,
    "pings": _pings,
    "peer": _peer,
    "batches": _batches,
}
