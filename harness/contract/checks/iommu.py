# SPDX-License-Identifier: MIT
"""Groups C, D and I behind an IOMMU, where devices see other addresses than the processor."""

from itertools import pairwise

from harness.contract.case import KIB, MIB, PAGE, Case
from harness.contract.edu import expect_device_reaches
from harness.contract.engine import check
from harness.contract.pressure import fragment
from harness.iokit import kernel_task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapCopybackCache,
    kIOMemoryHostPhysicallyContiguous,
    kIOMemoryKernelUserShared,
    kIOMemoryMapperNone,
    kIOMemoryPhysicallyContiguous,
)

_SLOT = 64


def _needs_iommu(case: Case, what: str) -> None:
    if not case.facts.iommu:
        case.not_applicable(f"no IOMMU in this machine: {what}")


@check("C15", outside=True)
def small_buffers_share_a_page_under_an_iommu(case: Case) -> None:
    """Makes small buffers and finds several in one page by the page walk, at 64-byte steps, none overlapping.

    What asks for pages of its own, or for no mapper, is not packed.
    """
    _needs_iommu(case, "small buffers are packed only behind one")
    sizes = (1, 16, 64, 65, 100, 200, 1000)
    made = [(size, case.make(kIODirectionInOut, size, align)) for size in sizes for align in (1, 16, 64, 128)]
    alone = [
        case.make(kIODirectionInOut | option, 16, alignment)
        for option, alignment in (
            (kIOMemoryMapperNone, 1), (kIOMemoryKernelUserShared, 1), (kIOMapCopybackCache, 1), (0, PAGE),
            (kIOMemoryHostPhysicallyContiguous, 1),
        )
    ]  # fmt: skip
    alone.append(case.make(kIODirectionInOut, PAGE - _SLOT + 1, 1))
    planted = [case.plant(buf) for _, buf in made]
    with case.look() as look:
        at = [(look.at(buf.address), size) for size, buf in made]
        for (_, buf), (start, size) in zip(made, at, strict=True):
            case.expect_multiple(start % PAGE, _SLOT, what=f"offset in its page of {buf!r}")
            end = (start + size - 1) // PAGE
            case.expect(end, equals=start // PAGE, what=f"page of the last byte of {buf!r}", show=hex)
        for (start, size), (after, _) in pairwise(sorted(at)):
            case.expect_that(start + size <= after, expected="slots apart", observed=f"overlap at {after:#x}")
        pages = {start // PAGE for start, _ in at}
        case.expect_that(
            len(pages) < len(made) // 2, expected="buffers that share pages",
            observed=f"{len(pages)} pages for {len(made)} buffers",
        )  # fmt: skip
        for buf in alone:
            shared = look.at(buf.address) // PAGE in pages
            case.expect(shared, equals=False, what=f"{buf!r} in a page with others")
        for (_, buf), bytes_ in zip(made, planted, strict=True):
            for one in bytes_:
                found = look.read_at(look.at(buf.address + one.offset), len(one.data))
                case.expect_bytes(found, equals=one.data, what=f"guest RAM behind {buf!r}")
    case.note(f"{len(made)} buffers in {len(pages)} pages")


@check("D04", outside=True, fills=True)
def contiguity_behind_an_iommu(case: Case) -> None:
    """Asks for contiguity where memory is in pieces: one I/O range over many host runs; a device reads it.

    kIOMemoryHostPhysicallyContiguous and kIOMemoryMapperNone still bind the host's pages.
    """
    _needs_iommu(case, "device and processor see the same addresses")
    kept = fragment(case, 2 * MIB)
    options = kIODirectionInOut | kIOMemoryPhysicallyContiguous
    buf = case.make(options, 9 * MIB)
    case.expect([one.length for one in buf.segments()], equals=[9 * MIB], what=f"segments of {buf!r}")
    with case.look() as look:
        runs = look.where(buf)
    case.expect_that(len(runs) > 1, expected="several runs of host pages", observed=f"{len(runs)}")
    expect_device_reaches(case, buf, runs[0].length - 512, 1024)
    for binding in (kIOMemoryHostPhysicallyContiguous, options | kIOMemoryMapperNone):
        case.null(case.iokit.withOptions(kIODirectionInOut | binding, 9 * MIB))
    for one in kept:
        one.release()
    bound = [
        case.make(kIODirectionInOut | binding, size, alignment)
        for binding, size, alignment in (
            (kIOMemoryHostPhysicallyContiguous, 3 * MIB, 1), (options | kIOMemoryMapperNone, 3 * MIB, 1),
            (0, 100 * KIB, 64 * KIB),
        )
    ]  # fmt: skip
    with case.look() as look:
        for one in bound:
            case.expect(len(look.where(one)), equals=1, what=f"physical runs of {one!r}")


@check("D18", outside=True)
def mask_behind_an_iommu(case: Case) -> None:
    """Asks under narrow masks: every I/O address fits, pages lie above, and a device reads them.

    What is free below a mask is held meanwhile: whoever asks gets pages above it, and not by chance.
    """
    _needs_iommu(case, "a mask is about the processor's addresses")
    for mask, size in ((0x03FF_FFFF, 24 * MIB), (0x00FF_FFFF, 6 * MIB), (0x0FFF_FFFF, 5000)):
        if size > PAGE * 16:
            _take_pages_below(case, mask)
        buf = case.need(case.iokit.inTaskWithPhysicalMask(kernel_task, kIODirectionInOut, size, mask))
        for one in buf.segments():
            last = one.address + one.length - 1
            case.expect_that(last <= mask, expected=f"I/O addresses up to {mask:#x}", observed=f"{last:#x}")
        with case.look() as look:
            top = max(one.start + one.length for one in look.where(buf))
        if size > PAGE * 16:
            case.expect_that(top > mask, expected=f"host pages above {mask:#x}", observed=f"up to {top:#x}")
        expect_device_reaches(case, buf, size - 4000, 4000)
    case.null(case.iokit.inTaskWithPhysicalMask(kernel_task, kIODirectionInOut, 24 * MIB, 0x00FF_FFFF))


def _take_pages_below(case: Case, mask: int) -> None:
    """Hold the host's pages below *mask* until no MiB of them is left."""
    options = kIODirectionInOut | kIOMemoryMapperNone
    for size in (4 * MIB, MIB):
        while case.iokit.inTaskWithPhysicalMask(kernel_task, options, size, mask):
            pass


@check("I07", outside=True)
def mapper_none_gives_processor_addresses(case: Case) -> None:
    """Compares segments with and without kIOMemoryMapperNone with the page walk; a device reads the rest."""
    options = kIODirectionInOut | kIOMemoryMapperNone
    direct = [case.make(options, size) for size in (5000, 64 * KIB, MIB)]
    claims = [(buf, offset, buf.getPhysicalSegment(offset)) for buf in direct for offset in (0, 1, 4999)]
    with case.look() as look:
        for buf, offset, claim in claims:
            there = look.at(buf.address + offset)
            case.expect(claim.address, equals=there, what=f"segment at {offset} of {buf!r}", show=hex)
    _needs_iommu(case, "only the processor's addresses can be compared, and they agree")
    for size in (16, 5000, 300 * KIB):
        buf = case.make(kIODirectionInOut, size)
        said = buf.getPhysicalAddress()
        case.expect(buf.getPhysicalSegment(0).address, equals=said, what="first segment", show=hex)
        with case.look() as look:
            case.expect_that(
                said != look.at(buf.address), expected="an I/O address", observed=f"the PA {said:#x}"
            )
        for offset in {0, size // 2, max(0, size - 512)}:
            expect_device_reaches(case, buf, offset, min(512, size - offset))
