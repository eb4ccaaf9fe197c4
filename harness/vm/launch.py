# SPDX-License-Identifier: MIT
"""One running QEMU with everything that belongs to it, for a machine and for the KVM probe alike."""

import contextlib
import os
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from harness.errors import exhaustion_told
from harness.vm.attached import MIB, Attached, DiskFile, disk_file
from harness.vm.console import Console
from harness.vm.errors import ConsoleLost, GuestPanicked, QemuDied, QemuRefused, Scene
from harness.vm.leaks import track
from harness.vm.process import Process, is_exiting, spawn
from harness.vm.qemu import Qemu, Wires, compose, compose_by_hand
from harness.vm.ram import ram_file
from harness.vm.spec import MachineSpec
from harness.vm.stub import has_pvh_entry, memory_file, stub_kernel

CONSOLE_LOG: Final = "console.log"
QEMU_LOG: Final = "qemu.log"
_LOG_TAIL: Final = 20
#: How long the end of a console may precede the end of its process, and the other way round.
_SETTLE_SECONDS: Final = 2.0
#: How long QEMU may clean up between closing its sockets and its end.
_CLEANUP_SECONDS: Final = 1.0


@dataclass
class Launched:
    """A started QEMU. Whoever holds it ends it; see `launched`.

    Attributes:
        process: QEMU.
        console: its serial port.
        qmp: the host end of the machine protocol.
        ports: the host ends of the virtio-serial ports.
        ram: descriptor of the RAM file.
        argv: the command line, without the wrapper that ties it to this process.
        repro: the same machine as a line for a shell.
        workdir: where the logs are.
        answered: whether QEMU got as far as its greeting; set by the owner.
        explain: tells what QEMU itself reported about its end, ``""`` if nothing; set by the owner.
        console_lost: whether QEMU lives without its console.
        attached: the host ends of disks and networks.
    """

    process: Process
    console: Console
    qmp: socket.socket
    ports: Mapping[str, socket.socket]
    ram: int
    argv: tuple[str, ...]
    repro: str
    workdir: Path
    answered: bool = False
    explain: Callable[[], str] = str
    console_lost: bool = False
    attached: Attached = field(default_factory=Attached)

    def scene(self) -> Scene:
        """The evidence as it is now."""
        return Scene(
            console=(*self.console.evidence(), *self._lost()),
            qemu=_log_tail(self.workdir / QEMU_LOG),
            argv=self.argv,
            repro=self.repro,
            workdir=self.workdir,
        )

    def _lost(self) -> tuple[str, ...]:
        lost = self.console.lost
        return (f"({lost} bytes of this log are missing: the disk was full)",) if lost else ()

    def check(self) -> None:
        """Raises if the guest panicked or QEMU is gone; costs one ``waitpid``.

        Raises:
            GuestPanicked: the kernel gave up.
            ConsoleLost: what the guest prints does not arrive any more.
            QemuRefused: QEMU left before it answered.
            HostExhausted: as QemuRefused, and QEMU said that the host ran out of something.
            QemuDied: QEMU left later.
        """
        status = self.process.status()
        if status is None and self.console.ended and not self.console_lost:
            status = self._settled()
        if status is not None or self.console.panic is not None:
            # A panic that was printed last names the death better, and its trace belongs to the evidence.
            self.console.wait_end(_SETTLE_SECONDS)
        if self.console.panic is not None:
            raise GuestPanicked(self.console.panic, scene=self.scene())
        if status is None:
            self.console_lost = self.console.ended
            if self.console_lost:
                raise ConsoleLost("QEMU lives, and the socket of its console is closed", scene=self.scene())
            return
        if not self.answered:
            refused = QemuRefused(
                "QEMU did not start",
                status=status,
                scene=self.scene(),
                hint="QEMU's own words are in the lines below; check devices, CPU model and kernel",
            )
            lack = exhaustion_told(refused.scene.qemu, "starting QEMU")
            if lack is not None:
                lack.evidence = refused.evidence
                raise lack from refused
            raise refused
        raise QemuDied(
            "QEMU ended although nobody asked it to", status=status, scene=self.scene(), why=self.explain()
        )

    def check_ended(self) -> None:
        """`check` for someone who saw a connection close: the process may need a moment to be gone."""
        if not self.console.ended:  # otherwise check() waits as long
            self._settled()
        self.check()

    def _settled(self) -> int | None:
        """Wait for the end of a process that has closed something; what it closes last is not the process."""
        status = self.process.wait(_CLEANUP_SECONDS)
        if status is None and is_exiting(self.process.pid):
            status = self.process.wait(_SETTLE_SECONDS)
        return status


@contextmanager
def launched(
    qemu: Qemu, spec: MachineSpec, accelerator: str, workdir: Path, *, state: bytes | None = None
) -> Iterator[Launched]:
    """Starts QEMU and ends it, in whatever way the block is left.

    Args:
        qemu: which program.
        spec: which machine; its files were checked.
        accelerator: ``"kvm"`` or ``"tcg"``.
        workdir: an existing folder for the logs.
        state: a saved state; the machine then stands still, and its RAM is to be filled, before it is loaded.

    Raises:
        HostLacks: not enough memory, or a program is missing.
    """
    with ExitStack() as stack:
        ram = stack.enter_context(ram_file(spec))
        with ExitStack() as theirs:
            ours: dict[str, socket.socket] = {}
            fds: dict[str, int] = {}
            networks = [f"network:{index}" for index in range(len(spec.networks))]
            for role in ("console", "qmp", *(f"port:{name}" for name in spec.ports), *networks):
                ours[role], remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                track(ours[role])
                stack.callback(ours[role].close)
                fds[role] = theirs.enter_context(remote).fileno()
            ports = {name: fds[f"port:{name}"] for name in spec.ports}
            disks = tuple(theirs.enter_context(disk_file(*numbered)) for numbered in enumerate(spec.disks))
            files = [DiskFile(fd, disk.size_mib * MIB) for fd, disk in zip(disks, spec.disks, strict=True)]
            for file in files:
                stack.callback(file.close)
            wires = Wires(
                ram=ram,
                console=fds["console"],
                qmp=fds["qmp"],
                ports=ports,
                disks=disks,
                networks=tuple(fds[role] for role in networks),
            )
            if state is not None:
                wires = replace(wires, state=theirs.enter_context(memory_file("iobmd-saved", state)))
                if has_pvh_entry(spec.kernel):
                    kernel = theirs.enter_context(memory_file("iobmd-stub", stub_kernel()))
                    wires = replace(wires, kernel=kernel)
            argv = compose(qemu, spec, accelerator, wires)
            console = Console(ours["console"], workdir / CONSOLE_LOG)
            stack.callback(console.close)
            process = spawn(argv, pass_fds=wires.all(), log=workdir / QEMU_LOG)
            stack.callback(process.end)
        # The guest's ends are closed here now: QEMU's death is an end of file on every one of ours.
        it = Launched(
            process=process,
            console=console,
            qmp=ours["qmp"],
            ports={name: ours[f"port:{name}"] for name in spec.ports},
            ram=ram,
            attached=Attached(tuple(files), tuple(ours[role] for role in networks)),
            argv=argv,
            repro=shlex.join(compose_by_hand(qemu, spec, accelerator)),
            workdir=workdir,
        )
        console.attach(it.scene, it.check_ended)
        yield it


def _log_tail(path: Path) -> tuple[str, ...]:
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 14)))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
        return tuple(line for line in lines if line.strip())[-_LOG_TAIL:]
    return ()
