# SPDX-License-Identifier: MIT
"""A booted guest: the machine, the link to its agent, and the agent as a process of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from harness.deadlines import Deadlines
from harness.errors import BadInput, named_exhaustion
from harness.images import GuestImage, SilentProgress
from harness.link.errors import AgentDead, OperationTimedOut, RequestTimedOut
from harness.link.link import Hello, Link
from harness.link.origin import Origin
from harness.link.peer import PEER_PORT_NAME, Peer
from harness.link.plugs import Plugged, plug, unplug
from harness.link.process import Process
from harness.link.program import Program
from harness.link.start import Start
from harness.link.syscalls import Nr, cstring
from harness.link.vitals import Vitals
from harness.vm import (
    Accel,
    Disk,
    GuestSilent,
    Machine,
    MachineSpec,
    Network,
    Scene,
    SnapshotStore,
    choose_accelerator,
)
from harness.vm.attached import disk_address, disk_device

if TYPE_CHECKING:
    from harness.link.ssh import Ssh

PORT_NAME = "org.iobmd.link"
"""LINK_PORT_NAME of guest/link_abi.h."""

SSH_PORT_NAME = "org.iobmd.ssh"
"""Always there: the guest is given its SSH server when somebody asks for one, and not before."""

_TAIL = 20

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

_COMMAND_LINE = (
    "console=ttyS0",  # the kernel log goes where QEMU records it
    "loglevel=5",  # warnings and worse; every character costs emulated time, the rest stays in /dev/kmsg
    "panic=-1",  # reboot at once, and -no-reboot turns that into QEMU's exit: nobody waits for a deadline
    # An oops has killed a thread of pid 1 and its locks: nothing after it can be believed, and who waits for
    # that thread learns of a panic within milliseconds.  A warning does not panic: it is found afterwards.
    "oops=panic",
    "sysrq_always_enabled",  # a guest that hangs is asked for backtraces; Debian's kernels would refuse them
    "cryptomgr.notests=1",  # ciphers test themselves for a tenth of an emulated boot; nothing here uses them
    "printk.devkmsg=on",  # what tests write into the log must not be dropped for coming in quick succession
    "noreplace-smp",  # patching every lock prefix away for one CPU costs emulation more than the prefixes do
    "lsm=capability",  # no policy is loaded here; setting AppArmor, TOMOYO and others up is 2 % of a boot
    "no_timer_check",  # a busy host fails the boot's timer test, which panics; KVM guests skip it as well
)

_EMULATED_ALONE = (
    "nolapic_timer",  # its calibration is a busy wait of 0.1 s, a twelfth of a boot; the HPET ticks instead
)
"""For TCG with one CPU: KVM's local APIC needs no calibration, and more CPUs want timers of their own."""


@dataclass(frozen=True)
class GuestOptions:
    """The machine around the image.

    Attributes:
        memory_mib: RAM in MiB.
        cpus: virtual CPUs.
        machine: QEMU machine type.
        cpu: QEMU CPU model.
        accel: which accelerator to use.
        cmdline: further words for the kernel's command line.
        devices: further QEMU ``-device`` values.
        disks: disks, empty when the guest boots; `Machine.attached` has their bytes.
        networks: networks that lead nowhere; `Machine.attached` has the host's ends.
        boot_timeout: seconds from QEMU's start to the agent's first reply; None: what suits this guest.
        operation_timeout: seconds for one system call; None: what suits this guest.
        timeout_scale: what every deadline that is not given is multiplied by.
        peer: give the guest the port that `Guest.peer` needs.
        ports: further virtio-serial ports, by name; `Machine.port` has their host ends.
        slots: how many devices `Guest.plug` can put in at a time.
    """

    memory_mib: int = 512
    cpus: int = 1
    machine: str = "q35"
    cpu: str = "max"
    accel: Accel = Accel.AUTO
    cmdline: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    disks: tuple[Disk, ...] = ()
    networks: tuple[Network, ...] = ()
    boot_timeout: float | None = None
    operation_timeout: float | None = None
    timeout_scale: float = 1.0
    peer: bool = True
    ports: tuple[str, ...] = ()
    slots: int = 0


class Guest(Process):
    """A machine that runs the image's kernel, with the agent answering.

    A context manager: entering boots, or starts from a snapshot; leaving ends the machine.

    Args:
        image: what to boot.
        options: the machine around it.
        snapshots: where a guest that booted once is kept, for this one and others like it to start from;
            None: every start is a boot.
        diagnose: looks into a failure and returns what to raise, as `harness.forensics.diagnose` does; None:
            a time-out stays a RequestTimedOut.

    Attributes:
        image: as given.
        options: as given.
        deadlines: for everything that is waited for; known better once it has booted.
        operation_timeout: seconds for one system call; the options', or the deadlines'.
        vitals: where it shows from outside that it lives.
        machine: QEMU; the same object over every `restore`.
        link: to the agent; another one after a `restore`.
        hello: who answered.
        on_load: called with the object file of every module that `load_module` has loaded.
    """

    machine: Machine
    link: Link
    hello: Hello

    def __init__(
        self,
        image: GuestImage,
        options: GuestOptions | None = None,
        snapshots: SnapshotStore | None = None,
        diagnose: Callable[[Guest, Exception], Exception] | None = None,
    ) -> None:
        super().__init__()
        self.image = image
        self.options = options or GuestOptions()
        self.vitals = Vitals()
        self.wait_as(Deadlines(scale=self.options.timeout_scale))
        self._diagnose = diagnose
        self.on_load: Callable[[bytes], None] | None = None
        self._snapshots = snapshots
        self._origin: Origin | None = None
        self._starts: list[Start] = []
        self._peer: Peer | None = None
        self._peer_lock = threading.Lock()
        self._disks: dict[int, Plugged] = {}
        self._ssh: Ssh | None = None
        self._ssh_lock = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with named_exhaustion("starting a guest"):
            return self._enter()

    def _enter(self) -> Self:
        verdict = choose_accelerator(self._spec())  # may boot a guest of its own, not in this one's time
        spec = self._spec(verdict.name)
        config = self.image.kernel.headers / ".config"
        self.wait_as(Deadlines.expected(verdict.name, config, scale=self.options.timeout_scale))
        with ExitStack() as stack:
            self._origin = Origin(self, spec, verdict, self._snapshots)
            self._starts.append(self._origin.begin(stack))
            self._plug_disks()
            self.machine.services.ssh = lambda: self.ssh
            stack.callback(self._close_ssh)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def start(self) -> Start:
        """How the guest became as it is: its latest start."""
        return self._starts[-1]

    @property
    def starts(self) -> tuple[Start, ...]:
        """Every start so far, the first one first."""
        return tuple(self._starts)

    @property
    def boot_seconds(self) -> float:
        """Seconds from QEMU's first start to the agent's reply."""
        return self._starts[0].seconds

    def restore(self) -> Start:
        """Bring the guest back to the state it had when it first answered, proved; it may be dead by now.

        With a snapshot that takes some 20 ms in the same QEMU, 0.1 s in a new one; without, it is a boot.
        What was open in the guest is gone: descriptors, mappings, the peer, requests under way.

        Returns:
            How it was done; also `start` from now on.

        Raises:
            BadInput: the guest was not entered.
            GuestFailure: it does not even boot any more.
        """
        if self._origin is None:
            raise BadInput("the guest was not started", hint="use it as: with Guest(image) as guest: ...")
        self._let_go("the guest was restored")
        with named_exhaustion("starting the guest again"):
            self._starts.append(self._origin.again())
            self._plug_disks()
        return self.start

    def keep(self, folder: Path) -> None:
        """Make this moment the one that every later `restore` brings back, in place of the guest's beginning.

        Whatever the agent has open, loaded and mapped belongs to it. A device whose model saves no state is
        no more than plugged in afterwards (`harness.link.pci`).

        Args:
            folder: an existing one, empty, that stays as long as the guest does; about as large as the RAM
                that the guest has used.

        Raises:
            BadInput: the guest was not entered, or its peer lives.
            QmpRefused: a device of this machine cannot save its state.
            OSError: the disk is full, or read-only.
        """
        if self._origin is None:
            raise BadInput("the guest was not started", hint="use it as: with Guest(image) as guest: ...")
        if self._peer is not None and self._peer.alive:
            raise BadInput("a peer cannot be kept", hint="end it first: guest.peer.kill()")
        self._origin.keep(folder)

    @property
    def peer(self) -> Peer:
        """The guest's second process: the living one, or a new one where none lives.

        It runs the agent's program as a child of the agent, is started when it is first asked for, and takes
        the calls the guest takes.  To kill it is legitimate: `Peer.kill`.

        Raises:
            BadInput: this guest was booted without the port for it.
            PeerNotStarted: the agent says why not.
        """
        with self._peer_lock:
            if self._peer is None or not self._peer.alive:
                self._peer = self._new_peer()
            return self._peer

    @property
    def ssh(self) -> Ssh:
        """The guest's shell over SSH; the same object for the life of this guest, made when first asked for.

        Nothing is started before it is used, see `harness.link.ssh.Ssh`.
        """
        with self._ssh_lock:
            if self._ssh is None:
                from harness.link.ssh import Access, Ssh  # noqa: PLC0415 - paramiko takes a fifth of a boot to import

                access = Access(
                    agent=self,
                    port=lambda: self.machine.port(SSH_PORT_NAME),
                    check=self.machine.check,
                    evidence=self._evidence,
                )
                self._ssh = Ssh(access, lambda: self.image.ssh_payload(SilentProgress()))
            return self._ssh

    def spawn(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        port: str = "",
        log: str = "",
    ) -> Program:
        """Start a program of the guest; it is a child of the agent, which remembers how it ended.

        Args:
            argv: its path and its arguments.
            environment: its whole environment; only a PATH by default.
            port: virtio-serial port that becomes its standard input and output, ``""`` for none; see
                `Program` for what both directions begin with.
            log: file of the guest that its other output is appended to, ``""`` for the console.

        Raises:
            ProgramNotStarted: there is no such program, or the guest has no room for it.
        """
        return Program(self, argv, environment=environment or _ENVIRONMENT, port=port, log=log)

    def load_module(self, ko: bytes, params: str = "") -> None:
        """Load a kernel module.

        Args:
            ko: the object file, uncompressed.
            params: as after ``insmod FILE``.
        """
        fd = self.syscall(Nr.MEMFD_CREATE, cstring("module"), 0, what="memfd_create").value
        try:
            self.write_all(fd, ko, "module")
            self.syscall(Nr.FINIT_MODULE, fd, cstring(params), 0, what="load module")
        finally:
            self.close(fd)
        if self.on_load is not None:
            self.on_load(ko)

    def unload_module(self, name: str) -> None:
        """Unload a kernel module; one in use is GuestOSError EAGAIN or EBUSY, nothing is waited for."""
        self.syscall(Nr.DELETE_MODULE, cstring(name), os.O_NONBLOCK, what=f"unload module {name}")

    def plug(self, device: str) -> Plugged:
        """Plug a PCI device into the running guest; its kernel has seen it when this returns.

        So it is how a device is watched whose model QEMU cannot capture, such as nvme: the CPUs' PAT and
        MTRRs are captured before it comes.  A restored guest is without it.  See `harness.link.plugs.plug`.

        Args:
            device: what follows QEMU's ``-device``, without ``id`` and ``bus``.
        """
        return plug(self, device)

    def unplug(self, plugged: Plugged) -> None:
        """Take a device away again; see `harness.link.plugs.unplug`."""
        unplug(self, plugged)

    def disk_address(self, index: int) -> str:
        """Where the kernel has the controller of a disk of `GuestOptions.disks`: ``"0000:00:10.0"``."""
        plugged = self._disks.get(index)
        return disk_address(index) if plugged is None else plugged.address

    def _plug_disks(self) -> None:
        """Bring the disks that come late; a boot or a snapshot is without them."""
        self._disks = {}
        for index, disk in enumerate(self.options.disks):
            if disk.model.comes_late:
                self._disks[index] = self.plug(disk_device(index, disk))

    def attach(self, ticket: int) -> None:
        """Make the link to an agent that has just begun; for `harness.link.origin`.

        Args:
            ticket: number of the first request that counts, a HELLO; 0: any.
        """
        if hasattr(self, "link"):
            self.link.retire("the guest was started again")
        self.link = Link(
            self.machine.port(PORT_NAME),
            self.image.link_layouts,
            self.machine.check,
            self._evidence,
            ticket=ticket,
            refine=self._refine,
            deadlines=self.deadlines,
        )

    def wait_as(self, deadlines: Deadlines) -> None:
        """Wait as long as these deadlines say from now on; what the options give in seconds stays."""
        self.deadlines = deadlines
        given = self.options.operation_timeout
        self.operation_timeout = deadlines.operation if given is None else given
        if hasattr(self, "link"):
            self.link.deadlines = deadlines

    def first_reply(self, started: float) -> Hello:
        """Wait for the agent of a booting guest; for `harness.link.origin`.

        Args:
            started: host's monotonic time of QEMU's start, in seconds.

        Raises:
            GuestSilent: it did not answer in the options' ``boot_timeout``, or the deadlines' ``boot``; its
                kind and probes are what a diagnosis has found.
        """
        # HELLO goes out at once; QEMU holds it until the agent opens the port.
        given = self.options.boot_timeout
        seconds = self.deadlines.boot if given is None else given
        try:
            return self.link.hello(max(started + seconds - time.monotonic(), 0.0))
        except RequestTimedOut as error:
            machine = self.machine
            silent = GuestSilent(
                f"the agent did not answer within {seconds:g} s of QEMU's start",
                seconds=seconds,
                scene=Scene(
                    console=machine.console.tail(_TAIL),
                    argv=machine.argv,
                    repro=machine.repro_command(),
                    workdir=machine.workdir,
                ),
                observed=error.observed,
                hint="the console shows how far the boot came; a slow host needs --timeout-scale 2, or more",
            )
            silent.call_it(error.kind)
            silent.probes = error.probes
            raise silent from error

    def _let_go(self, why: str) -> None:
        """Everything that speaks to the guest as it was ends here, who reads its RAM included."""
        self._begin_anew()
        self.link.retire(why)
        self._close_ssh()
        with self._peer_lock:
            peer, self._peer = self._peer, None
            if peer is not None:
                peer.abandon(why)

    def _new_peer(self) -> Peer:
        if not self.options.peer:
            raise BadInput(
                "this guest has no port for a second process", hint="boot it with GuestOptions(peer=True)"
            )
        if self._peer is not None:
            self._peer.bury("another took its place")
        port = self.machine.port(PEER_PORT_NAME)
        return Peer(self, port, self.machine.check, self._evidence, self._refine_peer)

    def _refine(self, error: RequestTimedOut) -> Exception:
        return error if self._diagnose is None else self._diagnose(self, error)

    def _refine_peer(self, error: RequestTimedOut) -> Exception:
        error.agent_answers = None  # it is the peer that was asked
        error.observed = "the peer process is silent"
        found = self._refine(error)
        if not isinstance(found, OperationTimedOut):
            return found
        dead = AgentDead(
            error.summary,
            agent_answers=True,
            observed="the peer process is silent, and the agent that started it answers",
            hint="it was stopped, or loops; /proc/PID/stat in the guest tells, and guest.peer.kill() ends it",
            evidence=error.evidence,
        )
        dead.probes = found.probes
        dead.__cause__ = error
        return dead

    def _close_ssh(self) -> None:
        if self._ssh is not None:
            self._ssh.close()

    def _evidence(self) -> tuple[str, ...]:
        return self.machine.console.tail(_TAIL)

    def _ports(self) -> tuple[str, ...]:
        peer = (PEER_PORT_NAME,) if self.options.peer else ()
        return (PORT_NAME, *peer, SSH_PORT_NAME, *self.options.ports)

    def _spec(self, accelerator: str = "") -> MachineSpec:
        options = self.options
        quicker = _EMULATED_ALONE if accelerator == "tcg" and options.cpus == 1 else ()
        return MachineSpec(
            kernel=self.image.kernel.boot_image,
            initrd=self.image.initramfs,
            cmdline=(*_COMMAND_LINE, *quicker, *options.cmdline),
            memory_mib=options.memory_mib,
            cpus=options.cpus,
            machine=options.machine,
            cpu=options.cpu,
            accel=options.accel,
            ports=self._ports(),
            devices=options.devices,
            disks=options.disks,
            networks=options.networks,
            slots=options.slots + sum(disk.model.comes_late for disk in options.disks),
        )
