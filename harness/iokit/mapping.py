# SPDX-License-Identifier: MIT
"""IOMemoryMap: one mapping of a descriptor into one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.iokit.handle import TRANSFER_MAX, Handle
from harness.iokit.held import Held
from harness.iokit.task import Task, TaskLike

if TYPE_CHECKING:
    from harness.iokit.memory import IOGeneralMemoryDescriptor
    from harness.iokit.session import IOKit
    from harness.link import Process


@dataclass(frozen=True)
class MappingDescription:
    """What the module believes about a mapping: a claim, to be compared with evidence.

    Attributes:
        address: first byte of the range, in the task it is mapped in.
        length: bytes.
        offset: bytes into the buffer of the first byte.
        task: where it is; CURRENT is the process the mapping was made for.
        options: what createMappingInTask was given.
        guard: bytes that fault in front of the mapping, and as many behind it.
        own: it aliases the address the buffer lives at itself (clause J02).
        writable: it does not fault on writes.
        areas: user-space areas that show it now.
    """

    address: int
    length: int
    offset: int
    task: Task
    options: int
    guard: int
    own: bool
    writable: bool
    areas: int


class IOMemoryMap(Held):
    """A mapping; keeps its descriptor's buffer alive until it is released itself (clauses A15, J10).

    Use it as a context manager, or call `release`.  Every method raises `harness.link.GuestOSError` when the
    guest refuses the call, and BadInput after `release`.

    `process` is the one whose address space it is in, or that asked for it in the kernel's; mmap(2) of `fd`
    shows the mapping once more.
    """

    def __init__(
        self, session: IOKit, memory: IOGeneralMemoryDescriptor, handle: Handle, task: TaskLike
    ) -> None:
        super().__init__(session, handle)
        self._memory = memory
        self._task = task
        self._first = self.describe()

    # -- Apple's methods ------------------------------------------------------------------------------------

    def getVirtualAddress(self) -> int:
        """Return the address of the first byte, in the task it is mapped in (clauses J01, J08)."""
        return self._first.address

    def getAddress(self) -> int:
        """Return `getVirtualAddress`; Apple has both names."""
        return self._first.address

    def getLength(self) -> int:
        """Return the bytes mapped: the descriptor's length when it was made (clause B11)."""
        return self._first.length

    def getSize(self) -> int:
        """Return `getLength`; Apple has both names."""
        return self._first.length

    def getMapOptions(self) -> int:
        """Return the options it was made with."""
        return self._first.options

    def getMemoryDescriptor(self) -> IOGeneralMemoryDescriptor:
        """Return the descriptor it maps."""
        return self._memory

    def getAddressTask(self) -> TaskLike:
        """Return the task it is mapped in, as createMappingInTask was given it."""
        return self._task

    def unmap(self) -> None:
        """Undo the mapping; Apple's name for what `release` of the last reference does."""
        self.release()

    # -- beside Apple's methods -----------------------------------------------------------------------------

    @property
    def own(self) -> bool:
        """Whether it is no mapping of its own but the buffer's address (clause J02)."""
        return self._first.own

    @property
    def guard(self) -> int:
        """Bytes that fault on each side of it."""
        return self._first.guard

    def describe(self) -> MappingDescription:
        """Return the module's own account of this mapping."""
        reply = self._handle.call("DESCRIBE_MAPPING", "iobmd_mapping")
        names = {value: name for name, value in self._handle.layouts.enum("iobmd_task").items()}
        return MappingDescription(
            address=reply["address"],
            length=reply["length"],
            offset=reply["offset"],
            task=Task(names[reply["task"]]),
            options=reply["options"],
            guard=reply["guard"],
            own=bool(reply["own"]),
            writable=bool(reply["writable"]),
            areas=reply["areas"],
        )

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Read through a mapping in a user task, as the process itself would.

        Raises:
            GuestOSError: EFAULT, the process would have got a signal (clauses J04, K15).
            BadInput: it is a mapping in the kernel; `readLocked` and `harness.oracle` look there.
        """
        return self._user().peek(self._first.address + offset, self._left(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """Write through a mapping in a user task; raises what `read` raises."""
        self._user().poke(self._first.address + offset, data)

    def readLocked(self, offset: int, length: int) -> bytes:
        """Read in the kernel with a lock held, where a page fault cannot be served (clause J09).

        Returns:
            What could be read before the first byte that would have faulted; at most 512 KiB.
        """
        room = min(length, TRANSFER_MAX)
        moved, data = self._handle.transfer("READ_MAPPING_LOCKED", offset, room, room)
        return data[:moved]

    def _left(self, offset: int, length: int | None) -> int:
        return self._first.length - offset if length is None else length

    def _user(self) -> Process:
        if self._first.task is not Task.CURRENT:
            raise BadInput(
                f"{self!r} is in the kernel's address space",
                hint="readLocked(offset, length), or read it from outside with harness.oracle",
            )
        _ = self._handle.fd  # released: say so rather than read what is there now
        return self.process
