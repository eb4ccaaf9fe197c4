# SPDX-License-Identifier: MIT
"""A booted guest: the machine, the link to its agent, and everyday system calls."""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from harness.errors import BadInput
from harness.images import GuestImage
from harness.link.errors import RequestTimedOut
from harness.link.link import Hello, Link
from harness.link.syscalls import In, InOut, Nr, Out, SyscallResult, cstring
from harness.vm import Accel, GuestSilent, Machine, MachineSpec, Scene, choose_accelerator

PORT_NAME = "org.iobmd.link"
"""LINK_PORT_NAME of guest/link_abi.h."""

_CHUNK = 512 * 1024
_TAIL = 20

_COMMAND_LINE = (
    "console=ttyS0",  # the kernel log goes where QEMU records it
    "loglevel=5",  # warnings and worse; every character costs emulated time, the rest stays in /dev/kmsg
    "panic=-1",  # reboot at once, and -no-reboot turns that into QEMU's exit: nobody waits for a deadline
    "oops=panic",  # an oops has killed a thread of pid 1 and its locks: nothing after it can be believed
    "cryptomgr.notests=1",  # ciphers test themselves for a tenth of an emulated boot; nothing here uses them
    "noreplace-smp",  # patching every lock prefix away for one CPU costs emulation more than the prefixes do
    "no_timer_check",  # a busy host fails the boot's timer test, which panics; KVM guests skip it as well
)


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
        boot_timeout: seconds from QEMU's start to the agent's first reply.
        operation_timeout: seconds for one system call.
    """

    memory_mib: int = 512
    cpus: int = 1
    machine: str = "q35"
    cpu: str = "max"
    accel: Accel = Accel.AUTO
    cmdline: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    boot_timeout: float = 60.0
    operation_timeout: float = 30.0


@dataclass(frozen=True)
class IoctlResult:
    """What an ioctl left behind.

    Attributes:
        value: its result, not negative.
        arg: the argument structure afterwards.
        data: contents of the buffers that were asked for by size, by offset of their pointer.
    """

    value: int
    arg: bytes
    data: Mapping[int, bytes]


class Guest:
    """A machine that runs the image's kernel, with the agent answering.

    A context manager: entering boots, leaving ends the machine.

    Args:
        image: what to boot.
        options: the machine around it.

    Attributes:
        image: as given.
        options: as given.
        machine: QEMU.
        link: to the agent.
        hello: who answered.
        boot_seconds: from QEMU's start to the agent's first reply.
    """

    machine: Machine
    link: Link
    hello: Hello
    boot_seconds: float

    def __init__(self, image: GuestImage, options: GuestOptions | None = None) -> None:
        self.image = image
        self.options = options or GuestOptions()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        spec = self._spec()
        verdict = choose_accelerator(spec)  # may boot a guest of its own, which is not this one's time
        with ExitStack() as stack:
            started = time.monotonic()
            self.machine = stack.enter_context(Machine(spec, accelerator=verdict))
            self.link = Link(
                self.machine.port(PORT_NAME),
                self.image.link_layouts,
                self.machine.check,
                lambda: self.machine.console.tail(_TAIL),
            )
            self.hello = self._first_reply(started)
            self.boot_seconds = time.monotonic() - started
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def syscall(self, number: int, *args: int | In | Out | InOut, what: str) -> SyscallResult:
        """A system call that has to succeed.

        Args:
            number: x86-64 number.
            args: as for :meth:`Link.syscall`.
            what: the call, as a person would write it.

        Raises:
            GuestOSError: it failed in the guest.
        """
        result = self.link.syscall(number, *args, timeout=self.options.operation_timeout, what=what)
        return result.checked(what)

    def open(self, path: str, flags: int = os.O_RDWR, mode: int = 0o644) -> int:
        """Open a file of the guest; the descriptor stays open until :meth:`close`."""
        return self.syscall(Nr.OPEN, cstring(path), flags | os.O_CLOEXEC, mode, what=f"open {path}").value

    def close(self, fd: int) -> None:
        """Close a descriptor of the guest."""
        self.syscall(Nr.CLOSE, fd, what=f"close {fd}")

    def ioctl(
        self, fd: int, cmd: int, arg: bytes = b"", pointers: Mapping[int, bytes | int] | None = None
    ) -> IoctlResult:
        """An ioctl with a structure as its argument.

        Args:
            fd: descriptor in the guest.
            cmd: request number.
            arg: the structure; empty passes 0.
            pointers: what the pointers inside the structure point to, by their offsets: bytes are passed in,
                a number asks for that many bytes back.

        Raises:
            GuestOSError: the ioctl failed.
            BadInput: a pointer lies outside the structure.
        """
        pointers = pointers or {}
        if pointers and not arg:
            raise BadInput("an ioctl without a structure has no pointers in it")
        targets = {at: Out(data) if isinstance(data, int) else In(data) for at, data in pointers.items()}
        passed: InOut | int = InOut(arg, targets) if arg else 0
        result = self.syscall(Nr.IOCTL, fd, cmd, passed, what=f"ioctl {cmd:#x} on {fd}")
        wanted = [at for at, target in sorted(targets.items()) if isinstance(target, Out)]
        data = dict(zip(wanted, result.outputs[1:], strict=True))
        return IoctlResult(result.value, result.outputs[0] if arg else b"", data)

    def read_file(self, path: str) -> bytes:
        """The whole contents of a file of the guest; works for /proc and /sys."""
        fd = self.open(path, os.O_RDONLY)
        parts: list[bytes] = []
        try:
            while True:
                result = self.syscall(Nr.READ, fd, Out(_CHUNK), _CHUNK, what=f"read {path}")
                if result.value == 0:
                    return b"".join(parts)
                parts.append(result.outputs[0][: result.value])
        finally:
            self.close(fd)

    def write_file(self, path: str, data: bytes) -> None:
        """Create or overwrite a file of the guest; up to 512 KiB arrive as one write, as sysfs wants."""
        fd = self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self._write(fd, data, path)
        finally:
            self.close(fd)

    def load_module(self, ko: bytes, params: str = "") -> None:
        """Load a kernel module.

        Args:
            ko: the object file, uncompressed.
            params: as after ``insmod FILE``.
        """
        fd = self.syscall(Nr.MEMFD_CREATE, cstring("module"), 0, what="memfd_create").value
        try:
            self._write(fd, ko, "module")
            self.syscall(Nr.FINIT_MODULE, fd, cstring(params), 0, what="load module")
        finally:
            self.close(fd)

    def unload_module(self, name: str) -> None:
        """Unload a kernel module; one in use is GuestOSError EAGAIN or EBUSY, nothing is waited for."""
        self.syscall(Nr.DELETE_MODULE, cstring(name), os.O_NONBLOCK, what=f"unload module {name}")

    def _write(self, fd: int, data: bytes, what: str) -> None:
        at = 0
        while at < len(data):
            part = data[at : at + _CHUNK]
            at += self.syscall(Nr.WRITE, fd, In(part), len(part), what=f"write {what}").value

    def _spec(self) -> MachineSpec:
        options = self.options
        return MachineSpec(
            kernel=self.image.kernel.boot_image,
            initrd=self.image.initramfs,
            cmdline=(*_COMMAND_LINE, *options.cmdline),
            memory_mib=options.memory_mib,
            cpus=options.cpus,
            machine=options.machine,
            cpu=options.cpu,
            accel=options.accel,
            ports=(PORT_NAME,),
            devices=options.devices,
        )

    def _first_reply(self, started: float) -> Hello:
        """HELLO goes out at once; QEMU holds it until the agent opens the port."""
        seconds = self.options.boot_timeout
        try:
            return self.link.hello(max(started + seconds - time.monotonic(), 0.0))
        except RequestTimedOut as error:
            machine = self.machine
            raise GuestSilent(
                f"the agent did not answer within {seconds:g} s of QEMU's start",
                seconds=seconds,
                scene=Scene(
                    console=machine.console.tail(_TAIL),
                    argv=machine.argv,
                    repro=machine.repro_command(),
                    workdir=machine.workdir,
                ),
                observed=error.observed,
                hint="the console shows how far the boot came; a slow host needs a longer boot_timeout",
            ) from error
