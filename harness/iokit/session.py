# SPDX-License-Identifier: MIT
"""One IOKit object speaks to /dev/iobmd for one process of one guest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput, GuestFailure
from harness.images import Layouts
from harness.iokit import constants
from harness.iokit.batch import Batch
from harness.iokit.buffers import Buffers
from harness.iokit.custody import Custody
from harness.iokit.descriptor import IOBufferMemoryDescriptor
from harness.iokit.factories import Factories, Request
from harness.iokit.handle import TRANSFER_MAX, Handle, null_from
from harness.iokit.held import Releasable
from harness.iokit.mapping import IOMemoryMap
from harness.iokit.memory import IOGeneralMemoryDescriptor
from harness.iokit.null import Null
from harness.iokit.task import Context, Task, TaskLike, task_name
from harness.link import Batch as Calls
from harness.link import IoctlResult, Process

_DEVICE = "/dev/iobmd"
_ENUMS = (
    "iobmd_direction", "iobmd_option", "iobmd_flag", "iobmd_cache_mode", "iobmd_map_option",
    "iobmd_driverkit_map_option", "iobmd_purgeable_state", "iobmd_operation_code", "iobmd_return",
)  # fmt: skip


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


class IOKit(Factories):
    """Creates descriptors on behalf of one process and releases what is left of them.

    Args:
        process: a booted guest whose image carries the module, or its ``peer``.

    Attributes:
        process: as given; it holds every descriptor made here, and is Apple's ``current_task()``.
        layouts: of the module.

    Raises:
        BadInput: the module in the guest was built with other constants than `harness.iokit.constants`.
        GuestOSError: /dev/iobmd cannot be opened.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.layouts: Layouts = process.image.layouts
        constants.verify_against(*(self.layouts.enum(name) for name in _ENUMS))
        self._context = Context.PROCESS
        # In the order they were made.  Mappings are released first: the last reference may be theirs.
        self._alive: dict[int, IOBufferMemoryDescriptor | Buffers] = {}
        self._maps: dict[int, IOMemoryMap] = {}
        self._companions: dict[int, IOKit] = {}
        self._custody = Custody()
        self._device: Handle | None = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, GuestFailure):
            with suppress(GuestFailure):  # the guest is dead, and what is on its way says so
                self.close()
        else:
            self.close()

    # -- beside the factories -------------------------------------------------------------------------------

    @contextmanager
    def calledFrom(self, context: Context) -> Iterator[None]:
        """Have the factories called from somewhere else in the kernel while the block runs (clause A14).

        Args:
            context: where sleeping is allowed, or one of the places where it is not.
        """
        before, self._context = self._context, context
        try:
            yield
        finally:
            self._context = before

    def batch(self, count: int) -> Batch:
        """The factories for *count* buffers at a time, in a few requests to the guest.

        For example ``iobmd.batch(1000).withOptions(kIODirectionInOut, 65536).getPhysicalSegment(0)``.

        Raises:
            BadInput: fewer than one.
        """
        return Batch(self, count)

    def info(self) -> ModuleInfo:
        """Return what the module says about itself."""
        reply = self._open_device().call("INFO", "iobmd_info")
        names = self.layouts.enum("iobmd_memory_type").items()
        return ModuleInfo(
            abi_version=reply["abi_version"],
            live=reply["live"],
            types=frozenset(
                name.removeprefix("IOBMD_TYPE_") for name, bit in names if reply["types"] >> bit & 1
            ),
        )

    @property
    def device(self) -> int:
        """The process's descriptor of /dev/iobmd."""
        return self._open_device().fd

    @property
    def alive(self) -> tuple[IOBufferMemoryDescriptor, ...]:
        """The descriptors made here and not released yet, oldest first."""
        flat: list[IOBufferMemoryDescriptor] = []
        for made in self._alive.values():
            each = made if isinstance(made, Buffers) else (made,)
            flat += (one for one in each if isinstance(one, IOBufferMemoryDescriptor) and one.handle.open)
        return tuple(flat)

    @property
    def maps(self) -> tuple[IOMemoryMap, ...]:
        """The mappings made here and not released yet, oldest first."""
        return tuple(self._maps.values())

    def release_all(self) -> int:
        """Release every mapping and descriptor made here; return how many descriptors there were.

        They are closed together, in a few requests to the guest.
        """
        self._custody.settle()
        self._custody.close_handles([mapping.handle for mapping in self._maps.values()])
        self._maps.clear()
        count = 0
        singles = [made for made in self._alive.values() if not isinstance(made, Buffers)]
        for made in list(self._alive.values()):
            if isinstance(made, Buffers):
                count += made.living.size
                made.release()
        self._custody.close_handles([made.handle for made in singles])
        self._alive.clear()
        return count + len(singles)

    def close(self) -> None:
        """Release everything and close the device; a second call does nothing."""
        if self._device is None:
            return
        self.release_all()
        device, self._device = self._device, None
        device.close()
        companions, self._companions = self._companions, {}
        for companion in companions.values():
            companion.close()

    def ioctl(
        self, fd: int, name: str, arg: bytes, pointers: dict[int, bytes | int] | None = None
    ) -> IoctlResult:
        """Issue ``IOBMD_IOC_<name>`` on any descriptor of the process; see `harness.link.Process.ioctl`."""
        command = self.layouts.enum("iobmd_ioctl")[f"IOBMD_IOC_{name}"]
        return self.process.ioctl(fd, command, arg, pointers or {})

    # -- for the objects made here --------------------------------------------------------------------------

    def forget(self, made: Releasable) -> None:
        """Stop owning what releases itself."""
        self._alive.pop(id(made), None)
        self._maps.pop(id(made), None)

    def adopt_all(self, buffers: Buffers) -> Buffers:
        """Own buffers that were just made."""
        self._alive[id(buffers)] = buffers
        return buffers

    def making(self, batch: Calls, fds: NDArray[np.int32]) -> AbstractContextManager[None]:
        """Own what a batch of factory calls makes until somebody adopts it; see `Custody.making`."""
        return self._custody.making(self.process, batch, fds)

    def close_rows(self, fds: NDArray[np.int32], rows: NDArray[np.intp]) -> None:
        """Close many descriptors of the process; see `Custody.close_rows`."""
        self._custody.close_rows(self.process, fds, rows)

    @property
    def context_number(self) -> int:
        """Where the factories are called from now, as the ABI's number; see `calledFrom`."""
        return self.layouts.enum("iobmd_context")[self._context.value]

    def adopt_mapping(self, memory: IOGeneralMemoryDescriptor, handle: Handle, task: TaskLike) -> IOMemoryMap:
        """Own a mapping that was just made."""
        mapping = IOMemoryMap(self, memory, handle, task)
        self._maps[id(mapping)] = mapping
        return mapping

    def create_mapping(
        self,
        memory: IOGeneralMemoryDescriptor,
        task: TaskLike,
        address: int,
        options: int,
        offset: int,
        length: int,
    ) -> IOMemoryMap | Null:
        """Carry out createMappingInTask; a mapping into another process is asked for by that process."""
        label = f"createMappingInTask({task_name(task)}, {address:#x}, {options:#x}, {offset}, {length})"
        owner, role = self._locate(task)
        taken = owner is not memory.process
        fd = owner.take(memory.fd, memory.process) if taken else memory.fd
        asked = Handle(owner, fd, self.layouts, memory.label)
        try:
            reply = asked.call(
                "CREATE_MAPPING", "iobmd_create_mapping",
                task=self._task_number(role), options=options, address=address, offset=offset, length=length,
            )  # fmt: skip
        finally:
            if taken:
                asked.close()
        if reply["fd"] < 0:
            return null_from(label, reply)
        return self.adopt_mapping(memory, Handle(owner, reply["fd"], self.layouts, label), task)

    # -- plumbing -------------------------------------------------------------------------------------------

    def _open(self) -> Handle:
        fd = self.process.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        return Handle(self.process, fd, self.layouts, "this IOKit session")

    def _open_device(self) -> Handle:
        if self._device is None:
            raise BadInput("this IOKit session is closed", hint="make a new IOKit(guest)")
        return self._device

    def _locate(self, task: TaskLike) -> tuple[Process, Task]:
        """The process that has to make the call, and the task's role as that process sees it."""
        if isinstance(task, Task):
            return self.process, task
        return task, Task.CURRENT

    def _task_number(self, task: Task) -> int:
        return self.layouts.enum("iobmd_task")[task.value]

    def _companion(self, process: Process) -> IOKit:
        """A session of another process of the guest, for calls only that process can make."""
        if process is self.process:
            return self
        known = self._companions.get(id(process))
        if known is None:
            known = self._companions[id(process)] = IOKit(process)
        return known

    def _create(self, request: Request) -> tuple[int, IOBufferMemoryDescriptor | Null]:
        owner, role = self._locate(request.task)
        owner = request.caller or owner
        device = self._companion(owner)._open_device()
        layout = self.layouts.struct("iobmd_create")
        arguments: dict[str, Any] = {
            "factory": self.layouts.enum("iobmd_factory")[request.factory],
            "task": self._task_number(role),
            "context": self.context_number,
            **request.fields,
        }
        data = request.data
        if data is not None and len(data) > TRANSFER_MAX:
            with owner.memory(data) as source:
                reply = device.ioctl("CREATE", layout.pack(**arguments, bytes=source.address))
        else:
            pointers: dict[int, bytes | int] = {} if data is None else {layout.fields["bytes"].offset: data}
            reply = device.ioctl("CREATE", layout.pack(**arguments), pointers)
        return self._made(request.call, owner, layout.unpack(reply.arg))

    def _made(
        self, call: str, owner: Process, reply: dict[str, Any]
    ) -> tuple[int, IOBufferMemoryDescriptor | Null]:
        if reply["fd"] < 0:
            return reply["code"], null_from(call, reply)
        fd: int = reply["fd"]
        if owner is not self.process:
            fd = self.process.take(reply["fd"], owner)
            owner.close(reply["fd"])
        descriptor = IOBufferMemoryDescriptor(self, Handle(self.process, fd, self.layouts, call))
        self._alive[id(descriptor)] = descriptor
        return reply["code"], descriptor
