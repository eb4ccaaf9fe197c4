# SPDX-License-Identifier: MIT
"""Group D: physical contiguity, and where in physical memory."""

from collections.abc import Sequence

from harness.contract.case import GIB, KIB, MIB, PAGE, Case
from harness.contract.engine import check
from harness.iokit import IOBufferMemoryDescriptor, Null
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
# Exhausting memory takes a second per GiB under emulation.
_EXHAUSTIBLE_MIB = 1024
_NO_IOMMU = "no IOMMU in this machine: device and processor see the same addresses"


def _expect_one_run(case: Case, made: Sequence[IOBufferMemoryDescriptor]) -> None:
    """Compare the module's first segment and the page walk: both must be one run over the whole buffer."""
    claims = [(buf.getPhysicalSegment(0), buf.getLength()) for buf in made]
    with case.look() as look:
        for buf, (claim, length) in zip(made, claims, strict=True):
            runs = look.where(buf, 0, length)
            case.expect(len(runs), equals=1, what=f"physical runs of {buf!r}")
            case.expect(claim.address, equals=runs[0].start, what=f"first segment of {buf!r}", show=hex)
            case.expect(claim.length, equals=length, what=f"length of the first segment of {buf!r}")


def _one_run_or_null(case: Case, option: int) -> None:
    modes = (0, kIOMapWriteCombineCache, kIOMapInhibitCache)
    made = [case.make(kIODirectionInOut | option, size) for size in _SIZES]
    made += [buf for mode in modes if (buf := case.maybe(case.iokit.withOptions(option | mode | 3, 2 * MIB)))]
    wt = case.maybe(case.iokit.withOptions(kIODirectionInOut | option | kIOMapWriteThruCache, 64 * KIB))
    # Longer than any block of the buddy allocator: NULL is an answer, several runs are not.
    longest = case.maybe(case.iokit.withOptions(kIODirectionInOut | option, 9 * MIB))
    _expect_one_run(case, made + [buf for buf in (wt, longest) if buf])


@check("D01", outside=True)
def physically_contiguous_is_one_run(case: Case) -> None:
    """Asks for contiguous buffers of many sizes and types: one physical run each by the page walk."""
    _one_run_or_null(case, kIOMemoryPhysicallyContiguous)


@check("D02", outside=True)
def contiguous_requests_may_fail_without_leftovers(case: Case) -> None:
    """Takes all 4 MiB blocks: then NULL, no half-made buffer, no warning; after release a retry works."""
    if case.facts.memory_mib > _EXHAUSTIBLE_MIB:
        case.unproved(
            f"exhausting {case.facts.memory_mib} MiB takes too long; at most {_EXHAUSTIBLE_MIB} MiB are tried"
        )
    live, free, said = case.live(), case.free_memory(), len(case.kernel_log())
    made: list[IOBufferMemoryDescriptor] = []
    null: Null | None = None
    while null is None and len(made) <= case.facts.memory_mib // 4:
        one = case.iokit.withOptions(_CONTIGUOUS, 4 * MIB)
        if isinstance(one, Null):
            null = one
        else:
            made.append(one)
    case.expect_that(null is not None, expected="NULL at last", observed=f"{len(made)} buffers of 4 MiB")
    case.expect(case.live() - live, equals=len(made), what="descriptors after a failed request")
    before = case.free_memory()
    for _ in range(3):
        case.null(case.iokit.withOptions(_CONTIGUOUS, 4 * MIB))
    lost = before - case.free_memory()
    case.expect_that(
        lost < MIB, expected="failed requests keep no memory", observed=f"{max(lost, 0)} bytes lost"
    )
    _expect_one_run(case, (made[0], made[-1]))
    for buf in made:
        buf.release()
    with case.need(case.iokit.withOptions(_CONTIGUOUS, 4 * MIB)):
        case.note(f"after {len(made)} buffers of 4 MiB: {null!r}; the retry after release succeeded")
    left = free - case.free_memory()
    case.expect_that(
        left < 8 * MIB, expected="all memory given back", observed=f"{max(left, 0)} bytes are missing"
    )
    complaints = [
        line
        for line in case.kernel_log()[said:].splitlines()
        if "WARNING:" in line or "failure: order" in line
    ]
    case.expect(complaints, equals=[], what="complaints in the kernel's log")


@check("D04")
def contiguity_behind_an_iommu(case: Case) -> None:
    """Needs an IOMMU the buffers go through."""
    if not case.facts.iommu:
        case.not_applicable(_NO_IOMMU)
    case.unproved("the module allocates for a device that is not behind the IOMMU")


@check("D05", outside=True)
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
    made = [(size, case.make(_CONTIGUOUS, size)) for size in sizes]
    _expect_one_run(case, [buf for _, buf in made])
    with case.look() as look:
        for size, buf in made:
            if size > 2040:
                case.expect_multiple(look.at(buf.address), PAGE, what=f"PA of {buf!r}")


@check("D08", outside=True)
def withcapacity_contiguous_aligns_to_the_capacity(case: Case) -> None:
    """Asks withCapacity for contiguous powers of two above a page: naturally aligned, one run."""
    sizes = [1 << bit for bit in range(13, 23)]
    made = [(size, case.need(case.iokit.withCapacity(size, kIODirectionInOut, True))) for size in sizes]
    for size, buf in made:
        decided = buf.describe().alignment
        case.expect_multiple(decided, size, what=f"alignment decided on for {buf!r}")
    _expect_one_run(case, [buf for _, buf in made])
    odd = case.need(case.iokit.withCapacity(5000, kIODirectionInOut, True))
    with case.look() as look:
        for size, buf in made:
            case.expect_multiple(look.at(buf.address), size, what=f"PA of {buf!r}")
            case.expect_multiple(buf.address, size, what=f"kernel VA of {buf!r}")
        frame = look.at(odd.address) // PAGE
        case.expect(frame & 1, equals=0, what=f"page number {frame:#x} of {odd!r} & 1")


@check("D18")
def mask_behind_an_iommu(case: Case) -> None:
    """Needs an IOMMU the buffers go through."""
    if not case.facts.iommu:
        case.not_applicable(_NO_IOMMU)
    case.unproved("the module allocates for a device that is not behind the IOMMU")


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
