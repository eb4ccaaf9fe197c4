# SPDX-License-Identifier: MIT
"""Where each millisecond of a start from a snapshot goes."""

import os
import time

from harness.bench.lab import Lab
from harness.bench.watched import SECONDS, Stopwatch, Watched, spec_of, watched
from harness.errors import GuestFailure
from harness.images import GuestImage
from harness.link import Link
from harness.vm import RESTORED_LINE, MachineSpec, choose_accelerator, find_qemu
from harness.vm.capture import load_state
from harness.vm.snapshot import Snapshot

_ROUNDS = 10


def bench_restore(lab: Lab) -> None:
    """Take both ways apart: a new QEMU from the snapshot, and the same QEMU put back."""
    spec = spec_of(lab)
    slot = lab.snapshots.slot(spec, choose_accelerator(spec).name, find_qemu())
    snapshot = slot.find()
    release = lab.image.kernel.release
    fresh = lab.board.breakdown(f"new QEMU from the snapshot of {release}, to the proof")
    again = lab.board.breakdown(f"the same QEMU put back to the snapshot of {release}, to the proof")
    if snapshot is None:
        fresh.problem = again.problem = "this machine cannot be kept as a snapshot"
        return
    fresh.notes.append(
        f"{snapshot.ram_bytes / 1e6:.0f} MB of RAM in {len(snapshot.extents)} extents, "
        f"{len(snapshot.state) / 1e3:.0f} kB of state; QEMU starts while RAM is copied"
    )
    rounds = lab.rounds(_ROUNDS)
    with lab.progress.task("Restores", rounds) as task:
        for _ in range(rounds):
            with watched(spec, snapshot) as machine:
                _prove(machine, machine.watch, lab.image, snapshot, spec)
                fresh.add(machine.watch.stretches())
                again.add(_rewound(machine, lab.image, snapshot, spec))
            task.advance(1)


def _rewound(machine: Watched, image: GuestImage, snapshot: Snapshot, spec: MachineSpec) -> dict[str, float]:
    """What `harness.vm.life.Life.rewind` does."""
    watch = Stopwatch()
    machine.qmp.execute("stop")
    watch.mark("stop")
    snapshot.rewind(machine.ram)
    watch.mark("RAM put back, the rest forgotten")
    load_state(machine.qmp)
    watch.mark("device state loaded")
    machine.qmp.execute("cont")
    watch.mark("cont")
    _prove(machine, watch, image, snapshot, spec)
    return watch.stretches()


def _prove(
    machine: Watched, watch: Stopwatch, image: GuestImage, snapshot: Snapshot, spec: MachineSpec
) -> None:
    """What `harness.link.start.prove` waits for."""
    it, nonce = machine.launched, os.urandom(16)
    seen = it.console.mark()
    ticket = int(snapshot.memo["ticket"])
    link = Link(it.ports[spec.ports[0]], image.link_layouts, it.check, ticket=ticket)
    link.hello(SECONDS)
    watch.mark("first reply")
    resumed = link.resume(nonce, time.time_ns(), SECONDS)
    if resumed.boot_nonce.hex() != snapshot.memo["boot_nonce"] or resumed.restore_nonce != nonce:
        raise GuestFailure("the restored guest is another one")
    watch.mark("nonces and clocks exchanged")
    it.console.wait_for(f"^{RESTORED_LINE} {nonce.hex()}", SECONDS, since=seen)
    watch.mark("its line on the console")
