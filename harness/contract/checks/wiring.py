# SPDX-License-Identifier: MIT
"""Group E: wired, pageable, purgeable, shared."""

from harness.contract.case import KIB, MIB, PAGE, Case
from harness.contract.engine import check
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapInhibitCache,
    kIOMemoryKernelUserShared,
    kIOMemoryPurgeable,
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
    made = [case.make(kIODirectionInOut, size) for size in (1, 5000, 64 * KIB, 5 * MIB)]
    claims = [buf.getPhysicalSegment(0) for buf in made]
    with case.look() as look:
        for buf, claim in zip(made, claims, strict=True):
            case.expect_that(claim.address != 0, expected=f"an address for {buf!r}", observed="0")
            case.expect(
                claim.address, equals=look.at(buf.address), what=f"first segment of {buf!r}", show=hex
            )


@check("E07", partial="setPurgeable is not built yet, so that its refusal cannot be seen")
def purgeable_without_pageable_is_ignored(case: Case) -> None:
    """Passes kIOMemoryPurgeable without kIOMemoryPageable: an ordinary wired buffer."""
    buf = case.make(kIODirectionInOut | kIOMemoryPurgeable, 5000)
    case.expect(buf.getCapacity(), equals=5000, what=f"getCapacity of {buf!r}")
    case.expect_that(buf.getPhysicalAddress() != 0, expected=f"a physical address for {buf!r}", observed="0")


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
