# SPDX-License-Identifier: MIT
"""The ioctls behind every object: structures in, structures out, by the built module's own layouts."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

from harness.errors import BadInput
from harness.images import Layouts, StructLayout
from harness.iokit.null import Null
from harness.link import IoctlResult, PeerDied, Process

# One request carries at most this much data; the link's frame limit is 1 MiB with its headers.
TRANSFER_MAX = 512 * 1024

_WORDS = {"u32": "<I", "u64": "<Q"}


class Handle:
    """One file of the module in one process of the guest.

    Args:
        process: whose file it is.
        fd: its descriptor there.
        layouts: of the module.
        label: the call that made it, for people.

    Attributes:
        process: as given.
        layouts: as given.
        label: as given.
    """

    def __init__(self, process: Process, fd: int, layouts: Layouts, label: str) -> None:
        self.process = process
        self.layouts = layouts
        self.label = label
        self._generation = process.generation
        self._fd: int | None = fd
        self._commands = layouts.enum("iobmd_ioctl")

    @property
    def open(self) -> bool:
        """Whether it was not closed yet."""
        return self._fd is not None

    @property
    def fd(self) -> int:
        """Its descriptor.

        Raises:
            BadInput: it was closed, or its guest was restored since.
        """
        if self._fd is None:
            raise BadInput(f"{self.label} was released", hint="keep the object alive while it is used")
        if self.stale:
            raise BadInput(
                f"{self.label} is gone: its guest was restored since", hint="make a new one after a restore"
            )
        return self._fd

    def detach(self) -> int | None:
        """Its descriptor, which is the caller's to close now; None if it was closed."""
        fd, self._fd = self._fd, None
        return fd

    def close(self) -> None:
        """Close it; nothing happens the second time, or when the process is gone and its files with it."""
        fd = self.detach()
        if fd is not None and not self.stale:
            with contextlib.suppress(PeerDied):
                self.process.close(fd)

    @property
    def stale(self) -> bool:
        """Whether its guest was restored since: it is gone, and nothing is to be closed."""
        return self.process.generation != self._generation

    def command(self, name: str) -> int:
        """The request number of ``IOBMD_IOC_<name>``."""
        return self._commands[f"IOBMD_IOC_{name}"]

    def ioctl(self, name: str, arg: bytes, pointers: dict[int, bytes | int] | None = None) -> IoctlResult:
        """Issue ``IOBMD_IOC_<name>``; see `harness.link.Process.ioctl`."""
        return self.process.ioctl(self.fd, self.command(name), arg, pointers or {})

    def get(self, name: str, word: str = "u64") -> int:
        """Issue an ioctl that returns one number, ``u32`` or ``u64``."""
        form = _WORDS[word]
        return int(struct.unpack(form, self.ioctl(name, bytes(struct.calcsize(form))).arg)[0])

    def put(self, name: str, value: int, word: str = "u64") -> None:
        """Issue an ioctl that takes one number.

        Raises:
            BadInput: the number has more bits than Apple's argument.
        """
        try:
            packed = struct.pack(_WORDS[word], value)
        except struct.error as error:
            raise BadInput(f"{name.lower()}({value}): {error}") from error
        self.ioctl(name, packed)

    def call(self, name: str, struct_name: str, **fields: int) -> dict[str, Any]:
        """Issue an ioctl with a structure; its fields afterwards."""
        layout = self.layouts.struct(struct_name)
        return layout.unpack(self.ioctl(name, layout.pack(**fields)).arg)

    def transfer(self, name: str, offset: int, length: int, data: bytes | int | None) -> tuple[int, bytes]:
        """Issue an ioctl with ``struct iobmd_transfer``.

        Args:
            name: of the ioctl.
            offset: bytes.
            length: bytes asked for.
            data: bytes to pass in, a number of bytes to get back, or None for a NULL pointer.

        Returns:
            The call's result, and what came back.
        """
        layout = self.layouts.struct("iobmd_transfer")
        arg = layout.pack(offset=offset, length=length)
        where = layout.fields["bytes"].offset
        reply = self.ioctl(name, arg, {} if data is None else {where: data})
        return integers(layout, reply.arg)["result"], reply.data.get(where, b"")

    def transfer_from(self, name: str, length: int, address: int) -> int:
        """As `transfer` at offset 0, with the address of the process's own memory as the pointer."""
        return int(self.call(name, "iobmd_transfer", length=length, bytes=address)["result"])


def integers(layout: StructLayout, data: bytes) -> dict[str, int]:
    """Return the scalar fields of *data* laid out as *layout*; arrays are left out."""
    return {name: value for name, value in layout.unpack(data).items() if isinstance(value, int)}


def null_from(call: str, reply: dict[str, Any]) -> Null:
    """The NULL a structure with ``error`` and ``reason`` describes."""
    reason: bytes = reply["reason"]
    return Null(call, int(reply["error"]), reason.split(b"\0", 1)[0].decode(errors="replace"))
