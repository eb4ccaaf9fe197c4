# SPDX-License-Identifier: MIT
"""Group A: which task a buffer is made for, where the call comes from, and who keeps the buffer alive."""

from harness.contract.case import KIB, MIB, PAGE, Case, Place
from harness.contract.engine import check
from harness.iokit import Context, IOBufferMemoryDescriptor, PhysicalSegment, Task, TaskLike, kernel_task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapAnywhere,
    kIOMapInhibitCache,
    kIOMapUnique,
    kIOMapWriteCombineCache,
    kIOMemoryKernelUserShared,
    kIOMemoryPageable,
    kIOMemoryPhysicallyContiguous,
)
from harness.link import Process
from harness.oracle import PhysRange

_PAGEABLE = kIODirectionInOut | kIOMemoryPageable
# The lower half of the canonical addresses.
_USER_END = 1 << 56


def _ranges(segments: list[PhysicalSegment]) -> list[PhysRange]:
    """Return the whole pages that *segments* lie in."""
    found = []
    for one in segments:
        first = one.address // PAGE * PAGE
        found.append(PhysRange(first, -(-(one.address + one.length - first) // PAGE) * PAGE))
    return found


@check("A10", outside=True)
def a_null_task_gives_an_unmapped_dma_buffer(case: Case) -> None:
    """Asks with the NULL task: an object without address, whose bytes lie where its segments say.

    Searched for further mappings are the page tables of the kernel and of all processes.
    """
    shapes = (
        (0, 16, 0), (0, 5000, 0xFFFF_FFFF), (0, 64 * KIB, 0x0FFF_FFFF), (0, 9 * MIB + 5, 0),
        (kIOMemoryPhysicallyContiguous, 64 * KIB, 0xFFFF_FFFF), (kIOMapWriteCombineCache, 5000, 0),
    )  # fmt: skip
    options = kIODirectionInOut | case.direct
    asked = [
        (size, case.iokit.inTaskWithPhysicalMask(Task.NULL, options | option, size, mask))
        for option, size, mask in shapes
    ]
    # A processor without write-combining has no such buffer to look at; the others must be there.
    made = [(size, case.need(buf)) for size, buf in asked[:-1]]
    made += [(size, buf) for size, null in asked[-1:] if (buf := case.maybe(null))]
    seen = []
    for size, buf in made:
        case.expect(buf.getBytesNoCopy(), equals=0, what=f"getBytesNoCopy of {buf!r}", show=hex)
        case.expect(buf.getCapacity(), equals=size, what=f"getCapacity of {buf!r}")
        seen.append((buf, size, case.plant(buf), buf.segments()))
    with case.look() as look:
        for buf, size, planted, segments in seen:
            stored = b"".join(look.read_at(one.address, one.length) for one in segments)
            case.expect(len(stored), equals=size, what=f"bytes in the segments of {buf!r}")
            for one in planted:
                there = stored[one.offset : one.offset + len(one.data)]
                case.expect_bytes(there, equals=one.data, what=f"RAM at the segments of {buf!r}")
            others = look.beside_direct_map(look.aliases_of(repr(buf), _ranges(segments)))
            case.expect(len(others), equals=0, what=f"mappings of {buf!r}")


@check("A11", outside=True)
def a_null_task_with_pageable_can_be_mapped_later(case: Case) -> None:
    """Asks with NULL task and kIOMemoryPageable: no address; then maps it and finds the bytes there."""
    for size in (5000, 64 * KIB):
        buf = case.need(case.iokit.inTaskWithOptions(Task.NULL, _PAGEABLE, size))
        case.expect(buf.getBytesNoCopy(), equals=0, what=f"getBytesNoCopy of {buf!r}", show=hex)
        planted = case.plant(buf)
        user = case.need(buf.createMappingInTask(Task.CURRENT, 0, kIOMapAnywhere))
        user.read()
        kernel = case.need(buf.map())
        case.expect_that(
            kernel.getVirtualAddress() >> 63 == 1, expected="a kernel address", observed=repr(kernel)
        )
        with case.look(case.guest) as look:
            for mapping in (user, kernel):
                place = Place(mapping.getVirtualAddress(), size)
                for one in planted:
                    found = look.read(place, one.offset, len(one.data))
                    case.expect_bytes(found, equals=one.data, what=f"RAM behind {mapping!r}")


@check("A12", outside=True)
def a_user_task_gets_the_buffer_in_its_own_space(case: Case) -> None:
    """Makes pageable buffers in two processes; each reads and writes its own at getBytesNoCopy()."""
    tasks: tuple[tuple[TaskLike, Process], ...] = ((Task.CURRENT, case.guest), (case.peer, case.peer))
    for task, process in tasks:
        for size in (1, 5000, 300 * KIB):
            buf = case.need(case.iokit.inTaskWithOptions(task, _PAGEABLE, size))
            address = buf.getBytesNoCopy()
            case.expect_that(
                0 < address < _USER_END, expected="an address in user space", observed=f"{address:#x}"
            )
            case.expect_zero(process.peek(address, size), what=f"what the process reads in {buf!r}")
            data = case.pattern(size)
            process.poke(address, data)
            case.expect_bytes(buf.readBytes(0, size), equals=data, what=f"readBytes of {buf!r}")
            with case.look(process) as look:
                place = Place(address, size)
                case.expect_bytes(look.read(place), equals=data, what=f"RAM behind {buf!r}")
                leaves = look.leaves(place)
                case.expect(
                    [leaf for leaf in leaves if not (leaf.user and leaf.writable)],
                    equals=[],
                    what=f"leaves of {buf!r} the process may not read and write",
                )


@check("A14")
def creation_needs_a_context_that_may_sleep(case: Case) -> None:
    """Calls factories with a simple lock held and from an interrupt: NULL, nothing kept, no complaint."""
    live, said = case.live(), len(case.kernel_log())
    for context in (Context.SIMPLE_LOCK, Context.INTERRUPT):
        with case.iokit.calledFrom(context):
            for made in (
                case.iokit.withOptions(kIODirectionInOut, 16),
                case.iokit.withOptions(kIODirectionInOut | kIOMapInhibitCache, 64 * KIB),
                case.iokit.withOptions(kIODirectionInOut | kIOMemoryPhysicallyContiguous, 64 * KIB),
                case.iokit.withOptions(kIODirectionInOut, 9 * MIB),
                case.iokit.inTaskWithOptions(kernel_task, _PAGEABLE, 5000),
                case.iokit.inTaskWithPhysicalMask(Task.NULL, kIODirectionInOut, 5000, 0xFFFF_FFFF),
                case.iokit.withCapacity(5000, kIODirectionInOut),
                case.iokit.withBytes(b"atomic", kIODirectionInOut),
                case.iokit.Create(kIODirectionInOut, 5000, 1).memory,
            ):
                null = case.null(made)
                case.note(f"{null.call}, {context.name}: {null.reason}")
    case.expect(case.live(), equals=live, what="descriptors that exist")
    case.expect(case.complaints(said), equals=[], what="complaints in the kernel's log")
    case.make(kIODirectionInOut, 5000).release()


@check("A15", outside=True)
def a_mapping_keeps_the_buffer(case: Case) -> None:
    """Maps buffers, releases them, has memory reused all around, and reads through the mappings."""
    live = case.live()
    for options, task in ((kIODirectionInOut, kernel_task), (_PAGEABLE, Task.NULL)):
        size = 64 * KIB
        buf = case.need(case.iokit.inTaskWithOptions(task, options, size))
        data = case.pattern(size)
        buf.writeBytes(0, data)
        user = case.need(buf.createMappingInTask(Task.CURRENT, 0, kIOMapAnywhere))
        kernel = case.need(buf.map(kIOMapUnique))
        user.read()
        places = [Place(one.getVirtualAddress(), size) for one in (user, kernel)]
        with case.look(case.guest) as look:
            before = [look.where(place) for place in places]
        buf.release()
        for _ in range(4):
            other = case.make(kIODirectionInOut, size)
            other.writeBytes(0, case.pattern(size))
            other.release()
        case.press()
        case.expect_bytes(user.read(), equals=data, what=f"bytes through {user!r} after release")
        with case.look(case.guest) as look:
            for place, where in zip(places, before, strict=True):
                case.expect_bytes(look.read(place), equals=data, what=f"RAM behind {place} after release")
                case.expect(look.where(place), equals=where, what=f"where {place} lies after release")
        user.release()
        kernel.release()
        case.expect(case.live(), equals=live, what="descriptors after the last mapping went")


def _placement(buf: IOBufferMemoryDescriptor) -> tuple[object, ...]:
    said = buf.describe()
    return (said.storage, said.alignment, said.storage_kind, said.mask, said.guard, buf.getFlags())


@check("A16", outside=True)
def tags_change_accounting_only(case: Case) -> None:
    """Makes each buffer with and without tags and compares their placement; the tags are kept in 16 bits."""
    shapes = (
        (0, 16, 1), (0, 5000, 256), (0, 5000, 2 * PAGE), (kIOMemoryPhysicallyContiguous, 64 * KIB, 1),
        (kIOMemoryKernelUserShared, 100, 1), (kIOMapInhibitCache, 5000, 64 * KIB), (0, 5 * MIB, 1),
    )  # fmt: skip
    pairs = []
    for options, size, alignment in shapes:
        arguments = kernel_task, kIODirectionInOut | options, size, alignment
        plain = case.need(case.iokit.inTaskWithOptions(*arguments))
        tagged = case.need(case.iokit.inTaskWithOptions(*arguments, 0x1_0007, 0xABCD_0FF9))
        case.expect(_placement(tagged), equals=_placement(plain), what=f"placement of {tagged!r}")
        said = tagged.describe()
        case.expect((said.kernel_tag, said.user_tag), equals=(7, 0xFF9), what="tags, 16 bits of each")
        pairs.append((alignment, plain, tagged))
    case.null(case.iokit.inTaskWithOptions(Task.NULL, kIODirectionInOut, PAGE, 1, 7, 9))
    with case.look() as look:
        for alignment, plain, tagged in pairs:
            mapped = [sum(one.length for one in look.where(buf)) for buf in (plain, tagged)]
            case.expect(mapped[1], equals=mapped[0], what=f"bytes mapped for {tagged!r}")
            case.expect_multiple(look.at(tagged.address), alignment, what=f"PA of {tagged!r}")
            if alignment > PAGE:
                case.expect(len(look.where(tagged)), equals=1, what=f"physical runs of {tagged!r}")
