# SPDX-License-Identifier: MIT
"""Group A: creation, failure and life time."""

from itertools import pairwise

from harness.contract.case import GIB, KIB, MIB, PAGE, Case, Place
from harness.contract.edu import expect_device_reaches
from harness.contract.engine import check
from harness.contract.mapped import expect_gone
from harness.iokit import IOBufferMemoryDescriptor, Task, kernel_task
from harness.iokit.constants import (
    kIODirectionIn,
    kIODirectionInOut,
    kIODirectionNone,
    kIODirectionOut,
    kIOMapInhibitCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
    kIOMemoryKernelUserShared,
    kIOMemoryPageable,
    kIOMemoryPhysicallyContiguous,
    kIOMemoryThreadSafe,
)

SIZES = (1, 16, PAGE - 1, PAGE, PAGE + 1, 64 * KIB, 2 * MIB, 4 * MIB, 9 * MIB + 123)
"""Around every border of a layout: a byte, a page, a large page, an allocator's longest block, beyond."""

# A 64-bit vm_size_t at its end.
_HUGE = 2**64 - 1


@check("A01", outside=True)
def withoptions_makes_an_object_that_owns_a_buffer(case: Case) -> None:
    """Makes buffers of many sizes and finds all of each in guest RAM, with what the guest wrote into it."""
    made = [(size, case.make(kIODirectionInOut, size)) for size in SIZES]
    planted = []
    for size, buf in made:
        case.expect(buf.getCapacity(), equals=size, what=f"getCapacity of {buf!r}")
        case.expect_that(
            buf.storage >= size, expected=f"at least {size} bytes of storage", observed=f"{buf.storage}"
        )
        planted.append(case.plant(buf))
    with case.look() as look:
        for (_, buf), bytes_ in zip(made, planted, strict=True):
            ranges = look.where(buf)
            case.expect(
                sum(one.length for one in ranges), equals=buf.storage, what=f"mapped bytes of {buf!r}"
            )
            top = max(one.start + one.length for one in ranges)
            case.expect_that(
                top <= case.facts.top_of_ram,
                expected=f"storage below the end of RAM, {case.facts.top_of_ram:#x}",
                observed=f"up to {top:#x}",
            )
            case.expect_planted(look, buf, bytes_)
    case.note(
        f"capacities {', '.join(map(str, SIZES))}: all of the storage is RAM that holds what was written"
    )


@check("A02", outside=True)
def withoptions_allocates_in_the_kernel_task(case: Case) -> None:
    """Looks at the leaves of the buffer's address: upper half, supervisor, writable, present untouched."""
    made = [case.make(kIODirectionInOut, size) for size in (16, 64 * KIB, 5 * MIB)]
    for buf in made:
        case.expect(buf.getBytesNoCopy(), equals=buf.address, what="getBytesNoCopy", show=hex)
    with case.look() as look:
        for buf in made:
            case.expect(
                buf.address >> 63, equals=1, what=f"top bit of {buf.address:#x}, set for kernel addresses"
            )
            leaves = look.leaves(buf)
            users = [leaf for leaf in leaves if leaf.user]
            case.expect(len(users), equals=0, what=f"leaves of {buf!r} that user mode may reach")
            readonly = [leaf for leaf in leaves if not leaf.writable]
            case.expect(len(readonly), equals=0, what=f"read-only leaves of {buf!r}")
            case.note(f"{buf!r}: {len(leaves)} leaves, every page present before anybody touched it")


@check("A03", outside=True)
def alignment_defaults_to_one(case: Case) -> None:
    """Leaves the alignment out and passes 1, and compares the placements."""
    for capacity in (16, 5000, 64 * KIB):
        pairs = (
            (
                case.make(kIODirectionInOut, capacity, 1),
                case.need(case.iokit.withOptions(kIODirectionInOut, capacity)),
            ),
            (
                case.need(case.iokit.inTaskWithOptions(kernel_task, kIODirectionInOut, capacity, 1)),
                case.need(case.iokit.inTaskWithOptions(kernel_task, kIODirectionInOut, capacity)),
            ),
        )
        with case.look() as look:
            storages = [tuple(sum(one.length for one in look.where(buf)) for buf in pair) for pair in pairs]
        for (one, omitted), (bytes_one, bytes_omitted) in zip(pairs, storages, strict=True):
            case.expect(
                bytes_omitted, equals=bytes_one, what=f"bytes mapped for {omitted!r}, alignment left out"
            )
            case.expect(
                omitted.describe().alignment, equals=one.describe().alignment, what="alignment decided on"
            )


@check("A04")
def failure_is_null(case: Case) -> None:
    """Makes each factory fail and looks at what comes back: NULL with a reason, and no descriptor."""
    before = case.live()
    for made in (
        case.iokit.withOptions(kIODirectionInOut, 0),
        case.iokit.inTaskWithOptions(Task.NULL, kIODirectionInOut, PAGE),
        case.iokit.withCapacity(0, kIODirectionInOut),
        case.iokit.withBytes(b"", kIODirectionInOut),
    ):
        null = case.null(made)
        case.expect_that(
            null.errno > 0 and bool(null.reason), expected="a reason beside the NULL", observed=repr(null)
        )
    case.expect(case.live(), equals=before, what="descriptors that exist")


@check("A05")
def no_bytes_make_every_factory_fail(case: Case) -> None:
    """Asks each factory for 0 bytes, in several modes."""
    for options in (
        kIODirectionInOut,
        kIODirectionOut | kIOMemoryPhysicallyContiguous,
        kIOMapWriteCombineCache,
    ):
        for alignment in (1, PAGE, 64 * KIB):
            case.null(case.iokit.withOptions(options, 0, alignment))
            case.null(case.iokit.inTaskWithOptions(kernel_task, options, 0, alignment))
    for contiguous in (False, True):
        case.null(case.iokit.withCapacity(0, kIODirectionInOut, contiguous))
        case.null(case.iokit.withBytes(b"", kIODirectionInOut, contiguous))
    case.note("withOptions, inTaskWithOptions, withCapacity and withBytes: every factory this module has")


@check("A06")
def the_largest_capacity_fails(case: Case) -> None:
    """Asks for 2^64-1 bytes; the kernel must answer NULL, and answer the next call, too."""
    before = case.live()
    for options in (kIODirectionOut, kIODirectionOut | kIOMemoryPageable, kIOMemoryPhysicallyContiguous):
        case.null(case.iokit.withOptions(options, _HUGE))
        case.null(case.iokit.inTaskWithOptions(kernel_task, options, _HUGE))
    case.null(case.iokit.withCapacity(_HUGE, kIODirectionOut))
    case.null(case.iokit.withCapacity(_HUGE, kIODirectionOut, True))
    case.expect(case.live(), equals=before, what="descriptors that exist")
    case.make().release()


@check("A07")
def rounding_to_pages_may_not_wrap(case: Case) -> None:
    """Asks for page-aligned capacities just below 2^64, which whole pages would wrap to 0 bytes."""
    for capacity in (_HUGE, 2**64 - PAGE + 1, 2**64 - 100):
        for options, alignment in (
            (kIODirectionInOut, PAGE),
            (kIODirectionInOut, 2 * PAGE),
            (kIODirectionInOut | kIOMapWriteCombineCache, 1),
            (kIODirectionInOut | kIOMemoryKernelUserShared, 1),
        ):
            null = case.null(case.iokit.withOptions(options, capacity, alignment))
            case.note(f"{null.call}: {null.reason}")


@check("A08")
def capacity_plus_alignment_may_not_wrap(case: Case) -> None:
    """Asks for capacities and alignments whose sum exceeds 64 bits."""
    for capacity, alignment in ((PAGE, _HUGE), (1, _HUGE), (2**63, 2**63), (2 * PAGE, 2**64 - PAGE)):
        null = case.null(case.iokit.withOptions(kIODirectionInOut, capacity, alignment))
        case.note(f"{null.call}: {null.reason}")


@check("A09")
def only_kernel_task_without_pageable(case: Case) -> None:
    """Names every task a factory can be given, without kIOMemoryPageable: only kernel_task gets a buffer."""
    for task in (Task.NULL, Task.CURRENT):
        for options in (
            kIODirectionInOut,
            kIODirectionOut | kIOMemoryPhysicallyContiguous,
            kIOMapInhibitCache,
        ):
            case.null(case.iokit.inTaskWithOptions(task, options, PAGE))
    case.need(case.iokit.inTaskWithOptions(kernel_task, kIODirectionInOut, PAGE))


@check("A13", outside=True)
def release_frees_descriptor_and_buffer(case: Case) -> None:
    """Releases buffers of all kinds: memory and descriptors are back, pages write-back, mappings gone."""
    live, free = case.live(), case.free_memory()
    modes = (0, kIOMapWriteCombineCache, kIOMapInhibitCache, kIOMapWriteThruCache)
    asked = [
        case.iokit.withOptions(kIODirectionInOut | mode, size)
        for mode in modes
        for size in (256 * KIB, 5 * MIB)
    ]
    made = [buf for buf in map(case.maybe, asked) if buf]
    used = free - case.free_memory()
    total = sum(buf.storage for buf in made)
    case.expect_that(
        used > total * 0.9, expected=f"about {total} bytes less free memory", observed=f"{used} bytes less"
    )
    with case.look() as look:
        ranges = {repr(buf): look.where(buf) for buf in made}
    # A mapping of its own has to go with the buffer; the direct map stays.
    own = [
        (Place(buf.address, buf.storage), ranges[repr(buf)])
        for buf in made
        if buf.describe().storage_kind == "CHUNKS"
    ]
    for buf in made:
        buf.release()
    case.expect(case.live(), equals=live, what="descriptors that exist")
    left = free - case.free_memory()
    case.expect_that(
        left < 2 * MIB, expected="all memory given back", observed=f"{max(left, 0)} bytes are missing"
    )
    with case.look() as look:
        for name, where in ranges.items():
            stale = [leaf for leaf in look.aliases_of(name, where) if leaf.effective.name != "WB"]
            case.expect(len(stale), equals=0, what=f"leaves that are not write-back where {name} was")
        for place, where in own:
            expect_gone(case, look, place, where)
    case.note(
        f"{len(made)} buffers, {total} bytes: {used} bytes of it went, all but {max(left, 0)} came back"
    )


@check("A17")
def beyond_the_wired_limit_fails_cleanly(case: Case) -> None:
    """Asks for more wired memory than the limit or the machine has: NULL, and nothing is lost."""
    live, free = case.live(), case.free_memory()
    ram = case.facts.memory_mib * MIB
    limit = max(2 * GIB, ram // 64)
    for capacity in {limit + 1, 2 * limit, ram + PAGE}:
        if capacity > min(limit, ram):
            null = case.null(case.iokit.withOptions(kIODirectionInOut, capacity))
            case.note(f"{null.call}: {null.reason}")
    if ram <= limit:
        # Below every limit and still more than there is: what was already allocated has to go back.
        null = case.null(case.iokit.withOptions(kIODirectionInOut, ram - PAGE))
        case.note(f"{null.call}: {null.reason}")
    case.expect(case.live(), equals=live, what="descriptors that exist")
    left = free - case.free_memory()
    case.expect_that(
        left < 8 * MIB, expected="all memory given back", observed=f"{max(left, 0)} bytes are missing"
    )


@check("A18", outside=True)
def inherited_calls_are_accepted(case: Case) -> None:
    """Uses what every factory makes as a memory descriptor: length, direction, transfers, segments.

    Segments are compared with the page walk; behind an IOMMU a device reads what is there.
    """
    data = case.pattern(5000)
    made: list[IOBufferMemoryDescriptor] = [
        case.make(kIODirectionInOut, 5000),
        case.need(case.iokit.inTaskWithOptions(kernel_task, kIODirectionInOut | kIOMapInhibitCache, 5000)),
        case.need(case.iokit.withCapacity(5000, kIODirectionInOut)),
        case.need(case.iokit.withBytes(bytes(5000), kIODirectionInOut)),
    ]
    for buf in made:
        case.expect(buf.getLength(), equals=5000, what=f"getLength of {buf!r}")
        case.expect(buf.getDirection(), equals=kIODirectionInOut, what=f"getDirection of {buf!r}")
        case.expect(buf.writeBytes(0, data), equals=5000, what=f"writeBytes of {buf!r}")
        case.expect_bytes(buf.readBytes(0, 5000), equals=data, what=f"readBytes of {buf!r}")
        case.expect(
            buf.getPhysicalAddress(),
            equals=buf.getPhysicalSegment(0).address,
            what="getPhysicalAddress",
            show=hex,
        )
    claims = [buf.getPhysicalAddress() for buf in made]
    with case.look() as look:
        for buf, claim in zip(made, claims, strict=True):
            if not case.facts.iommu:
                there = look.at(buf.address)
                case.expect(claim, equals=there, what=f"getPhysicalAddress of {buf!r}", show=hex)
            case.expect_bytes(look.read(buf, 0, 5000), equals=data, what=f"guest RAM behind {buf!r}")
    if case.facts.iommu:
        for buf in made:
            expect_device_reaches(case, buf, 0, 512)


@check("A19", outside=True)
def buffers_never_overlap(case: Case) -> None:
    """Keeps buffers of all kinds alive at once and sorts the physical ranges of their storage."""
    shapes = [
        (kIODirectionIn, 1, 1), (kIODirectionOut, 16, 256), (kIODirectionNone, 2040, 1),
        (kIODirectionInOut, PAGE, PAGE), (kIODirectionInOut, 5000, 2 * PAGE), (kIODirectionIn, 99, 64 * KIB),
        (kIOMemoryPhysicallyContiguous, 100, 1), (kIOMemoryPhysicallyContiguous, 3 * MIB, 1),
        (kIODirectionInOut, 9 * MIB, 1), (kIOMapWriteCombineCache, 64 * KIB, 1),
        (kIOMapInhibitCache, 5 * MIB, 1), (kIOMapWriteThruCache, 12345, 1), (kIOMemoryThreadSafe, 17, 17),
    ]  # fmt: skip
    made = [buf for buf in (case.maybe(case.iokit.withOptions(*shape)) for shape in shapes * 2) if buf]
    with case.look() as look:
        ranges = sorted((one.start, one.length, repr(buf)) for buf in made for one in look.where(buf))
    for (start, length, first), (next_, _, second) in pairwise(ranges):
        case.expect_that(
            start + length <= next_,
            expected=f"{first} and {second} apart",
            observed=f"one reaches to {start + length:#x}, the other starts at {next_:#x}",
        )
    case.note(f"{len(made)} buffers alive, {len(ranges)} physical ranges, none shared")
