# SPDX-License-Identifier: MIT
"""A machine's start, step by step, with a look at the clock after each step."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.bench import kernel_log
from harness.bench.lab import Lab
from harness.link import Guest
from harness.vm import GuestRam, MachineSpec, Qmp, choose_accelerator, find_qemu, ram_ranges
from harness.vm.capture import load_state
from harness.vm.launch import Launched, launched
from harness.vm.ram import MIB
from harness.vm.snapshot import Snapshot

SECONDS = 120.0
"""How long any step may take."""


class Stopwatch:
    """Moments on one clock.

    Attributes:
        ends: seconds from the beginning at which each stretch ended, in order.
    """

    def __init__(self) -> None:
        self._zero = time.monotonic()
        self.ends: dict[str, float] = {}

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._zero

    def mark(self, stretch: str) -> None:
        """A stretch ends now."""
        self.ends[stretch] = self.now()

    def stretches(self) -> dict[str, float]:
        """Milliseconds of each stretch."""
        return kernel_log.stretches(self.ends.items())


@dataclass(frozen=True)
class Watched:
    """A machine that greeted.

    Attributes:
        launched: the process and what belongs to it.
        qmp: its protocol.
        ram: the guest's memory.
        watch: what has been marked so far.
    """

    launched: Launched
    qmp: Qmp
    ram: GuestRam
    watch: Stopwatch


@contextmanager
def watched(spec: MachineSpec, snapshot: Snapshot | None = None) -> Iterator[Watched]:
    """Start a machine as `harness.vm.life.living` does.

    Args:
        spec: which machine.
        snapshot: start from this; None: boot.
    """
    qemu, accelerator = find_qemu(), choose_accelerator(spec).name
    size = spec.memory_mib * MIB
    state = None if snapshot is None else snapshot.state
    with TemporaryDirectory(prefix="iobmd-bench-") as folder, ExitStack() as stack:
        watch = Stopwatch()
        it = stack.enter_context(launched(qemu, spec, accelerator, Path(folder), state=state))
        ram = GuestRam(it.ram, size, ram_ranges(spec.machine, size))
        stack.callback(ram.close)
        watch.mark("RAM file, sockets, fork")
        if snapshot is not None:
            snapshot.fill(ram)
            watch.mark("RAM copied back, its checksum proved")
        qmp = Qmp(it.qmp, check=it.check_ended, scene=it.scene, deadline=SECONDS)
        stack.callback(qmp.close)
        it.answered = True
        watch.mark(
            "exec, QEMU's own start to its greeting" if snapshot is None else "waiting for the greeting"
        )
        if snapshot is not None:
            load_state(qmp)
            watch.mark("device state loaded")
            qmp.execute("cont")
            watch.mark("cont")
        yield Watched(it, qmp, ram, watch)


def spec_of(lab: Lab) -> MachineSpec:
    """The machine a guest of the lab gets; a snapshot of it exists afterwards."""
    with Guest(lab.image, lab.machine, lab.snapshots) as guest:
        lab.board.facts["qemu"] = guest.machine.qemu_version
        return guest.machine.spec
