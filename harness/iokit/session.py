# SPDX-License-Identifier: MIT
"""The factories: one IOKit object speaks to /dev/iobmd of one guest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

from harness.errors import BadInput
from harness.images import Layouts
from harness.iokit import constants
from harness.iokit.descriptor import IOBufferMemoryDescriptor, integers
from harness.iokit.null import Null
from harness.link import Guest, IoctlResult

_DEVICE = "/dev/iobmd"


class Task(Enum):
    """The ``task_t`` a factory is given; the value names the ABI's enumerator."""

    NULL = "IOBMD_TASK_NULL"
    KERNEL = "IOBMD_TASK_KERNEL"
    CURRENT = "IOBMD_TASK_CURRENT"


kernel_task = Task.KERNEL
"""Apple's name for the kernel's own task."""


@dataclass(frozen=True)
class ModuleInfo:
    """What the module says about itself.

    Attributes:
        abi_version: of the header it was built with.
        live: descriptors that exist now.
        types: names of the memory types this CPU's PAT can express, by the module's account.
    """

    abi_version: int
    live: int
    types: frozenset[str]


class IOKit:
    """Creates descriptors in one guest and releases what is left of them.

    Args:
        guest: a booted guest whose image carries the module.

    Raises:
        BadInput: the module in the guest was built with other constants than `harness.iokit.constants`.
        GuestOSError: /dev/iobmd cannot be opened.
    """

    def __init__(self, guest: Guest) -> None:
        self.layouts: Layouts = guest.image.layouts
        constants.verify_against(
            *(self.layouts.enum(name) for name in ("iobmd_direction", "iobmd_option", "iobmd_cache_mode"))
        )
        self._guest = guest
        self._commands = self.layouts.enum("iobmd_ioctl")
        self._alive: dict[int, IOBufferMemoryDescriptor] = {}
        self._device: int | None = guest.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- Apple's factories ----------------------------------------------------------------------------------

    def withOptions(self, options: int, capacity: int, alignment: int = 1) -> IOBufferMemoryDescriptor | Null:
        """Create a buffer in the kernel's task (clauses A01 to A03).

        Args:
            options: direction, buffer options and cache mode in one word.
            capacity: bytes.
            alignment: bytes; a minimum on the buffer's address (clause C01).
        """
        return self._create(
            f"withOptions({options:#x}, {capacity}, {alignment})",
            factory="IOBMD_WITH_OPTIONS", options=options, capacity=capacity, alignment=alignment,
        )  # fmt: skip

    def inTaskWithOptions(
        self, inTask: Task, options: int, capacity: int, alignment: int = 1
    ) -> IOBufferMemoryDescriptor | Null:
        """Create a buffer in *inTask* (clauses A03, A09); the other arguments are withOptions's."""
        return self._create(
            f"inTaskWithOptions({inTask.name}, {options:#x}, {capacity}, {alignment})",
            factory="IOBMD_IN_TASK_WITH_OPTIONS", options=options, capacity=capacity, alignment=alignment,
            task=self.layouts.enum("iobmd_task")[inTask.value],
        )  # fmt: skip

    def withCapacity(
        self, capacity: int, inDirection: int, contiguous: bool = False
    ) -> IOBufferMemoryDescriptor | Null:
        """Create a buffer of *capacity* bytes (clause G07); *contiguous* aligns it to its capacity (D08)."""
        return self._create(
            f"withCapacity({capacity}, {inDirection:#x}, {contiguous})",
            factory="IOBMD_WITH_CAPACITY", options=inDirection, capacity=capacity, contiguous=int(contiguous),
        )  # fmt: skip

    def withBytes(
        self, data: bytes, inDirection: int, contiguous: bool = False
    ) -> IOBufferMemoryDescriptor | Null:
        """Create a buffer that holds a copy of *data* (clauses G03 to G06)."""
        return self._create(
            f"withBytes({len(data)} bytes, {inDirection:#x}, {contiguous})",
            factory="IOBMD_WITH_BYTES", options=inDirection, capacity=len(data), contiguous=int(contiguous),
            data=data,
        )  # fmt: skip

    # -- beside the factories -------------------------------------------------------------------------------

    def info(self) -> ModuleInfo:
        """Return what the module says about itself."""
        layout = self.layouts.struct("iobmd_info")
        reply = integers(layout, self.ioctl(self._open_device(), "INFO", layout.pack()).arg)
        names = self.layouts.enum("iobmd_memory_type").items()
        return ModuleInfo(
            abi_version=reply["abi_version"],
            live=reply["live"],
            types=frozenset(
                name.removeprefix("IOBMD_TYPE_") for name, bit in names if reply["types"] >> bit & 1
            ),
        )

    @property
    def alive(self) -> tuple[IOBufferMemoryDescriptor, ...]:
        """The descriptors made here and not released yet, oldest first."""
        return tuple(self._alive.values())

    def release_all(self) -> int:
        """Release every descriptor made here and still alive; return how many there were."""
        left = self.alive
        for descriptor in left:
            descriptor.release()
        return len(left)

    def close(self) -> None:
        """Release all descriptors and close the device; a second call does nothing."""
        if self._device is None:
            return
        self.release_all()
        device, self._device = self._device, None
        self._guest.close(device)

    def ioctl(
        self, fd: int, name: str, arg: bytes, pointers: dict[int, bytes | int] | None = None
    ) -> IoctlResult:
        """Issue ``IOBMD_IOC_<name>`` on a descriptor of the guest; see `harness.link.Guest.ioctl`."""
        return self._guest.ioctl(fd, self._commands[f"IOBMD_IOC_{name}"], arg, pointers or {})

    def forget(self, descriptor: IOBufferMemoryDescriptor, fd: int) -> None:
        """Close *descriptor*'s file in the guest; called by its `release`."""
        if self._alive.get(fd) is descriptor:
            del self._alive[fd]
            self._guest.close(fd)

    def _open_device(self) -> int:
        if self._device is None:
            raise BadInput("this IOKit session is closed", hint="make a new IOKit(guest)")
        return self._device

    def _create(
        self, call: str, *, factory: str, data: bytes | None = None, **fields: int
    ) -> IOBufferMemoryDescriptor | Null:
        layout = self.layouts.struct("iobmd_create")
        arg = layout.pack(factory=self.layouts.enum("iobmd_factory")[factory], **fields)
        pointers: dict[int, bytes | int] = {} if data is None else {layout.fields["bytes"].offset: data}
        made = self.ioctl(self._open_device(), "CREATE", arg, pointers).arg
        reply = integers(layout, made)
        if reply["fd"] < 0:
            reason = layout.unpack(made)["reason"]
            text = reason.split(b"\0", 1)[0].decode(errors="replace") if isinstance(reason, bytes) else ""
            return Null(call, reply["error"], text)
        descriptor = IOBufferMemoryDescriptor(self, reply["fd"], call)
        self._alive[reply["fd"]] = descriptor
        return descriptor
