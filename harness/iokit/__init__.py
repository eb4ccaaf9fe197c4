# SPDX-License-Identifier: MIT
"""IOBufferMemoryDescriptor as a Python class, under Apple's names: the guest's claims."""

from harness.iokit.constants import *  # noqa: F403 - every kIO name, as a C++ header would give them
from harness.iokit.constants import verify_against
from harness.iokit.descriptor import Description, IOBufferMemoryDescriptor, PhysicalSegment
from harness.iokit.null import Null, NullDescriptorError
from harness.iokit.session import IOKit, ModuleInfo, Task, kernel_task

__all__ = [
    "Description",
    "IOBufferMemoryDescriptor",
    "IOKit",
    "ModuleInfo",
    "Null",
    "NullDescriptorError",
    "PhysicalSegment",
    "Task",
    "kernel_task",
    "verify_against",
]
