# SPDX-License-Identifier: MIT
"""A user process of the guest that makes system calls for the host, and everyday ones among them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from harness.errors import BadInput
from harness.images import GuestImage
from harness.link.batch import Batch
from harness.link.errors import GuestOSError
from harness.link.link import Hello, Link, PendingCall
from harness.link.memory import PROT_READ, PROT_WRITE, Stage, UserMemory, map_memory
from harness.link.syscalls import Buffer, In, InOut, Nr, Out, SyscallResult, cstring

_CHUNK = 512 * 1024
_FIRST_CHUNK = 8 * 1024


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


class PendingIoctl:
    """An ioctl in flight."""

    def __init__(self, call: PendingCall, has_arg: bool, wanted: tuple[int, ...], what: str) -> None:
        self._call = call
        self._has_arg = has_arg
        self._wanted = wanted
        self._what = what

    def wait(self, timeout: float) -> IoctlResult:
        """What it left behind.

        Raises:
            GuestOSError: the ioctl failed.
        """
        result = self._call.wait(timeout).checked(self._what)
        if not self._has_arg:
            return IoctlResult(result.value, b"", {})
        data = dict(zip(self._wanted, result.outputs[1:], strict=True))
        return IoctlResult(result.value, result.outputs[0], data)


class Process:
    """A process of the guest behind a link: its descriptors, its memory, its calls.

    `Guest` is one, the agent; `Guest.peer` is a second.

    Attributes:
        image: what the guest was booted from.
        link: to the process.
        hello: who answers.
        operation_timeout: seconds for one system call.
        generation: how often the process was replaced by another, as a restore of its guest does; what was
            opened in an earlier one is gone.
    """

    image: GuestImage
    link: Link
    hello: Hello
    operation_timeout: float = 30.0

    def __init__(self) -> None:
        self.generation = 0
        self._stage: Stage | None = None
        self._stage_lock = threading.Lock()

    @property
    def pid(self) -> int:
        """Its process id in the guest; 1 is the agent's."""
        return self.hello.pid

    # -- calls ----------------------------------------------------------------------------------------------

    def syscall(self, number: int, *args: int | In | Out | InOut, what: str) -> SyscallResult:
        """A system call that has to succeed.

        Args:
            number: x86-64 number.
            args: as for :meth:`Link.syscall`.
            what: the call, as a person would write it.

        Raises:
            GuestOSError: it failed in the guest.
        """
        result = self.link.syscall(number, *args, timeout=self.operation_timeout, what=what)
        return result.checked(what)

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
        return self.start_ioctl(fd, cmd, arg, pointers).wait(self.operation_timeout)

    def start_ioctl(
        self, fd: int, cmd: int, arg: bytes = b"", pointers: Mapping[int, bytes | int] | None = None
    ) -> PendingIoctl:
        """Send an :meth:`ioctl` and go on; several in flight may be executed in any order."""
        pointers = pointers or {}
        if pointers and not arg:
            raise BadInput("an ioctl without a structure has no pointers in it")
        targets: dict[int, Buffer] = {
            at: Out(data) if isinstance(data, int) else In(data) for at, data in pointers.items()
        }
        passed: InOut | int = InOut(arg, targets) if arg else 0
        what = f"ioctl {cmd:#x} on {fd}"
        wanted = tuple(at for at, target in sorted(targets.items()) if isinstance(target, Out))
        return PendingIoctl(self.link.start(Nr.IOCTL, fd, cmd, passed, what=what), bool(arg), wanted, what)

    def batch(self, rows: int) -> Batch:
        """Make room for the same system calls many times over, in a few trips.

        For example the size of a hundred files::

            batch = guest.batch(100)
            sizes = batch.outputs(stat_dtype)
            batch.call(Nr.FSTAT, fds, sizes, what="fstat")
            batch.run()
            batch.check()
            sizes.records["st_size"]

        Args:
            rows: how many times.

        Raises:
            BadInput: fewer than one.
        """
        return Batch(self.link, rows, self.operation_timeout)

    # -- files ----------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int = os.O_RDWR, mode: int = 0o644) -> int:
        """Open a file of the guest; the descriptor stays open until :meth:`close`."""
        return self.syscall(Nr.OPEN, cstring(path), flags | os.O_CLOEXEC, mode, what=f"open {path}").value

    def close(self, fd: int) -> None:
        """Close a descriptor of the guest."""
        self.syscall(Nr.CLOSE, fd, what=f"close {fd}")

    def read_file(self, path: str) -> bytes:
        """The whole contents of a file of the guest; works for /proc and /sys."""
        fd = self.open(path, os.O_RDONLY)
        parts: list[bytes] = []
        room = _FIRST_CHUNK  # all of the room comes back with the reply, used or not
        try:
            while True:
                result = self.syscall(Nr.READ, fd, Out(room), room, what=f"read {path}")
                if result.value == 0:
                    return b"".join(parts)
                parts.append(result.outputs[0][: result.value])
                if result.value == room:
                    room = min(room * 8, _CHUNK)
        finally:
            self.close(fd)

    def write_file(self, path: str, data: bytes) -> None:
        """Create or overwrite a file of the guest; up to 512 KiB arrive as one write, as sysfs wants."""
        fd = self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.write_all(fd, data, path)
        finally:
            self.close(fd)

    def write_all(self, fd: int, data: bytes, what: str) -> None:
        """Write all of *data* to a descriptor of the guest.

        Args:
            fd: where to.
            data: what.
            what: what to call it in errors.
        """
        at = 0
        while at < len(data):
            part = data[at : at + _CHUNK]
            at += self.syscall(Nr.WRITE, fd, In(part), len(part), what=f"write {what}").value

    def take(self, fd: int, owner: Process) -> int:
        """Duplicate a descriptor of another process into this one (pidfd_getfd(2)).

        Args:
            fd: the descriptor over there.
            owner: whose it is.

        Returns:
            Its number here; both stay open.

        Raises:
            GuestOSError: there is no such descriptor, or the owner is gone.
        """
        what = f"take descriptor {fd} of process {owner.pid}"
        pidfd = self.syscall(Nr.PIDFD_OPEN, owner.pid, 0, what=what).value
        try:
            return self.syscall(Nr.PIDFD_GETFD, pidfd, fd, 0, what=what).value
        finally:
            self.close(pidfd)

    # -- memory ---------------------------------------------------------------------------------------------

    @contextmanager
    def memory(self, contents: bytes | int, prot: int = PROT_READ | PROT_WRITE) -> Iterator[UserMemory]:
        """Map fresh memory in this process for as long as the block runs.

        Args:
            contents: the bytes it starts with, of any size; or a number of zero bytes.
            prot: ``PROT_*`` bits it has in the block.

        Yields:
            The memory; its ``address`` can be put into a structure as a pointer.

        Raises:
            GuestOSError: the guest has no room for it.
        """
        size = contents if isinstance(contents, int) else len(contents)
        with map_memory(self, size, prot, b"" if isinstance(contents, int) else contents) as mapped:
            yield mapped

    def peek(self, address: int, size: int) -> bytes:
        """Read memory of this process by its own page tables, as one of its threads would.

        The kernel copies from the address on the process's behalf, so what an instruction would fault on is
        an error here and no signal; device memory and memory of drivers work.

        Raises:
            GuestOSError: EFAULT, some byte of it cannot be read.
        """
        return self._staged().read(address, size)

    def poke(self, address: int, data: bytes) -> None:
        """Write memory of this process by its own page tables; see :meth:`peek`.

        Raises:
            GuestOSError: EFAULT, some byte of it cannot be written; those before it have been.
        """
        self._staged().write(address, data)

    def faults(self, address: int, size: int = 1, *, write: bool = False) -> bool:
        """Whether an access of *size* bytes would fault; a trial write writes back what it read."""
        try:
            data = self.peek(address, size)
            if write:
                self.poke(address, data)
        except GuestOSError as error:
            if error.observed != "EFAULT":
                raise
            return True
        return False

    def _begin_anew(self) -> None:
        """Another process takes this one's place: none of its descriptors is one of ours."""
        with self._stage_lock:
            self.generation += 1
            self._stage = None

    def _staged(self) -> Stage:
        with self._stage_lock:
            if self._stage is None:
                self._stage = Stage(self)
            return self._stage
