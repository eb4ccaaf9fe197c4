# SPDX-License-Identifier: MIT
"""One QEMU of a machine, from its start to its end; a machine that is started again has another."""

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.vm.capture import Captures, load_state
from harness.vm.errors import MachineFailure
from harness.vm.launch import Launched, launched
from harness.vm.plugs import Plugs
from harness.vm.qemu import Qemu
from harness.vm.qmp import Qmp
from harness.vm.qtest import QTest
from harness.vm.ram import MIB, GuestRam, ram_ranges
from harness.vm.snapshot import Snapshot
from harness.vm.spec import MachineSpec

#: Seconds until QEMU greets; it loads the kernel first.
START_SECONDS: Final = 30.0
#: A QEMU that does not stop its vCPUs within this is not put back, but replaced.
REWIND_SECONDS: Final = 2.0
_QUIT_SECONDS: Final = 1.0
#: QEMU sends the event before it ends; only our own thread may not have read it yet.
_EVENT_SECONDS: Final = 0.5
_RECEIVE_BYTES: Final = 1 << 18
#: ShutdownCause in QEMU's qapi/run-state.json.
_SHUTDOWN_WORDS: Final = {
    "guest-reset": "the guest reset itself: a reboot, or a triple fault when nothing was printed",
    "guest-shutdown": "the guest powered itself off",
    "guest-panic": "the guest reported a panic",
    "host-qmp-quit": "somebody sent 'quit' to its protocol",
    "host-signal": "QEMU got a SIGTERM, SIGINT or SIGHUP",
}


@dataclass(frozen=True)
class Life:
    """A QEMU that greeted; see `living`.

    Attributes:
        launched: its process, console and ports.
        ram: the guest's memory.
        qmp: its protocol.
        qtest: its test port.
        snapshot: what it was started from; only then can it be put back.
        captures: what is known of its CPUs.
        plugs: what was plugged into it.
    """

    launched: Launched
    ram: GuestRam
    qmp: Qmp
    qtest: QTest
    snapshot: Snapshot | None
    captures: Captures
    plugs: Plugs

    @property
    def gone(self) -> bool:
        """Whether it has ended, or its guest has panicked."""
        return self.launched.process.status() is not None or self.launched.console.panic is not None

    def rewind(self, snapshot: Snapshot) -> None:
        """Put it back to the snapshot it was started from; it runs on from there.

        What had been on its way from the guest through a port is dropped.

        Raises:
            SnapshotUnusable: the snapshot is damaged.
            MachineFailure: QEMU does not answer, or is gone.
        """
        self.qmp.execute("stop", timeout=REWIND_SECONDS * self.qmp.scale)
        snapshot.rewind(self.ram)
        self.launched.attached.rewind()
        load_state(self.qmp)
        self.captures.forget()
        # A port that could not send while nobody read sends when somebody does: so this comes last.
        for port in (*self.launched.ports.values(), *self.launched.attached.wires):
            with contextlib.suppress(OSError):
                while port.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT):
                    pass
        self.qmp.execute("cont")

    def explain(self) -> str:
        """What QEMU itself said of its end; ``""`` when it said nothing."""
        if self.launched.process.status() != 0:
            return ""  # a crash or a kill is never announced
        try:
            event = self.qmp.wait_event("SHUTDOWN", timeout=_EVENT_SECONDS)
        except MachineFailure:
            return ""
        reason = str(event.data.get("reason", "unknown"))
        return _SHUTDOWN_WORDS.get(reason, f"QEMU reported the reason {reason!r}")

    def end(self) -> None:
        """Ask QEMU to leave; then make it."""
        self.launched.process.end(ask=lambda: self.qmp.execute("quit", timeout=_QUIT_SECONDS))

    def kill(self) -> None:
        """End it without asking: nothing in it is worth waiting for, and it may hang."""
        self.launched.process.end(grace=0)


@contextmanager
def living(
    qemu: Qemu,
    spec: MachineSpec,
    accelerator: str,
    folder: Path,
    snapshot: Snapshot | None,
    *,
    scale: float = 1.0,
) -> Iterator[Life]:
    """Start QEMU and let the guest run; end it in whatever way the block is left.

    Args:
        qemu: which program.
        spec: which machine; its files were checked.
        accelerator: ``"kvm"`` or ``"tcg"``.
        folder: an existing one for the logs.
        snapshot: start from this; None: from the kernel's first instruction.
        scale: what QEMU's and the console's deadlines are multiplied by.

    Raises:
        HostLacks: memory or a program is missing.
        QemuRefused: QEMU did not take the command line.
        SnapshotUnusable: the snapshot is damaged.
        QmpRefused: its state does not fit this machine.
    """
    state = None if snapshot is None else snapshot.state
    with ExitStack() as stack:
        it = stack.enter_context(launched(qemu, spec, accelerator, folder, state=state))
        size = spec.memory_mib * MIB
        ram = GuestRam(it.ram, size, ram_ranges(spec.machine, size))
        stack.callback(ram.close)
        if snapshot is not None:
            snapshot.fill(ram)  # while QEMU starts on another core
        it.console.scale = scale
        qmp = Qmp(it.qmp, check=it.check_ended, scene=it.scene, deadline=START_SECONDS * scale, scale=scale)
        stack.callback(qmp.close)
        qtest = QTest(qmp)
        stack.callback(qtest.close)
        life = Life(it, ram, qmp, qtest, snapshot, Captures(qmp), Plugs(qmp, spec))
        it.answered = True
        it.explain = life.explain
        stack.callback(life.end)
        if snapshot is not None:
            load_state(qmp)
            qmp.execute("cont")
        yield life
