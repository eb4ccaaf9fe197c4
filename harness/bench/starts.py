# SPDX-License-Identifier: MIT
"""From nothing to a guest that answers: cold boot, snapshot, and virtme-ng beside them."""

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from harness.bench import vng
from harness.bench.lab import Lab
from harness.bench.rounds import Measure, Side
from harness.errors import GuestFailure
from harness.images import GuestImage
from harness.images.run import run
from harness.link import Guest, GuestOptions

_ROUNDS = 5
_SECONDS = 120.0
_COLD = "cold boot: QEMU spawned to first RPC reply"
_VMLINUZ, _SAME = "vng, the distribution's vmlinuz", "vng, the same uncompressed image"
# What a user of this project types instead of `vng -- uname -r`, as a program of its own.
_WHOLE = """
from harness.images import SilentProgress
from harness.link import Guest
from harness.options import MachineOptions, prepare
from harness.vm import Accel
options = MachineOptions(kernel={kernel!r}, memory_mib={memory}, cpus={cpus}, accel=Accel({accel!r}))
with Guest(prepare(options, SilentProgress()), options.guest(with_shell=False)) as guest:
    print(guest.hello.release)
"""


def bench_starts(lab: Lab) -> None:
    """Measure cold boot and start from a snapshot against virtme-ng, every one once per round."""
    kernel, board = lab.image.kernel, lab.board
    notes: list[str] = []
    cold = Side("own cold boot", lambda _: lambda: {"reply": boot_seconds(lab.image, lab.machine)})
    whole = Side("own whole command", lambda _: lambda: _cost(lambda: _whole_command(lab)))
    delivered = Side("vng with vmlinuz", _peer(lab, kernel.vmlinuz.name, notes))
    same = Side("vng with our image", _peer(lab, kernel.boot_image.name, notes))
    for peer, against, goal in ((delivered, _VMLINUZ, 0.30), (same, _SAME, 0.50)):
        board.row(
            _COLD,
            "s",
            cold.series("reply"),
            peer=peer.series("wall"),
            against=against,
            goal=goal,
            notes=notes,
        )
    for what, figure in (("whole command that says the release", "wall"), ("its CPU time", "cpu")):
        ours, theirs = whole.series(figure), delivered.series(figure)
        board.row(what, "s", ours, peer=theirs, against=_VMLINUZ, notes=notes)
    lab.measure("Starts", (cold, delivered, whole, same), _ROUNDS)


def boot_seconds(image: GuestImage, options: GuestOptions) -> float:
    """Boot once; seconds from spawning QEMU to the agent's first reply."""
    with Guest(image, options) as guest:
        return guest.boot_seconds


def _peer(lab: Lab, image: str, notes: list[str]) -> Callable[[ExitStack], Measure]:
    def prepare(_: ExitStack) -> Measure:
        peer = vng.prepare(lab.image.kernel, lab.progress, lab.options.memory_mib, lab.options.cpus)
        if peer.about not in notes:
            notes.append(peer.about)
        return lambda: _cost(lambda: peer.run(image))

    return prepare


def _cost(command: Callable[[], object]) -> Mapping[str, float]:
    """Seconds by the clock, and seconds of CPU of all children."""
    before, started = _children_cpu(), time.perf_counter()
    command()
    return {"wall": time.perf_counter() - started, "cpu": _children_cpu() - before}


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _whole_command(lab: Lab) -> None:
    options = lab.options
    program = _WHOLE.format(
        kernel=options.kernel, memory=options.memory_mib, cpus=options.cpus, accel=options.accel.value
    )
    done = run(
        [sys.executable, "-c", program],
        doing="booting by a program of its own",
        timeout=_SECONDS,
        env=dict(os.environ),
    )
    if done.stdout.split() != [lab.image.kernel.release]:
        raise GuestFailure("the program did not say the release", observed=done.stdout[-200:])
