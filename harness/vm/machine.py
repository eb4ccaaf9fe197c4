# SPDX-License-Identifier: MIT
"""A virtual machine and everything it owns."""

import shlex
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.errors import BadInput
from harness.vm.accel import AcceleratorVerdict, choose_accelerator
from harness.vm.capture import capture_device_state
from harness.vm.console import Console
from harness.vm.errors import MachineFailure
from harness.vm.launch import Launched, launched
from harness.vm.qemu import Qemu, find_qemu
from harness.vm.qmp import Qmp
from harness.vm.ram import MIB, GuestRam, ram_ranges
from harness.vm.services import RemoteShell, Services
from harness.vm.spec import MachineSpec
from harness.vm.workdir import Workdir

#: Seconds until QEMU greets; it loads the kernel first.
START_SECONDS: Final = 30.0
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
    ) -> None:
        """Prepares a machine; entering the with block starts it.

        Args:
            spec: which machine.
            workdir: folder for ``console.log`` and ``qemu.log``; a private temporary one if None.
            keep: never remove the private folder.
            accelerator: a verdict known already; found out if None.
        """
        self.spec = spec
        self._given_workdir = workdir
        self._keep = keep
        self._accelerator = accelerator
        self._stack = ExitStack()
        self._state = MachineState.NEW
        self._stop_lock = threading.RLock()
        self._stop_depth = 0
        self._captured: bytes | None = None
        self._it: Launched | None = None
        self._qmp: Qmp | None = None
        self._ram: GuestRam | None = None
        self._qemu: Qemu | None = None
        self._folder: Workdir | None = None
        self.services = Services()

    def __enter__(self) -> Self:
        """Starts QEMU and waits for its greeting; the guest runs from then on.

        Raises:
            BadInput: the specification's files are missing or no kernel.
            HostLacks: a program, memory or a forced accelerator is missing.
            QemuRefused: QEMU did not take the command line; its own words are in the error.
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

    @property
    def ssh(self) -> RemoteShell:
        """The guest's shell, where the guest was booted with an agent that can give one.

        Raises:
            BadInput: nobody has said how to reach a shell in this guest.
        """
        if self.services.ssh is None:
            raise BadInput(
                "this machine's guest has no agent that could start an SSH server",
                hint="boot it as harness.link.Guest; or set machine.services.ssh",
            )
        return self.services.ssh()

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
        spec, stack = self.spec, self._stack
        self._qemu = find_qemu()
        if self._accelerator is None:
            self._accelerator = choose_accelerator(spec, qemu=self._qemu)
        self._folder = Workdir(self._given_workdir)
        self._it = it = stack.enter_context(
            launched(self._qemu, spec, self._accelerator.name, self._folder.path)
        )
        size = spec.memory_mib * MIB
        self._ram = GuestRam(it.ram, size, ram_ranges(spec.machine, size))
        stack.callback(self._ram.close)
        self._qmp = Qmp(it.qmp, check=self._on_lost, scene=it.scene, deadline=START_SECONDS)
        stack.callback(self._qmp.close)
        it.answered = True
        self._state = MachineState.RUNNING
        it.explain = self._explain_end
        stack.callback(self._end)

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
