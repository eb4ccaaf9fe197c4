# SPDX-License-Identifier: MIT
"""From nothing to a guest that answers: cold boot, snapshot, and virtme-ng beside them."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from harness.bench import vng
from harness.bench.lab import Lab
from harness.bench.rounds import Measure, Side, cost
from harness.errors import GuestFailure
from harness.images.run import run
from harness.iokit import IOKit
from harness.iokit.constants import kIODirectionInOut
from harness.link import Guest, Start, StartKind

_ROUNDS = 5
_SECONDS = 120.0
_CLEAN_ROUNDS = 7
_RESTORES = 5
_DIRTY, _DIRTY_BYTES = 16, 64 << 10
_COLD = "cold boot: QEMU spawned to first reply"
_COMMAND = "whole command that says the release, from snapshot"
_VMLINUZ, _SAME = "vng, the distribution's vmlinuz", "vng, the same uncompressed image"
# What a user of this project types instead of `vng -- uname -r`, as a program of its own.
_WHOLE = """
from harness.images import SilentProgress
from harness.options import MachineOptions, make_guest, prepare
from harness.vm import Accel
options = MachineOptions(kernel={kernel!r}, memory_mib={memory}, cpus={cpus}, accel=Accel({accel!r}))
with make_guest(options, prepare(options, SilentProgress())) as guest:
    print(guest.hello.release)
"""


def bench_starts(lab: Lab) -> None:
    """Measure cold boot and start from a snapshot against virtme-ng, every one once per round."""
    kernel, board = lab.image.kernel, lab.board
    notes: list[str] = []
    cold, restored = cold_side(lab), restored_side(lab)
    whole = Side("own whole command", lambda _: lambda: cost(lambda: _whole_command(lab)))
    delivered = Side("vng with vmlinuz", _peer(lab, kernel.vmlinuz.name, notes))
    same = Side("vng with our image", _peer(lab, kernel.boot_image.name, notes))
    ours = restored.series("reply")
    what = "from snapshot: QEMU spawned to first reply, proved"
    board.row(what, "s", ours, peer=cold.series("reply"), against="own cold boot", goal=1 / 12)
    for peer, against, goal in ((delivered, _VMLINUZ, 1 / 50), (same, _SAME, 1 / 30)):
        board.row(what, "s", ours, peer=peer.series("wall"), against=against, goal=goal, notes=notes)
    for peer, against, goal in ((delivered, _VMLINUZ, 0.30), (same, _SAME, 0.50)):
        series = peer.series("wall")
        board.row(_COLD, "s", cold.series("reply"), peer=series, against=against, goal=goal, notes=notes)
    for what, figure in ((_COMMAND, "wall"), ("its CPU time", "cpu")):
        series = delivered.series(figure)
        board.row(what, "s", whole.series(figure), peer=series, against=_VMLINUZ, notes=notes)
    lab.measure("Starts", (cold, restored, delivered, whole, same), _ROUNDS)


def bench_clean(lab: Lab) -> None:
    """Measure how long the next test waits for a clean guest: put back in place, or in a new process."""
    kinds: Counter[StartKind] = Counter()
    cold, restored, rewound = cold_side(lab), restored_side(lab), _rewound_side(lab, kinds)
    notes = [f"between two restores a test makes and writes {_DIRTY} buffers of {_DIRTY_BYTES >> 10} KiB"]
    what = "clean state in place for the next test"
    ours, peer = rewound.series("reply"), cold.series("reply")
    lab.board.row(what, "s", ours, peer=peer, against="own cold boot", goal=1 / 20, notes=notes)
    what = "clean state in a new process"
    lab.board.row(what, "s", restored.series("reply"), peer=peer, against="own cold boot")
    lab.measure("Clean states", (cold, restored, rewound), _CLEAN_ROUNDS)
    notes.append("of these: " + ", ".join(f"{count} {kind.value}" for kind, count in kinds.items()))


def cold_side(lab: Lab) -> Side:
    """A boot per round: seconds from spawning QEMU to the agent's first reply."""

    def measure() -> dict[str, float]:
        with Guest(lab.image, lab.machine) as guest:
            return {"reply": guest.boot_seconds}

    return Side("own cold boot", lambda _: measure)


def restored_side(lab: Lab) -> Side:
    """Starts of a new QEMU from the snapshot, some per round; the median seconds until the guest was proved.

    The snapshot is made first, where there is none.
    """

    def start() -> float:
        with Guest(lab.image, lab.machine, lab.snapshots) as guest:
            return _seconds(guest.start, StartKind.RESTORED)

    def prepare(_: ExitStack) -> Measure:
        with Guest(lab.image, lab.machine, lab.snapshots):
            pass
        return lambda: {"reply": median(start() for _ in range(_RESTORES))}

    return Side("from snapshot", prepare, _RESTORES)


def _rewound_side(lab: Lab, kinds: "Counter[StartKind]") -> Side:
    """What `Guest.restore` takes, which now and then chooses a new process; ``kinds`` counts that."""

    def prepare(stack: ExitStack) -> Measure:
        with Guest(lab.image, lab.machine, lab.snapshots):
            pass
        guest = stack.enter_context(Guest(lab.image, lab.machine, lab.snapshots))
        _seconds(guest.start, StartKind.RESTORED)

        def once() -> float:
            _make_dirty(guest)
            start = guest.restore()
            kinds[start.how] += 1
            return start.seconds

        return lambda: {"reply": median(once() for _ in range(_RESTORES))}

    return Side("put back in place", prepare, _RESTORES)


def _make_dirty(guest: Guest) -> None:
    iokit, data = IOKit(guest), bytes(range(256)) * (_DIRTY_BYTES >> 8)
    for _ in range(_DIRTY):
        if not (buffer := iokit.withBytes(data, kIODirectionInOut)):
            raise GuestFailure("the guest has no room for a buffer", observed=str(buffer))


def _seconds(start: Start, how: StartKind) -> float:
    if start.how is not how:
        raise GuestFailure(f"the guest was not {how.value}", observed=str(start))
    return start.seconds


def _peer(lab: Lab, image: str, notes: list[str]) -> Callable[[ExitStack], Measure]:
    def prepare(_: ExitStack) -> Measure:
        peer = vng.prepare(lab.image.kernel, lab.progress, lab.machine.memory_mib, lab.machine.cpus)
        if peer.about not in notes:
            notes.append(peer.about)
        return lambda: cost(lambda: peer.run(image))

    return prepare


def _whole_command(lab: Lab) -> None:
    options = lab.options
    program = _WHOLE.format(
        kernel=options.kernel, memory=lab.machine.memory_mib, cpus=lab.machine.cpus, accel=options.accel.value
    )
    done = run(
        [sys.executable, "-c", program],
        doing="booting by a program of its own",
        timeout=_SECONDS,
        env=dict(os.environ),
    )
    if done.stdout.split() != [lab.image.kernel.release]:
        raise GuestFailure("the program did not say the release", observed=done.stdout[-200:])
