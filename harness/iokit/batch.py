# SPDX-License-Identifier: MIT
"""The factories, thousands of calls at a time: they read like the single ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.iokit.buffers import Buffers
from harness.iokit.numbers import Numbers, spread
from harness.iokit.task import Task, TaskLike, task_name
from harness.link import GuestOSError

if TYPE_CHECKING:
    from harness.iokit.session import IOKit

Tasks = TaskLike | Sequence[TaskLike]
"""What a ``task_t`` argument of a batch takes: one task for all, or one for each."""


@dataclass(frozen=True)
class _Wish:
    """A factory call for every row.

    Attributes:
        text: the call as it would be written, with ``str.format`` fields for task and arguments, in order.
        factory: the ABI's enumerator.
        fields: arguments, by the names of ``struct iobmd_create``.
        tasks: the ``task_t`` of each row.
    """

    text: str
    factory: str
    fields: dict[str, NDArray[Any]]
    tasks: Sequence[TaskLike] = field(default_factory=tuple)

    def label(self, row: int) -> str:
        """The call of one row, as it would be written."""
        shown = [task_name(task) for task in self.tasks[row : row + 1]]
        values = (
            bool(column[row]) if name == "contiguous" else column[row].item()
            for name, column in self.fields.items()
        )
        return self.text.format(*shown, *values)


class Batch:
    """A number of buffers to be made by one call; see `IOKit.batch`.

    Every argument is one value for all of them or an array (or sequence) with one for each.  What comes back
    is a `Buffers`; some of its rows may be NULL.  All calls are made in the session's own process: a task is
    the kernel's, NULL, or that process.

    Every factory raises BadInput for an array of the wrong length, a value with too many bits or a task that
    is another process, and `harness.link.GuestOSError` when the guest refuses a call altogether; nothing is
    left of the others then, nor after an interruption.
    """

    def __init__(self, session: IOKit, count: int) -> None:
        if count <= 0:
            raise BadInput(f"a batch of {count} buffers", hint="ask for one at least")
        self._session = session
        self._count = count
        self._layout = session.layouts.struct("iobmd_create")

    def __len__(self) -> int:
        return self._count

    def withOptions(self, options: Numbers, capacity: Numbers, alignment: Numbers = 1) -> Buffers:
        """Create buffers in the kernel's task; as `IOKit.withOptions`."""
        fields = self._fields(options=options, capacity=capacity, alignment=alignment)
        text = "withOptions({:#x}, {}, {})"
        return self._create(_Wish(text, "IOBMD_WITH_OPTIONS", fields))

    def inTaskWithOptions(
        self,
        inTask: Tasks,
        options: Numbers,
        capacity: Numbers,
        alignment: Numbers = 1,
        kernTag: Numbers | None = None,
        userTag: Numbers | None = None,
    ) -> Buffers:
        """Create buffers in *inTask*, by either overload; as `IOKit.inTaskWithOptions`."""
        tasks = self._tasks(inTask)
        fields = self._fields(options=options, capacity=capacity, alignment=alignment)
        text = "inTaskWithOptions({}, {:#x}, {}, {}"
        if kernTag is None and userTag is None:
            return self._create(_Wish(f"{text})", "IOBMD_IN_TASK_WITH_OPTIONS", fields, tasks))
        if kernTag is None or userTag is None:
            raise BadInput("inTaskWithOptions takes both tags or none", hint="give kernTag and userTag")
        fields |= self._fields(kernel_tag=kernTag, user_tag=userTag)
        factory = "IOBMD_IN_TASK_WITH_OPTIONS_TAGGED"
        return self._create(_Wish(f"{text}, {{}}, {{}})", factory, fields, tasks))

    def inTaskWithPhysicalMask(
        self, inTask: Tasks, options: Numbers, capacity: Numbers, physicalMask: Numbers
    ) -> Buffers:
        """Create buffers within a mask; as `IOKit.inTaskWithPhysicalMask`."""
        tasks = self._tasks(inTask)
        fields = self._fields(options=options, capacity=capacity, mask=physicalMask)
        text = "inTaskWithPhysicalMask({}, {:#x}, {}, {:#x})"
        return self._create(_Wish(text, "IOBMD_IN_TASK_WITH_PHYSICAL_MASK", fields, tasks))

    def initWithPhysicalMask(
        self, inTask: Tasks, options: Numbers, capacity: Numbers, alignment: Numbers, physicalMask: Numbers
    ) -> Buffers:
        """Create buffers by alignment and mask together; as `IOKit.initWithPhysicalMask`."""
        tasks = self._tasks(inTask)
        fields = self._fields(options=options, capacity=capacity, alignment=alignment, mask=physicalMask)
        text = "initWithPhysicalMask({}, {:#x}, {}, {}, {:#x})"
        return self._create(_Wish(text, "IOBMD_INIT_WITH_PHYSICAL_MASK", fields, tasks))

    def withCapacity(
        self,
        capacity: Numbers,
        inDirection: Numbers,
        contiguous: bool | Sequence[bool] | NDArray[Any] = False,
    ) -> Buffers:
        """Create buffers of *capacity* bytes; as `IOKit.withCapacity`."""
        fields = self._fields(capacity=capacity, options=inDirection, contiguous=np.asarray(contiguous, bool))
        return self._create(_Wish("withCapacity({}, {:#x}, {})", "IOBMD_WITH_CAPACITY", fields))

    def inTaskWithGuardPages(self, inTask: Tasks, options: Numbers, capacity: Numbers) -> Buffers:
        """Create buffers with an inaccessible page on each side; as `IOKit.inTaskWithGuardPages`."""
        tasks = self._tasks(inTask)
        fields = self._fields(options=options, capacity=capacity)
        text = "inTaskWithGuardPages({}, {:#x}, {})"
        return self._create(_Wish(text, "IOBMD_IN_TASK_WITH_GUARD_PAGES", fields, tasks))

    # -- plumbing -------------------------------------------------------------------------------------------

    def _fields(self, **given: Numbers) -> dict[str, NDArray[Any]]:
        dtype = self._layout.dtype
        return {name: spread(name, value, self._count, dtype[name]) for name, value in given.items()}

    def _tasks(self, given: Tasks) -> Sequence[TaskLike]:
        """One task a row, each of them one the session's process can name."""
        own = self._session.process
        tasks = given if isinstance(given, Sequence) else [given] * self._count
        if len(tasks) != self._count:
            raise BadInput(
                f"inTask takes one task for all, or one for each of {self._count}",
                observed=f"{len(tasks)} tasks",
            )
        for task in set(tasks):
            if not isinstance(task, Task) and task is not own:
                raise BadInput(
                    "a batch is made in the session's own process",
                    observed=f"inTask is {task_name(task)}",
                    hint="IOKit(guest.peer).batch(n) makes buffers in the second process",
                )
        return tasks

    def _records(self, wish: _Wish) -> NDArray[Any]:
        session = self._session
        records = np.zeros(self._count, self._layout.dtype)
        for name, column in wish.fields.items():
            records[name] = column
        records["factory"] = session.layouts.enum("iobmd_factory")[wish.factory]
        records["context"] = session.context_number
        numbers = session.layouts.enum("iobmd_task")
        roles = [task if isinstance(task, Task) else Task.CURRENT for task in wish.tasks]
        records["task"] = [numbers[role.value] for role in roles] or numbers[Task.KERNEL.value]
        records["fd"] = -1  # a row that is never made must not name descriptor 0
        return records

    def _create(self, wish: _Wish) -> Buffers:
        session = self._session
        device, commands = session.device, session.layouts.enum("iobmd_ioctl")
        batch = session.process.batch(self._count)
        made = batch.exchange(self._records(wish))
        told = batch.outputs(session.layouts.struct("iobmd_description").dtype)
        batch.ioctl(device, commands["IOBMD_IOC_CREATE"], made, what=wish.factory)
        batch.ioctl(made.loaded("fd"), commands["IOBMD_IOC_DESCRIBE"], told, what="DESCRIBE")
        with session.making(batch, made.records["fd"]):
            batch.run()
            described = (made.records["fd"] < 0) | (batch.values[:, 1] >= 0)
            refused = np.flatnonzero((batch.values[:, 0] < 0) | ~described)
            if refused.size:
                row = int(refused[0])
                code = int(-batch.values[row].min())
                raise GuestOSError(code, f"row {row} of {self._count}, {wish.label(row)}")
            return session.adopt_all(Buffers(session, made.records, told.records, wish.label))
