# SPDX-License-Identifier: MIT
"""Every way Apple's class makes a buffer.

C++ factories return an object or NULL and never a code (clause A04); `Null` adds the reason they keep to
themselves.  Only DriverKit's Create has a code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.errors import BadInput
from harness.iokit.descriptor import IOBufferMemoryDescriptor
from harness.iokit.driverkit import Created
from harness.iokit.null import Null
from harness.iokit.returns import IOReturn
from harness.iokit.task import Task, TaskLike, kernel_task, task_name
from harness.link import Process

Made = IOBufferMemoryDescriptor | Null


@dataclass(frozen=True)
class Request:
    """One factory call.

    Attributes:
        call: as it would be written.
        factory: the ABI's enumerator.
        fields: arguments, by the names of ``struct iobmd_create``.
        task: the ``task_t``.
        data: bytes for the structure's pointer.
        caller: the process that has to make it, where *task* does not say.
    """

    call: str
    factory: str
    fields: Mapping[str, int] = field(default_factory=dict)
    task: TaskLike = kernel_task
    data: bytes | None = None
    caller: Process | None = None


class Factories(ABC):
    """The factories, whoever carries their requests out."""

    process: Process

    @abstractmethod
    def _create(self, request: Request) -> tuple[int, Made]:
        """Carry a request out; the code it returned and what it made."""

    def withOptions(self, options: int, capacity: int, alignment: int = 1) -> Made:
        """Create a buffer in the kernel's task (clauses A01 to A03).

        Args:
            options: direction, buffer options and cache mode in one word.
            capacity: bytes.
            alignment: bytes; a minimum on the buffer's address (clause C01).
        """
        return self._create(
            Request(
                f"withOptions({options:#x}, {capacity}, {alignment})",
                "IOBMD_WITH_OPTIONS",
                {"options": options, "capacity": capacity, "alignment": alignment},
            )
        )[1]

    def inTaskWithOptions(
        self,
        inTask: TaskLike,
        options: int,
        capacity: int,
        alignment: int = 1,
        kernTag: int | None = None,
        userTag: int | None = None,
    ) -> Made:
        """Create a buffer in *inTask*, by either overload (clauses A03, A09 to A12, A16).

        Args:
            inTask: the kernel's task, NULL, or a process; a process needs kIOMemoryPageable.
            options: as for `withOptions`.
            capacity: bytes.
            alignment: bytes.
            kernTag: accounting tag, cut to 16 bits; given, the overload with tags is called.
            userTag: as *kernTag*; the two come together.

        Raises:
            BadInput: one tag without the other.
        """
        call = f"inTaskWithOptions({task_name(inTask)}, {options:#x}, {capacity}, {alignment}"
        fields = {"options": options, "capacity": capacity, "alignment": alignment}
        if kernTag is None and userTag is None:
            return self._create(Request(f"{call})", "IOBMD_IN_TASK_WITH_OPTIONS", fields, inTask))[1]
        if kernTag is None or userTag is None:
            raise BadInput("inTaskWithOptions takes both tags or none", hint="give kernTag and userTag")
        fields |= {"kernel_tag": kernTag, "user_tag": userTag}
        tagged = f"{call}, {kernTag}, {userTag})"
        return self._create(Request(tagged, "IOBMD_IN_TASK_WITH_OPTIONS_TAGGED", fields, inTask))[1]

    def inTaskWithPhysicalMask(
        self, inTask: TaskLike, options: int, capacity: int, physicalMask: int
    ) -> Made:
        """Create a buffer whose pages have only address bits of a mask (clauses A10, D09 to D21).

        Args:
            inTask: as for `inTaskWithOptions`; NULL gives an unmapped buffer for DMA.
            options: as for `withOptions`.
            capacity: bytes.
            physicalMask: bits a physical address may have; its low zero bits ask for alignment, 0 is no mask.
        """
        return self._create(
            Request(
                f"inTaskWithPhysicalMask({task_name(inTask)}, {options:#x}, {capacity}, {physicalMask:#x})",
                "IOBMD_IN_TASK_WITH_PHYSICAL_MASK",
                {"options": options, "capacity": capacity, "mask": physicalMask},
                inTask,
            )
        )[1]

    def initWithPhysicalMask(
        self, inTask: TaskLike, options: int, capacity: int, alignment: int, physicalMask: int
    ) -> Made:
        """Create a buffer by the initialiser under all factories: alignment and mask together (D11)."""
        return self._create(
            Request(
                f"initWithPhysicalMask({task_name(inTask)}, {options:#x}, {capacity}, {alignment}, "
                f"{physicalMask:#x})",
                "IOBMD_INIT_WITH_PHYSICAL_MASK",
                {"options": options, "capacity": capacity, "alignment": alignment, "mask": physicalMask},
                inTask,
            )
        )[1]

    def withCapacity(self, capacity: int, inDirection: int, contiguous: bool = False) -> Made:
        """Create a buffer of *capacity* bytes (clause G07); *contiguous* aligns it to its capacity (D08)."""
        return self._create(
            Request(
                f"withCapacity({capacity}, {inDirection:#x}, {contiguous})",
                "IOBMD_WITH_CAPACITY",
                {"options": inDirection, "capacity": capacity, "contiguous": int(contiguous)},
            )
        )[1]

    def withBytes(self, data: bytes, inDirection: int, contiguous: bool = False) -> Made:
        """Create a buffer that holds a copy of *data* (clauses G03 to G06)."""
        return self._create(
            Request(
                f"withBytes({len(data)} bytes, {inDirection:#x}, {contiguous})",
                "IOBMD_WITH_BYTES",
                {"options": inDirection, "capacity": len(data), "contiguous": int(contiguous)},
                Task.CURRENT,
                data,
            )
        )[1]

    def withCopy(self, inTask: TaskLike, options: int, sourceMap: TaskLike, source: int, size: int) -> Made:
        """Create a pageable buffer that is a snapshot of memory of a process (clauses G08 to G11).

        Args:
            inTask: the task it is mapped in.
            options: must have kIOMemoryPageable (clause G09).
            sourceMap: the process whose memory is copied.  It makes the call, so *inTask* is the kernel's
                task or that process.
            source: address in that process; see `harness.link.Process.memory`.
            size: bytes, which become capacity and length.

        Raises:
            BadInput: the source and the task are two different processes.
        """
        reader = self.process if sourceMap is Task.CURRENT else sourceMap
        call = f"withCopy({task_name(inTask)}, {options:#x}, {task_name(sourceMap)}, {source:#x}, {size})"
        target = self.process if inTask is Task.CURRENT else inTask
        if isinstance(reader, Task) or (isinstance(target, Process) and target is not reader):
            raise BadInput(
                "withCopy reads the memory of the process it maps the copy in, or copies for the kernel",
                tried=call,
                hint="give the same process as inTask and sourceMap, or kernel_task as inTask",
            )
        fields = {"options": options, "capacity": size, "bytes": source}
        return self._create(Request(call, "IOBMD_WITH_COPY", fields, target, caller=reader))[1]

    def inTaskWithGuardPages(self, inTask: TaskLike, options: int, capacity: int) -> Made:
        """Create a buffer with an inaccessible page on each side; its capacity is rounded up to pages."""
        return self._create(
            Request(
                f"inTaskWithGuardPages({task_name(inTask)}, {options:#x}, {capacity})",
                "IOBMD_IN_TASK_WITH_GUARD_PAGES",
                {"options": options, "capacity": capacity},
                inTask,
            )
        )[1]

    def Create(self, options: int, capacity: int, alignment: int) -> Created:
        """Create a buffer the DriverKit way (clauses K01 to K08, K12).

        Args:
            options: direction bits only (clause K02); 64 bits.
            capacity: bytes.
            alignment: bytes, 0 for none (clause K04).
        """
        code, made = self._create(
            Request(
                f"Create({options:#x}, {capacity}, {alignment})",
                "IOBMD_DRIVERKIT_CREATE",
                {"options": options, "capacity": capacity, "alignment": alignment},
            )
        )
        return Created(IOReturn.of(code), made)
