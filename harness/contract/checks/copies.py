# SPDX-License-Identifier: MIT
"""Group G: buffers that are copies of a process's memory."""

from harness.contract.case import KIB, PAGE, Case, Place
from harness.contract.engine import check
from harness.iokit import IOBufferMemoryDescriptor, Null, Task, TaskLike, kernel_task
from harness.iokit.constants import kIODirectionInOut, kIODirectionOut, kIOMemoryPageable
from harness.link.memory import PROT_NONE, PROT_READ

_PAGEABLE = kIODirectionInOut | kIOMemoryPageable
_TASKS: tuple[TaskLike, ...] = (Task.CURRENT, kernel_task)
_SHAPES = ((0, 1), (0, 5000), (123, 5000), (PAGE - 1, 2), (0, 64 * KIB), (77, 600 * KIB))


def _copy(
    case: Case, task: TaskLike, source: int, size: int, options: int = _PAGEABLE
) -> Null | IOBufferMemoryDescriptor:
    return case.iokit.withCopy(task, options, Task.CURRENT, source, size)


def _expect_holds(case: Case, buf: IOBufferMemoryDescriptor, data: bytes, when: str = "") -> None:
    """Compare the buffer's bytes by readBytes and by its own page tables from outside."""
    case.expect_bytes(buf.readBytes(0, len(data)), equals=data, what=f"readBytes of {buf!r}{when}")
    address = buf.getBytesNoCopy()
    if not buf.address:
        case.guest.peek(address, len(data))
    with case.look(case.guest) as look:
        found = look.read(Place(address, len(data)))
        case.expect_bytes(found, equals=data, what=f"RAM behind {buf!r}{when}")


@check("G08", outside=True)
def withcopy_copies_the_bytes(case: Case) -> None:
    """Copies ranges of the agent's memory, also ones that start in the middle of a page."""
    data = case.pattern(640 * KIB)
    with case.guest.memory(data) as source:
        for task in _TASKS:
            for offset, size in _SHAPES:
                with case.need(_copy(case, task, source.address + offset, size)) as buf:
                    for value, what in ((buf.getCapacity(), "getCapacity"), (buf.getLength(), "getLength")):
                        case.expect(value, equals=size, what=f"{what} of {buf!r}")
                    _expect_holds(case, buf, data[offset : offset + size])
        # Out-only: the copy is made before the direction matters.
        out = kIODirectionOut | kIOMemoryPageable
        _expect_holds(case, case.need(_copy(case, kernel_task, source.address, 5000, out)), data[:5000])
    other = case.pattern(5000)
    with case.peer.memory(other) as theirs:
        made = case.iokit.withCopy(kernel_task, _PAGEABLE, case.peer, theirs.address, 5000)
        case.expect_bytes(
            case.need(made).readBytes(0, 5000), equals=other, what="a copy of the peer's memory"
        )


@check("G09")
def withcopy_needs_pageable(case: Case) -> None:
    """Leaves kIOMemoryPageable out: NULL, whatever else is asked; with it there is a copy."""
    live = case.live()
    with case.guest.memory(case.pattern(5000)) as source:
        for task in _TASKS:
            for options in (0, kIODirectionInOut, kIODirectionOut, kIODirectionInOut | 0x0001_0000):
                case.null(_copy(case, task, source.address, 5000, options))
                case.need(_copy(case, task, source.address, 5000, options | kIOMemoryPageable)).release()
    case.expect(case.live(), equals=live, what="descriptors that exist")


@check("G10", outside=True)
def withcopy_is_a_snapshot(case: Case) -> None:
    """Changes the source after the copy, and the copy: neither shows in the other."""
    for task in _TASKS:
        for offset, size in ((0, 5000), (123, 64 * KIB)):
            data = case.pattern(80 * KIB)
            with case.guest.memory(data) as source:
                buf = case.need(_copy(case, task, source.address + offset, size))
                changed = case.pattern(len(data))
                source.write(0, changed)
                _expect_holds(case, buf, data[offset : offset + size], " after the source changed")
                buf.writeBytes(0, case.pattern(size))
                case.expect_bytes(source.read(), equals=changed, what="the source after the copy changed")


@check("G11")
def withcopy_of_nothing_fails(case: Case) -> None:
    """Copies from addresses that are not mapped, not readable, not all mapped, or the kernel's: NULL."""
    live = case.live()
    page = PAGE
    with case.guest.memory(case.pattern(2 * page)) as source, case.guest.memory(page, PROT_NONE) as closed:
        with case.guest.memory(4 * page) as short:
            gone = short.address
        wired = case.make(kIODirectionInOut, page)
        for task in _TASKS:
            for address, size in (
                (0, page), (1, 16), (gone, page), (closed.address, 16), (wired.address, 16),
                (source.address, 2**40), (2**64 - page, 2 * page), (2**64 - 16, 16),
            ):  # fmt: skip
                case.null(_copy(case, task, address, size))
        source.protect(PROT_READ)
        case.need(_copy(case, kernel_task, source.address, 2 * page)).release()
        wired.release()
    case.expect(case.live(), equals=live, what="descriptors that exist")
