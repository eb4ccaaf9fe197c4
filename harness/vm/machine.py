# SPDX-License-Identifier: MIT
"""A virtual machine and everything it owns."""

import contextlib
import shlex
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from harness.errors import BadInput
from harness.vm.accel import AcceleratorVerdict, choose_accelerator
from harness.vm.capture import capture_device_state, load_state, save_state
from harness.vm.console import Console
from harness.vm.errors import MachineFailure
from harness.vm.launch import CONSOLE_LOG, Launched, launched
from harness.vm.qemu import Qemu, find_qemu
from harness.vm.qmp import Qmp
from harness.vm.ram import MIB, GuestRam, ram_ranges
from harness.vm.snapshot import Snapshot, write_snapshot
from harness.vm.spec import MachineSpec
from harness.vm.workdir import Workdir

#: Seconds until QEMU greets; it loads the kernel first.
START_SECONDS: Final = 30.0
#: A QEMU that does not stop its vCPUs within this is replaced.
REWIND_SECONDS: Final = 2.0
_QUIT_SECONDS: Final = 1.0
#: QEMU sends the event before it ends; only our own thread may not have read it yet.
_EVENT_SECONDS: Final = 0.5
#: ShutdownCause in QEMU's qapi/run-state.json.
_SHUTDOWN_WORDS: Final = {
    "guest-reset": "the guest reset itself: a reboot, or a triple fault when nothing was printed",
    "guest-shutdown": "the guest powered itself off",
    "guest-panic": "the guest reported a panic",
    "host-qmp-quit": "somebody sent 'quit' to its protocol",
    "host-signal": "QEMU got a SIGTERM, SIGINT or SIGHUP",
}


class MachineState(Enum):
    """Where in its life a machine is."""

    #: Not started yet.
    NEW = "new"
    #: The guest executes.
    RUNNING = "running"
    #: Inside of `Machine.stopped`: the guest stands still.
    STOPPED = "stopped"
    #: QEMU is gone, or the guest has panicked.
    DEAD = "dead"
    #: The with block was left.
    CLOSED = "closed"


class Machine:
    """A QEMU process with its console, its protocol, its RAM and its ports, owned together.

    Use it in a ``with`` block. However the block is left, nothing stays: no process, no socket, no memory;
    not even when this process is killed. The folder with the logs stays only if the caller named one, asked
    to keep it, or if the block was left by an error.
    """

    def __init__(
        self,
        spec: MachineSpec,
        workdir: Path | None = None,
        *,
        keep: bool = False,
        accelerator: AcceleratorVerdict | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """Prepares a machine; entering the with block starts it.

        Args:
            spec: which machine.
            workdir: folder for ``console.log`` and ``qemu.log``; a private temporary one if None.
            keep: never remove the private folder.
            accelerator: a verdict known already; found out if None.
            snapshot: start from this instead of from the kernel's first instruction. It has to be one of this
                specification and accelerator, or QEMU refuses it.
        """
        self.spec = spec
        self._snapshot = snapshot
        self._lives = 0
        self._given_workdir = workdir
        self._keep = keep
        self._accelerator = accelerator
        self._stack = ExitStack()
        self._state = MachineState.NEW
        self._stop_lock = threading.RLock()
        self._stop_depth = 0
        self._captured: bytes | None = None
        self._rewindable = (
            False  # whether this QEMU was started from the snapshot, which is what can be rewound
        )
        self._it: Launched | None = None
        self._qmp: Qmp | None = None
        self._ram: GuestRam | None = None
        self._qemu: Qemu | None = None
        self._folder: Workdir | None = None

    def __enter__(self) -> Self:
        """Starts QEMU and waits for its greeting; the guest runs from then on.

        Raises:
            BadInput: the specification's files are missing or no kernel.
            HostLacks: a program, memory or a forced accelerator is missing.
            QemuRefused: QEMU did not take the command line; its own words are in the error.
            SnapshotUnusable: the snapshot is damaged.
            QmpRefused: the snapshot's state does not fit this machine.
        """
        if self._state is not MachineState.NEW:
            raise BadInput("a machine starts once", hint="make a new Machine from the same spec")
        self.spec.check_files()
        try:
            self._start()
        except BaseException as err:
            self._teardown(keep=self._keep or (isinstance(err, Exception) and self._it is not None))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends QEMU and gives everything back."""
        self._teardown(keep=self._keep or isinstance(error, Exception))

    @property
    def state(self) -> MachineState:
        """Where in its life the machine is, looked up now."""
        if self._state in (MachineState.RUNNING, MachineState.STOPPED) and self._gone():
            return MachineState.DEAD
        return self._state

    @property
    def accelerator(self) -> AcceleratorVerdict:
        """What executes the guest, and why."""
        if self._accelerator is None:
            raise self._not_started()
        return self._accelerator

    @property
    def argv(self) -> tuple[str, ...]:
        """QEMU's command line as it was started, inherited descriptors included."""
        return self._launched.argv

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._launched.process.pid

    @property
    def qemu_version(self) -> str:
        """For example ``"7.2.22"``."""
        if self._qemu is None:
            raise self._not_started()
        return self._qemu.version

    @property
    def workdir(self) -> Path:
        """The folder with ``console.log`` and ``qemu.log``."""
        return self._launched.workdir

    @property
    def console(self) -> Console:
        """The guest's serial console; its log stays readable after the machine is closed."""
        return self._launched.console

    @property
    def qmp(self) -> Qmp:
        """QEMU's machine protocol."""
        if self._qmp is None:
            raise self._not_started()
        return self._qmp

    @property
    def ram(self) -> GuestRam:
        """The guest's memory, live."""
        if self._ram is None:
            raise self._not_started()
        return self._ram

    def port(self, name: str) -> socket.socket:
        """The host end of a virtio-serial port; it is connected from the start and belongs to the machine.

        Raises:
            BadInput: the specification has no such port.
        """
        ports: Mapping[str, socket.socket] = self._launched.ports
        if name not in ports:
            raise BadInput(
                f"no virtio-serial port {name!r}", observed="ports: " + (", ".join(ports) or "none")
            )
        return ports[name]

    def check(self) -> None:
        """Returns if the machine is alive; costs a few microseconds.

        Raises:
            GuestPanicked: the kernel gave up.
            QemuDied: QEMU is gone.
            BadInput: the machine was not started or is closed.
        """
        self._require_open()
        self._launched.check()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Holds the guest still; nests, and the outermost block lets it go on.

        Raises:
            QmpLost: QEMU is gone; more often the named reason of `check`.
        """
        self._require_open()
        with self._stop_lock:
            if self._stop_depth == 0:
                self.qmp.execute("stop")
                self._state = MachineState.STOPPED
            self._stop_depth += 1
        try:
            yield
        except BaseException:
            with suppress(MachineFailure):  # the first error is the one to tell
                self._leave_stopped()
            raise
        self._leave_stopped()

    def device_state(self) -> bytes:
        """The state of all CPUs and devices as a migration stream without RAM.

        Within one `stopped` block the same bytes come back every time: nothing can have changed.

        Raises:
            BadInput: the machine is not stopped.
            QmpRefused: a device of this machine cannot be captured.
        """
        self._require_open()
        with self._stop_lock:
            if self._stop_depth == 0:
                raise BadInput(
                    "device_state() needs a machine that stands still", hint="with machine.stopped(): ..."
                )
            if self._captured is None:
                self._captured = capture_device_state(self.qmp)
            return self._captured

    def save(self, folder: Path, *, facts: Mapping[str, str], memo: Mapping[str, Any]) -> None:
        """Stores the machine as it is at this moment; it goes on afterwards.

        Args:
            folder: an existing one, empty.
            facts: see `harness.vm.snapshot.write_snapshot`.
            memo: likewise.

        Raises:
            QmpRefused: a device of this machine cannot save its state.
            OSError: the disk is full, or read-only.
        """
        with self.stopped():
            write_snapshot(folder, self.ram, save_state(self.qmp), facts=facts, memo=memo)

    def restore(self, snapshot: Snapshot | None = None) -> bool:
        """Puts the machine back to its snapshot: in the same QEMU while that lives, in a new one otherwise.

        `ram`, `qmp`, `console` and the ports are to be looked up again afterwards: with another QEMU they are
        other objects. What was on its way through a port from the guest is dropped; what was on its way to
        the guest is not, and its receiver has to expect that. Nobody may use the machine in the meantime.

        Args:
            snapshot: another one than the machine was started with.

        Returns:
            Whether it is the same QEMU.

        Raises:
            BadInput: there is no snapshot, or the machine is stopped or closed.
            SnapshotUnusable: it is damaged.
            MachineFailure: the new QEMU does not start; nothing of the machine is left then.
        """
        self._require_open()
        if self._stop_depth:
            raise BadInput("a machine that stands still cannot be restored", hint="leave stopped() first")
        same = snapshot is None or snapshot is self._snapshot
        self._snapshot = snapshot or self._snapshot
        if self._snapshot is None:
            raise BadInput("this machine has no snapshot", hint="start it with one, or give one here")
        if same and self._rewindable and self.state is MachineState.RUNNING:
            with contextlib.suppress(MachineFailure):
                self._rewind(self._snapshot)
                return True
        self.restart(self._snapshot)
        return False

    def restart(self, snapshot: Snapshot | None = None) -> None:
        """Ends QEMU and starts another; what `restore` says of looking things up again is true here as well.

        Args:
            snapshot: start from this; None: boot.

        Raises:
            BadInput: the machine is stopped or closed.
            SnapshotUnusable: the snapshot is damaged.
            MachineFailure: the new QEMU does not start; nothing of the machine is left then.
        """
        self._require_open()
        self._snapshot = snapshot
        self._launched.process.end(grace=0)  # nothing in it is worth waiting for, and it may hang
        self._stack.close()
        self._set_aside_log()
        self._launch()

    def describe(self) -> str:
        """One line for a report's header."""
        spec = self.spec
        cpus = "1 CPU" if spec.cpus == 1 else f"{spec.cpus} CPUs"
        head = f"QEMU {self._qemu.version}" if self._qemu else "QEMU"
        accel = (
            f"{self._accelerator.name} ({self._accelerator.reason})"
            if self._accelerator
            else spec.accel.value
        )
        return (
            f"{head}, {spec.machine}, {spec.cpu}, {cpus}, {spec.memory_mib} MiB, {accel}, {spec.kernel.name}"
        )

    def repro_command(self) -> str:
        """A shell line that starts the same machine by hand, its console on the terminal."""
        return self._launched.repro

    def command(self) -> str:
        """The command line as it was run, quoted for reading; its descriptors exist only here."""
        return shlex.join(self.argv)

    @property
    def _launched(self) -> Launched:
        if self._it is None:
            raise self._not_started()
        return self._it

    def _start(self) -> None:
        self._qemu = find_qemu()
        if self._accelerator is None:
            self._accelerator = choose_accelerator(self.spec, qemu=self._qemu)
        self._folder = Workdir(self._given_workdir)
        self._launch()

    def _launch(self) -> None:
        if self._qemu is None or self._folder is None:
            raise self._not_started()
        spec, stack, snapshot = self.spec, self._stack, self._snapshot
        self._rewindable = False
        self._it = it = stack.enter_context(
            launched(
                self._qemu,
                spec,
                self.accelerator.name,
                self._folder.path,
                state=None if snapshot is None else snapshot.state,
            )
        )
        size = spec.memory_mib * MIB
        self._ram = GuestRam(it.ram, size, ram_ranges(spec.machine, size))
        stack.callback(self._ram.close)
        if snapshot is not None:
            snapshot.fill(self._ram)  # while QEMU starts on another core
        self._qmp = Qmp(it.qmp, check=self._on_lost, scene=it.scene, deadline=START_SECONDS)
        stack.callback(self._qmp.close)
        it.answered = True
        self._state = MachineState.RUNNING
        it.explain = self._explain_end
        stack.callback(self._end)
        if snapshot is not None:
            load_state(self._qmp)
            self._qmp.execute("cont")
            self._rewindable = True

    def _rewind(self, snapshot: Snapshot) -> None:
        self.qmp.execute("stop", timeout=REWIND_SECONDS)
        snapshot.rewind(self.ram)
        load_state(self.qmp)
        # A port that could not send while we were not reading sends when we do: so this comes last.
        for port in self._launched.ports.values():
            _drain(port)
        self._captured = None
        self.qmp.execute("cont")

    def _set_aside_log(self) -> None:
        """Keep the console of the QEMU before: ``console.1.log`` is the first."""
        log = self.workdir / CONSOLE_LOG
        self._lives += 1
        with contextlib.suppress(OSError):
            log.rename(log.with_name(f"{log.stem}.{self._lives}{log.suffix}"))

    def _end(self) -> None:
        it = self._launched
        it.process.end(ask=lambda: self.qmp.execute("quit", timeout=_QUIT_SECONDS))

    def _teardown(self, *, keep: bool) -> None:
        if self._state is MachineState.CLOSED:
            return
        self._state = MachineState.CLOSED
        try:
            self._stack.close()
        finally:
            if self._folder is not None:
                self._folder.close(keep=keep)

    def _leave_stopped(self) -> None:
        with self._stop_lock:
            self._stop_depth -= 1
            if self._stop_depth == 0:
                self._captured = None
                if self._state is MachineState.STOPPED:
                    self._state = MachineState.RUNNING
                    self.qmp.execute("cont")

    def _on_lost(self) -> None:
        if self._it is not None and self._state is not MachineState.CLOSED:
            self._it.check_ended()

    def _explain_end(self) -> str:
        if self._launched.process.status() != 0:
            return ""  # a crash or a kill is never announced
        try:
            event = self.qmp.wait_event("SHUTDOWN", timeout=_EVENT_SECONDS)
        except MachineFailure:
            return ""
        reason = str(event.data.get("reason", "unknown"))
        return _SHUTDOWN_WORDS.get(reason, f"QEMU reported the reason {reason!r}")

    def _gone(self) -> bool:
        it = self._launched
        return it.process.status() is not None or it.console.panic is not None

    def _require_open(self) -> None:
        if self._state is MachineState.NEW:
            raise self._not_started()
        if self._state is MachineState.CLOSED:
            raise BadInput("the machine is closed", hint="use it inside of its with block")

    @staticmethod
    def _not_started() -> BadInput:
        return BadInput("the machine was not started", hint="use it as: with Machine(spec) as machine: ...")


def _drain(sock: socket.socket) -> None:
    """Drop what has arrived and was not read."""
    with contextlib.suppress(OSError):
        while sock.recv(1 << 18, socket.MSG_DONTWAIT):
            pass
