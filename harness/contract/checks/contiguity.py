# SPDX-License-Identifier: MIT
"""Group D: physical contiguity, and where in physical memory."""

import time
from collections.abc import Sequence

from harness.contract.case import GIB, KIB, MIB, PAGE, Case
from harness.contract.edu import expect_device_reaches
from harness.contract.engine import check
from harness.contract.pressure import all_blocks, counts, fill, fragment, give_up, user_memory
from harness.iokit import IOBufferMemoryDescriptor
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapInhibitCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
    kIOMemoryHostPhysicallyContiguous,
    kIOMemoryPhysicallyContiguous,
)

_CONTIGUOUS = kIODirectionInOut | kIOMemoryPhysicallyContiguous
_SIZES = (1, 100, 2040, 2041, PAGE, PAGE + 1, 3 * PAGE, 5000, 64 * KIB, MIB + 5, 4 * MIB)


def _expect_one_run(
    case: Case, made: Sequence[IOBufferMemoryDescriptor], *, translated: bool = False
) -> None:
    """Compare the module's first segment and the page walk: both must be one run over the whole buffer.

    Args:
        case: the check.
        made: the buffers.
        translated: their segments are I/O addresses: no page walk shows those.
    """
    claims = [(buf.getPhysicalSegment(0), buf.getLength()) for buf in made]
    with case.look() as look:
        for buf, (claim, length) in zip(made, claims, strict=True):
            runs = look.where(buf, 0, length)
            case.expect(len(runs), equals=1, what=f"physical runs of {buf!r}")
            if not translated:
                case.expect(claim.address, equals=runs[0].start, what=f"first segment of {buf!r}", show=hex)
            case.expect(claim.length, equals=length, what=f"length of the first segment of {buf!r}")


def _one_run_or_null(case: Case, option: int) -> None:
    modes = (0, kIOMapWriteCombineCache, kIOMapInhibitCache)
    option |= case.direct
    made = [case.make(kIODirectionInOut | option, size) for size in _SIZES]
    made += [buf for mode in modes if (buf := case.maybe(case.iokit.withOptions(option | mode | 3, 2 * MIB)))]
    wt = case.maybe(case.iokit.withOptions(kIODirectionInOut | option | kIOMapWriteThruCache, 64 * KIB))
    # Longer than any block of the buddy allocator: NULL is an answer, several runs are not.
    longest = case.maybe(case.iokit.withOptions(kIODirectionInOut | option, 9 * MIB))
    _expect_one_run(case, made + [buf for buf in (wt, longest) if buf])
    # Whole memory may give one run to those who never asked for it; memory in pieces does not.
    fragment(case, 2 * MIB, 128 * MIB)
    asked = [case.iokit.withOptions(kIODirectionInOut | option, size) for size in (3 * MIB, 9 * MIB, MIB)]
    _expect_one_run(case, [buf for buf in map(case.maybe, asked) if buf])


@check("D01", outside=True, fills=True)
def physically_contiguous_is_one_run(case: Case) -> None:
    """Asks for contiguous buffers of many sizes and types: one physical run each by the page walk."""
    _one_run_or_null(case, kIOMemoryPhysicallyContiguous)


@check("D02", outside=True, fills=True)
def contiguous_requests_may_fail_without_leftovers(case: Case) -> None:
    """Breaks memory up until half of it is free in 2 MiB pieces: 4 MiB give NULL, and nothing half made.

    Which pieces are taken is what the page walk says.  Once memory is whole again, a retry works.
    """
    live, free, said = case.live(), case.free_memory(), len(case.kernel_log())
    contiguous = _CONTIGUOUS | case.direct
    kept = fragment(case, 2 * MIB)
    # Memory of the kernel's that could be moved may have made room for a few.
    made, null = all_blocks(case, 4 * MIB)
    case.expect_that(null is not None, expected="NULL at last", observed=f"{len(made)} buffers of 4 MiB")
    before, early = case.free_memory(), len(made)
    case.expect_that(
        before > 32 * MIB, expected="plenty of memory, in pieces", observed=f"{before // MIB} MiB free"
    )
    refused = 0
    while refused < 4:
        asked = case.maybe(case.iokit.withOptions(contiguous, 4 * MIB))
        made += [asked] if asked else []
        refused += asked is None
    case.expect(case.live() - live, equals=len(kept) + len(made), what="descriptors after failed requests")
    lost = before - case.free_memory() - (len(made) - early) * 4 * MIB
    case.expect_that(
        lost < MIB, expected="failed requests keep no memory", observed=f"{max(lost, 0)} bytes lost"
    )
    small = case.need(case.iokit.withOptions(contiguous, MIB))
    pieces = [buf for buf in kept if buf.storage == 2 * MIB]
    _expect_one_run(case, (*pieces[:1], *pieces[-1:], small, *made[:1]))
    for buf in (*kept, *made, small):
        buf.release()
    with case.need(case.iokit.withOptions(contiguous, 4 * MIB)):
        case.note(f"with {before // MIB} MiB free in pieces: {null!r}; the retry after release succeeded")
    left = free - case.free_memory()
    # Tables of addresses that were mapped once stay with the kernel: 8 bytes a page (mm/vmalloc.c).
    tables = case.facts.memory_mib * MIB // 512
    case.expect_that(
        left < 8 * MIB + tables,
        expected="all memory given back",
        observed=f"{max(left, 0)} bytes are missing",
    )
    case.expect(case.complaints(said), equals=[], what="complaints in the kernel's log")


@check("D03", outside=True, fills=True)
def contiguous_requests_may_take_their_time(case: Case) -> None:
    """Asks for 4 MiB where every block is in pieces of a process's memory, which has to be moved first.

    Buffer or NULL, however long it takes; nobody else's bytes are harmed.  How much of it the kernel has done
    before it is asked is its own affair: last, wired memory keeps the pieces apart, where no work helps.
    """
    said, contiguous = len(case.kernel_log()), _CONTIGUOUS | case.direct
    fill(case, 256 * MIB)
    with user_memory(case, 48 * MIB) as (address, length):
        all_blocks(case, 4 * MIB)
        marks = {address + at: case.pattern(64) for at in range(PAGE, length - 4 * MIB, 16 * MIB)}
        for at, data in marks.items():
            case.guest.poke(at, data)
        # Every other 2 MiB of the process go: enough room, in pieces.
        for at in range(address + 2 * MIB, address + length - 2 * MIB, 4 * MIB):
            give_up(case, at, 2 * MIB)
        before, started = counts(case), time.perf_counter()
        asked = [case.iokit.withOptions(contiguous, 4 * MIB) for _ in range(8)]
        seconds = time.perf_counter() - started
        work = {name: count - before[name] for name, count in counts(case).items()}
        made = [buf for buf in map(case.maybe, asked) if buf]
        made.append(case.make(contiguous, 64 * KIB))
        _expect_one_run(case, made)
        for at, data in marks.items():
            case.expect_bytes(case.guest.peek(at, 64), equals=data, what="the process's memory")
    case.note(f"{len(made) - 1} of 8 in {seconds:.3f} s; the kernel's work for it: {work}")
    for buf in made:
        buf.release()
    fragment(case, 2 * MIB, 128 * MIB)
    asked = [case.iokit.withOptions(contiguous, 4 * MIB) for _ in range(8)]
    _expect_one_run(case, [buf for buf in map(case.maybe, asked) if buf])
    case.expect(case.complaints(said), equals=[], what="complaints in the kernel's log")


@check("D05", outside=True, fills=True)
def host_physically_contiguous_is_one_run(case: Case) -> None:
    """Asks with kIOMemoryHostPhysicallyContiguous for many sizes and types: one physical run each."""
    _one_run_or_null(case, kIOMemoryHostPhysicallyContiguous)


@check("D06", outside=True)
def small_contiguous_buffers_stay_in_a_page(case: Case) -> None:
    """Asks for contiguous buffers up to a page and compares the pages of first and last byte."""
    sizes = (1, 8, 100, 1000, 1500, 2040, 2041, 3000, PAGE - 1, PAGE)
    made = [
        (size, case.make(_CONTIGUOUS, size, align)) for size in sizes for align in (1, 64) for _ in range(2)
    ]
    with case.look() as look:
        for size, buf in made:
            first, last = look.at(buf.address), look.at(buf.address + size - 1)
            case.expect(
                last // PAGE, equals=first // PAGE, what=f"page of the last byte of {buf!r}", show=hex
            )
            case.expect(last - first, equals=size - 1, what=f"bytes between first and last of {buf!r}")


@check("D07", outside=True)
def contiguous_odd_sizes_report_their_own_length(case: Case) -> None:
    """Asks for contiguous sizes that are no whole pages: the run has that length and starts a page."""
    sizes = (1, 2040, 2041, 3000, 5000, 3 * PAGE + 1, 100_001, 4 * MIB - 5)
    made = [(size, case.make(_CONTIGUOUS | case.direct, size)) for size in sizes]
    _expect_one_run(case, [buf for _, buf in made])
    with case.look() as look:
        for size, buf in made:
            if size > 2040:
                case.expect_multiple(look.at(buf.address), PAGE, what=f"PA of {buf!r}")


@check("D08", outside=True)
def withcapacity_contiguous_aligns_to_the_capacity(case: Case) -> None:
    """Asks withCapacity for contiguous powers of two above a page: naturally aligned, one run.

    It takes no option against an IOMMU: behind one a device reads both ends of the run.
    """
    sizes = [1 << bit for bit in range(13, 23)]
    made = [(size, case.need(case.iokit.withCapacity(size, kIODirectionInOut, True))) for size in sizes]
    for size, buf in made:
        decided = buf.describe().alignment
        case.expect_multiple(decided, size, what=f"alignment decided on for {buf!r}")
    _expect_one_run(case, [buf for _, buf in made], translated=case.facts.iommu)
    if case.facts.iommu:
        size, buf = made[-1]
        for offset in (0, size - 512):
            expect_device_reaches(case, buf, offset, 512)
    odd = case.need(case.iokit.withCapacity(5000, kIODirectionInOut, True))
    with case.look() as look:
        for size, buf in made:
            case.expect_multiple(look.at(buf.address), size, what=f"PA of {buf!r}")
            case.expect_multiple(buf.address, size, what=f"kernel VA of {buf!r}")
        frame = look.at(odd.address) // PAGE
        case.expect(frame & 1, equals=0, what=f"page number {frame:#x} of {odd!r} & 1")


@check("D21", outside=True)
def one_page_contiguous_buffers_come_from_low_memory(case: Case) -> None:
    """Asks for contiguous buffers of 2041 to 4096 bytes where there is RAM above 4 GiB: all lie below."""
    if case.facts.top_of_ram <= 4 * GIB:
        case.not_applicable("no RAM above 4 GiB in this machine")
    made = [case.make(_CONTIGUOUS, size) for size in (2041, 3000, PAGE - 1, PAGE) for _ in range(4)]
    with case.look() as look:
        for buf in made:
            at = look.at(buf.address)
            case.expect_that(at < 4 * GIB, expected=f"{buf!r} below 4 GiB", observed=f"at {at:#x}")
            look.where(buf)
