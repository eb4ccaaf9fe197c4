# SPDX-License-Identifier: MIT
"""The ``task_t`` Apple's calls take, and where they are called from."""

from __future__ import annotations

from enum import Enum

from harness.link import Process


class Task(Enum):
    """A task by its role; the value names the ABI's enumerator.

    ``CURRENT`` is the process whose session makes the call: the agent for ``IOKit(guest)``, the second
    process for ``IOKit(guest.peer)``.
    """

    NULL = "IOBMD_TASK_NULL"
    KERNEL = "IOBMD_TASK_KERNEL"
    CURRENT = "IOBMD_TASK_CURRENT"


kernel_task = Task.KERNEL
"""Apple's name for the kernel's own task."""

TaskLike = Task | Process
"""What a ``task_t`` argument takes: a role, or a process of the guest."""


class Context(Enum):
    """Where in the kernel a factory is called from (clause A14); the value names the ABI's enumerator."""

    PROCESS = "IOBMD_CONTEXT_PROCESS"
    SIMPLE_LOCK = "IOBMD_CONTEXT_SIMPLE_LOCK"
    INTERRUPT = "IOBMD_CONTEXT_INTERRUPT"


def task_name(task: TaskLike) -> str:
    """*task* as it would be written in a call."""
    return task.name if isinstance(task, Task) else f"<process {task.pid}>"
