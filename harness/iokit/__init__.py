# SPDX-License-Identifier: MIT
"""IOBufferMemoryDescriptor as a Python class, under Apple's names: the guest's claims."""

from harness.iokit.batch import Batch
from harness.iokit.buffers import PAGE_COUNTS, PURGED, SEGMENTS, Buffers
from harness.iokit.constants import *  # noqa: F403 - every kIO name, as a C++ header would give them
from harness.iokit.constants import verify_against
from harness.iokit.description import Description
from harness.iokit.descriptor import IOBufferMemoryDescriptor
from harness.iokit.driverkit import Created, IOAddressSegment, LengthGot, MappingCreated, RangeGot
from harness.iokit.mapping import IOMemoryMap, MappingDescription
from harness.iokit.memory import IOGeneralMemoryDescriptor, PageCounts, PhysicalSegment, Purged
from harness.iokit.null import Null, NullDescriptorError
from harness.iokit.returns import *  # noqa: F403 - every return code
from harness.iokit.returns import IOReturn
from harness.iokit.session import IOKit, ModuleInfo
from harness.iokit.task import Context, Task, TaskLike, kernel_task

__all__ = [
    "PAGE_COUNTS",
    "PURGED",
    "SEGMENTS",
    "Batch",
    "Buffers",
    "Context",
    "Created",
    "Description",
    "IOAddressSegment",
    "IOBufferMemoryDescriptor",
    "IOGeneralMemoryDescriptor",
    "IOKit",
    "IOMemoryMap",
    "IOReturn",
    "LengthGot",
    "MappingCreated",
    "MappingDescription",
    "ModuleInfo",
    "Null",
    "NullDescriptorError",
    "PageCounts",
    "PhysicalSegment",
    "Purged",
    "RangeGot",
    "Task",
    "TaskLike",
    "kernel_task",
    "verify_against",
]
