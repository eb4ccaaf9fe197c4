# SPDX-License-Identifier: MIT
"""Group E: wired and shared memory."""

from harness.contract.case import KIB, MIB, PAGE, Case, Place
from harness.contract.engine import check
from harness.iokit import Task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapAnywhere,
    kIOMapInhibitCache,
    kIOMemoryKernelUserShared,
)


@check("E01", outside=True)
def default_memory_is_wired(case: Case) -> None:
    """Finds every page present at creation, makes the kernel reclaim and compact, and finds them again."""
    made = [case.make(kIODirectionInOut, size) for size in (16, 5000, 64 * KIB, 5 * MIB)]
    made.append(case.make(kIODirectionInOut | kIOMapInhibitCache, 64 * KIB))
    with case.look() as look:
        before = [look.where(buf) for buf in made]
    planted = [case.plant(buf) for buf in made]
    case.press()
    for _ in range(4):
        case.make(kIODirectionInOut, 4 * MIB).release()
    with case.look() as look:
        for buf, where, bytes_ in zip(made, before, planted, strict=True):
            case.expect(
                look.where(buf), equals=where, what=f"physical ranges of {buf!r} after reclaim and compaction"
            )
            case.expect_planted(look, buf, bytes_)


@check("E04", outside=True)
def physical_segments_need_no_prepare(case: Case) -> None:
    """Asks for the first physical segment right after the factory and compares it with the page walk."""
    made = [case.make(kIODirectionInOut | case.direct, size) for size in (1, 5000, 64 * KIB, 5 * MIB)]
    claims = [buf.getPhysicalSegment(0) for buf in made]
    with case.look() as look:
        for buf, claim in zip(made, claims, strict=True):
            case.expect_that(claim.address != 0, expected=f"an address for {buf!r}", observed="0")
            case.expect(
                claim.address, equals=look.at(buf.address), what=f"first segment of {buf!r}", show=hex
            )


@check("E15", outside=True)
def shared_memory_shows_in_kernel_and_client(case: Case) -> None:
    """Maps kIOMemoryKernelUserShared buffers into two processes: the same pages, and each sees the others.

    Written are the kernel's side, through the buffer, and both clients' sides.
    """
    for size in (16, 5000, 300 * KIB):
        buf = case.make(kIODirectionInOut | kIOMemoryKernelUserShared, size)
        own = case.need(buf.createMappingInTask(Task.CURRENT, 0, kIOMapAnywhere))
        theirs = case.need(buf.createMappingInTask(case.peer, 0, kIOMapAnywhere))
        for mapping, other in ((own, theirs), (theirs, own)):
            data = case.pattern(size)
            mapping.write(0, data)
            case.expect_bytes(other.read(), equals=data, what=f"bytes through {other!r}")
            case.expect_bytes(buf.readBytes(0, size), equals=data, what=f"readBytes of {buf!r}")
        data = case.pattern(size)
        buf.writeBytes(0, data)
        for mapping, process in ((own, case.guest), (theirs, case.peer)):
            case.expect_bytes(mapping.read(), equals=data, what=f"bytes through {mapping!r}")
            place = Place(mapping.getVirtualAddress(), size)
            with case.look(process) as look:
                case.expect_bytes(look.read(buf, 0, size), equals=data, what=f"RAM behind {buf!r}")
                where = look.where(buf, 0, size)
                case.expect(look.where(place), equals=where, what=f"where {mapping!r} lies")
                closed = [leaf for leaf in look.leaves(place) if not (leaf.user and leaf.writable)]
                case.expect(closed, equals=[], what=f"leaves of {mapping!r} the client may not use")


@check("E16", outside=True)
def sharing_alone_maps_nothing_into_user_space(case: Case) -> None:
    """Searches all page tables for leaves over kIOMemoryKernelUserShared buffers that user mode may use."""
    options = kIODirectionInOut | kIOMemoryKernelUserShared
    made = [case.make(options, size) for size in (16, 5000, 64 * KIB, 5 * MIB)]
    for buf in made:
        decided = buf.describe().alignment
        case.expect(decided, equals=PAGE, what=f"alignment decided on for {buf!r}")
    with case.look() as look:
        for buf in made:
            case.expect_multiple(buf.address, PAGE, what=f"kernel VA of {buf!r}")
            case.expect_multiple(look.at(buf.address), PAGE, what=f"PA of {buf!r}")
            aliases = look.aliases(buf)
            users = [leaf for leaf in aliases if leaf.user]
            case.expect(len(users), equals=0, what=f"leaves over {buf!r} that user mode may reach")
            case.note(f"{buf!r}: {len(aliases)} leaves, none for user mode")
