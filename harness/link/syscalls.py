# SPDX-License-Identifier: MIT
"""System calls by remote control: buffers into an arena, the answer back out of it."""

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.link.errors import ChannelBroken, GuestOSError

if TYPE_CHECKING:
    from harness.link.frames import Protocol

# Natural alignment of the largest scalar a system call structure holds.
_ALIGN = 8
_ARGUMENTS = 6
_POINTER = 8
_MAX_ERRNO = 4095

POLLFD = struct.Struct("<ihh")
"""struct pollfd: descriptor, events asked for, events seen."""

POLLIN = 1


class Nr(enum.IntEnum):
    """x86-64 system call numbers used here (arch/x86/entry/syscalls/syscall_64.tbl)."""

    READ = 0
    WRITE = 1
    OPEN = 2
    CLOSE = 3
    POLL = 7
    MMAP = 9
    MPROTECT = 10
    MUNMAP = 11
    IOCTL = 16
    PREAD64 = 17
    PWRITE64 = 18
    ACCESS = 21
    PIPE = 22
    NANOSLEEP = 35
    GETPID = 39
    EXIT = 60
    KILL = 62
    UNAME = 63
    MKDIR = 83
    SYMLINK = 88
    MOUNT = 165
    DELETE_MODULE = 176
    CLOCK_GETTIME = 228
    FINIT_MODULE = 313
    MEMFD_CREATE = 319
    PIDFD_SEND_SIGNAL = 424
    PIDFD_OPEN = 434
    PIDFD_GETFD = 438


_NAMES: dict[int, str] = {number.value: number.name.lower() for number in Nr}


@dataclass(frozen=True)
class In:
    """Bytes the guest's kernel reads.

    Attributes:
        data: the contents.
        pointers: buffers whose addresses are stored in ``data``, by offset.
    """

    data: bytes
    pointers: Mapping[int, "Buffer"] = field(default_factory=dict)


@dataclass(frozen=True)
class Out:
    """Room the guest's kernel fills; starts as zeros.

    Attributes:
        size: bytes.
    """

    size: int


@dataclass(frozen=True)
class InOut:
    """Bytes the guest's kernel reads and changes; fields as in :class:`In`."""

    data: bytes
    pointers: Mapping[int, "Buffer"] = field(default_factory=dict)


Buffer = In | Out | InOut
Argument = int | Buffer


@dataclass(frozen=True)
class SyscallResult:
    """What a system call returned.

    Attributes:
        value: raw; -4095..-1 is a negated errno.
        outputs: one per ``Out`` and ``InOut``, in order of the arguments; a buffer comes before those it
            points to, and those come by ascending offset.
    """

    value: int
    outputs: tuple[bytes, ...]

    def checked(self, what: str) -> "SyscallResult":
        """This result, if it is a success.

        Args:
            what: the call, as a person would write it.

        Raises:
            GuestOSError: it is a negated errno.
        """
        if -_MAX_ERRNO <= self.value < 0:
            raise GuestOSError(-self.value, what)
        return self


def cstring(text: str) -> In:
    """A path or name, NUL-terminated."""
    return In(text.encode() + b"\0")


@dataclass
class _Region:
    buffer: Buffer
    argument: int | None  # the argument it is, or
    parent: "_Region | None"  # the region that points to it
    place: int
    offset: int = 0

    @property
    def size(self) -> int:
        return self.buffer.size if isinstance(self.buffer, Out) else len(self.buffer.data)


class Call:
    """One request: the payload to send, and how to read the answer.

    Inputs come first in the arena, then what goes both ways, then outputs: only the front travels there and
    only the back travels back.

    Raises:
        BadInput: more than six arguments, a pointer outside its buffer.
    """

    def __init__(self, protocol: "Protocol", number: int, args: Sequence[Argument]) -> None:
        if len(args) > _ARGUMENTS:
            raise BadInput(f"a system call takes at most {_ARGUMENTS} arguments, not {len(args)}")
        self.name = f"system call {number}" if number not in _NAMES else f"{_NAMES[number]}()"
        self._protocol = protocol
        self._regions: list[_Region] = []
        values = [0] * _ARGUMENTS
        for index, arg in enumerate(args):
            if isinstance(arg, int):
                values[index] = arg & 0xFFFF_FFFF_FFFF_FFFF
            else:
                self._collect(arg, index, None, 0)
        self._place()
        filled = bytearray(self._filled)
        for region in self._regions:
            if not isinstance(region.buffer, Out):
                filled[region.offset : region.offset + region.size] = region.buffer.data
        head = protocol.call_record.pack(
            number=number,
            args=tuple(values),
            relocs=len(self._regions),
            filled=self._filled,
            arena=self._arena,
            out_start=self._out_start,
            out_length=self._arena - self._out_start,
        )
        self.payload = b"".join((head, *map(self._reloc, self._regions), filled))

    def result(self, payload: bytes) -> SyscallResult:
        """Take the agent's reply apart.

        Raises:
            ChannelBroken: it is not as long as what was asked for.
        """
        record = self._protocol.result_record
        expected = record.size + self._arena - self._out_start
        if len(payload) != expected:
            raise ChannelBroken(f"{self.name}: a reply of {len(payload)} bytes where {expected} were due")
        base = record.size - self._out_start
        outputs = tuple(
            payload[base + region.offset : base + region.offset + region.size]
            for region in self._regions
            if not isinstance(region.buffer, In)
        )
        return SyscallResult(record.unpack(payload)["result"], outputs)

    def _collect(self, buffer: Buffer, argument: int | None, parent: _Region | None, place: int) -> None:
        region = _Region(buffer, argument, parent, place)
        self._regions.append(region)
        if isinstance(buffer, Out):
            return
        for offset, target in sorted(buffer.pointers.items()):
            if not 0 <= offset <= len(buffer.data) - _POINTER:
                raise BadInput(
                    f"{self.name}: no room for a pointer at offset {offset}",
                    observed=f"{len(buffer.data)} bytes",
                )
            self._collect(target, None, region, offset)

    def _place(self) -> None:
        end = self._filled = self._out_start = 0
        for kind in (In, InOut, Out):
            for region in self._regions:
                if isinstance(region.buffer, kind):
                    region.offset = -(-end // _ALIGN) * _ALIGN
                    end = region.offset + region.size
            if kind is In:
                self._out_start = end
            if kind is InOut:
                self._filled = end
        self._arena = end

    def _reloc(self, region: _Region) -> bytes:
        if region.parent is None:
            kind, place = self._protocol.reloc_arg, region.argument
        else:
            kind, place = self._protocol.reloc_arena, region.parent.offset + region.place
        return self._protocol.reloc_record.pack(kind=kind, place=place, target=region.offset)
