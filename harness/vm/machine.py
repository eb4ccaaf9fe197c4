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
from typing import Any, Self

from harness.errors import BadInput, interruption, named_exhaustion
from harness.vm.accel import AcceleratorVerdict, choose_accelerator
from harness.vm.attached import Attached
from harness.vm.capture import Capture, save_state
from harness.vm.console import Console
from harness.vm.errors import MachineFailure
from harness.vm.launch import CONSOLE_LOG, QEMU_LOG
from harness.vm.life import Life, living
from harness.vm.qemu import Qemu, find_qemu
from harness.vm.qmp import Qmp
from harness.vm.qtest import QTest
from harness.vm.ram import GuestRam
from harness.vm.services import RemoteShell, Services
from harness.vm.snapshot import Snapshot, write_snapshot
from harness.vm.spec import MachineSpec
from harness.vm.workdir import Workdir


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
        timeout_scale: float = 1.0,
    ) -> None:
        """Prepares a machine; entering the with block starts it.

        Args:
            spec: which machine.
            workdir: folder for ``console.log`` and ``qemu.log``; a private temporary one if None.
            keep: never remove the private folder.
            accelerator: a verdict known already; found out if None.
            snapshot: start from this instead of from the kernel's first instruction. It has to be one of this
                specification and accelerator, or QEMU refuses it.
            timeout_scale: what every deadline that is not given is multiplied by.
        """
        self.spec = spec
        self._snapshot = snapshot
        self._timeout_scale = timeout_scale
        self._lives = 0
        self._given_workdir = workdir
        self._keep = keep
        self._accelerator = accelerator
        self._stack = ExitStack()
        self._state = MachineState.NEW
        self._stop_lock = threading.RLock()
        self._stop_depth = 0
        self._captured: Capture | None = None
        self._current: Life | None = None
        self._qemu: Qemu | None = None
        self._folder: Workdir | None = None
        self.services = Services()

    def __enter__(self) -> Self:
        """Starts QEMU and waits for its greeting; the guest runs from then on.

        Raises:
            BadInput: the specification's files are missing or no kernel.
            HostLacks: a program or a forced accelerator is missing.
            HostExhausted: the host has no memory, descriptors or processes left for it.
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
            self._teardown(keep=self._keep or (isinstance(err, Exception) and self._has_started))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends QEMU and gives everything back."""
        failed = isinstance(error, Exception) and interruption(error) is None
        self._teardown(keep=self._keep or failed)

    @property
    def state(self) -> MachineState:
        """Where in its life the machine is, looked up now."""
        if self._state in (MachineState.RUNNING, MachineState.STOPPED) and self._life.gone:
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
        return self._life.launched.argv

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._life.launched.process.pid

    @property
    def qemu_version(self) -> str:
        """For example ``"7.2.22"``."""
        if self._qemu is None:
            raise self._not_started()
        return self._qemu.version

    @property
    def workdir(self) -> Path:
        """The folder with ``console.log`` and ``qemu.log``."""
        return self._life.launched.workdir

    @property
    def console(self) -> Console:
        """The guest's serial console; its log stays readable after the machine is closed."""
        return self._life.launched.console

    @property
    def qmp(self) -> Qmp:
        """QEMU's machine protocol."""
        return self._life.qmp

    @property
    def qtest(self) -> QTest:
        """QEMU's test port: I/O ports and device registers, from the host."""
        return self._life.qtest

    @property
    def ram(self) -> GuestRam:
        """The guest's memory, live."""
        return self._life.ram

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
        ports: Mapping[str, socket.socket] = self._life.launched.ports
        if name not in ports:
            raise BadInput(
                f"no virtio-serial port {name!r}", observed="ports: " + (", ".join(ports) or "none")
            )
        return ports[name]

    @property
    def attached(self) -> Attached:
        """The host's ends of the disks and networks; to be looked up again after a `restore`."""
        return self._life.launched.attached

    def check(self) -> None:
        """Returns if the machine is alive; costs a few microseconds.

        Raises:
            GuestPanicked: the kernel gave up.
            QemuDied: QEMU is gone.
            BadInput: the machine was not started or is closed.
        """
        self._require_open()
        self._life.launched.check()

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
        found = self.capture()
        return self._life.captures.whole() if found.registers else found.stream

    def capture(self) -> Capture:
        """What there is to be known of the CPUs, while a device that cannot be captured is plugged in, too.

        Within one `stopped` block the same comes back every time.

        Raises:
            BadInput: the machine is not stopped.
            QmpRefused: a device of this machine cannot be captured, and was there from the start.
        """
        self._require_open()
        with self._stop_lock:
            if self._stop_depth == 0:
                raise BadInput(
                    "device_state() needs a machine that stands still", hint="with machine.stopped(): ..."
                )
            if self._captured is None:
                self._captured = self._life.captures.now()
            return self._captured

    def plug(self, device: str) -> str:
        """Put a device into the running machine; that the guest has seen it is not waited for.

        The CPUs are captured first: some devices (nvme) let nobody do that while they are there.

        Args:
            device: what follows ``-device``, without ``id`` and ``bus``.

        Returns:
            Its id, for `unplug`.

        Raises:
            BadInput: no slot is free, or the machine is closed.
            QmpRefused: QEMU says what is wrong with the device.
        """
        self._require_open()
        with self.stopped():
            self.capture()
        return self._life.plugs.add(device)

    def unplug(self, name: str) -> None:
        """Have the guest let go of a device, and take it away.

        Args:
            name: what `plug` returned.

        Raises:
            BadInput: no such device is plugged in.
            QmpSilent: the guest keeps it.
        """
        self._require_open()
        self._life.plugs.remove(name)

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
        self._require_running()
        wanted = snapshot or self._life.snapshot
        if wanted is None:
            raise BadInput("this machine has no snapshot", hint="start it with one, or give one here")
        # Only a QEMU that never held a kernel of its own can be put back: see harness.vm.stub. One that has
        # another device by now is another machine than the snapshot's. And an IOMMU's cache of translations
        # outlives the load of a state (hw/i386/intel_iommu.c: vtd_post_load): devices would write to pages
        # of the life before.
        same = wanted is self._life.snapshot and not self._life.plugs and not self.spec.translates
        if same and self.state is MachineState.RUNNING:
            with suppress(MachineFailure):
                self._life.rewind(wanted)
                self._captured = None
                return True
        self.restart(wanted)
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
        self._require_running()
        self._life.kill()
        self._stack.close()
        self._set_aside_log()
        self._live(snapshot)

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
        return self._life.launched.repro

    def command(self) -> str:
        """The command line as it was run, quoted for reading; its descriptors exist only here."""
        return shlex.join(self.argv)

    @property
    def _life(self) -> Life:
        if self._current is None:
            raise self._not_started()
        return self._current

    @property
    def _has_started(self) -> bool:
        return self._folder is not None and (self._folder.path / QEMU_LOG).exists()

    def _start(self) -> None:
        self._qemu = find_qemu()
        if self._accelerator is None:
            self._accelerator = choose_accelerator(self.spec, qemu=self._qemu)
        with named_exhaustion("making a folder for a machine"):
            self._folder = Workdir(self._given_workdir)
        self._live(self._snapshot)

    def _live(self, snapshot: Snapshot | None) -> None:
        if self._qemu is None or self._folder is None:
            raise self._not_started()
        folder, scale = self._folder.path, self._timeout_scale
        life = living(self._qemu, self.spec, self.accelerator.name, folder, snapshot, scale=scale)
        with named_exhaustion("starting a machine"):
            self._current = self._stack.enter_context(life)
        self._state = MachineState.RUNNING

    def _set_aside_log(self) -> None:
        """Keep the console of the QEMU before: ``console.1.log`` is the first."""
        log = self.workdir / CONSOLE_LOG
        self._lives += 1
        with suppress(OSError):
            log.rename(log.with_name(f"{log.stem}.{self._lives}{log.suffix}"))

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

    def _require_open(self) -> None:
        if self._state is MachineState.NEW:
            raise self._not_started()
        if self._state is MachineState.CLOSED:
            raise BadInput("the machine is closed", hint="use it inside of its with block")

    def _require_running(self) -> None:
        if self._stop_depth:
            raise BadInput(
                "a machine that stands still cannot be started again", hint="leave stopped() first"
            )

    @staticmethod
    def _not_started() -> BadInput:
        return BadInput("the machine was not started", hint="use it as: with Machine(spec) as machine: ...")
