# SPDX-License-Identifier: MIT
"""Group C: alignment of virtual and physical addresses."""

from collections.abc import Sequence

from harness.contract.case import KIB, MIB, PAGE, Case
from harness.contract.engine import check
from harness.contract.look import Look
from harness.contract.pressure import fragment
from harness.iokit import IOBufferMemoryDescriptor, Null
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapCacheShift,
    kIOMapRealTimeCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
    kIOMemoryClearEncrypt,
    kIOMemoryKernelUserShared,
    kIOMemoryMapperNone,
    kIOMemoryPhysicallyContiguous,
)

_PAGE_SHIFT = 12
_MAY_LACK = (kIOMapWriteThruCache, kIOMapWriteCombineCache, kIOMapRealTimeCache)


def _expect_aligned(case: Case, look: Look, buf: IOBufferMemoryDescriptor, to: int) -> None:
    """Compare kernel virtual and physical address of the first byte with power of two *to*."""
    case.expect_multiple(buf.address, to, what=f"kernel VA of {buf!r}")
    case.expect_multiple(look.at(buf.address), to, what=f"PA of {buf!r}")


def _expect_decided(case: Case, buf: IOBufferMemoryDescriptor, at_least: int) -> None:
    """Compare the alignment the placement decided on: luck may align an address, it cannot align this."""
    decided = buf.describe().alignment
    case.expect_that(
        decided >= at_least and decided % at_least == 0,
        expected=f"{buf!r} placed for alignment {at_least}",
        observed=f"placed for alignment {decided}",
    )


@check("C01", outside=True)
def alignment_is_a_minimum(case: Case) -> None:
    """Asks for alignment 256 and looks at the low eight bits of virtual and physical address."""
    made = [case.make(kIODirectionInOut, size, 256) for size in (1, 16, 100, 257, 5000, 64 * KIB, 9 * MIB)]
    for buf in made:
        _expect_decided(case, buf, 256)
    with case.look() as look:
        for buf in made:
            _expect_aligned(case, look, buf, 256)


@check("C02", outside=True)
def alignment_one_asks_for_nothing(case: Case) -> None:
    """Asks for alignment 1 in every size: a buffer, wherever it lies, all of it mapped."""
    made = [case.make(kIODirectionInOut, size, 1) for size in (1, 3, 100, 4095, 5000, 64 * KIB + 1, 9 * MIB)]
    with case.look() as look:
        for buf in made:
            mapped = sum(one.length for one in look.where(buf, 0, buf.storage))
            case.expect(mapped, equals=buf.storage, what=f"bytes mapped for {buf!r}")


@check("C03", outside=True)
def alignment_zero_acts_as_one(case: Case) -> None:
    """Asks for alignment 0 and 1 and compares the placements."""
    for options in (kIODirectionInOut, kIODirectionInOut | kIOMemoryPhysicallyContiguous):
        for size in (1, 5000):
            zero, one = case.make(options, size, 0), case.make(options, size, 1)
            case.expect(
                zero.describe().alignment, equals=one.describe().alignment, what="alignment decided on for 0"
            )
            with case.look() as look:
                mapped = [sum(part.length for part in look.where(buf)) for buf in (zero, one)]
            case.expect(mapped[0], equals=mapped[1], what=f"bytes mapped for {zero!r}")


@check("C04", outside=True)
def powers_of_two_up_to_a_page(case: Case) -> None:
    """Asks for every power of two from 2 to a page and compares VA, PA and their low 12 bits."""
    made = [
        (1 << bit, case.make(kIODirectionInOut, size, 1 << bit))
        for bit in range(1, 13)
        for size in (16, 5000)
    ]
    for alignment, buf in made:
        _expect_decided(case, buf, alignment)
    with case.look() as look:
        for alignment, buf in made:
            _expect_aligned(case, look, buf, alignment)
            case.expect(
                look.at(buf.address) % PAGE,
                equals=buf.address % PAGE,
                what=f"low 12 bits of the PA of {buf!r}",
                show=hex,
            )


@check("C05", outside=True)
def other_alignments_are_rounded_up(case: Case) -> None:
    """Asks for alignments below a page that are no powers of two; the next power of two must hold."""
    for alignment, power in ((3, 4), (100, 128), (129, 256), (1000, 1024), (2049, 4096), (4095, 4096)):
        made = [case.make(kIODirectionInOut, size, alignment) for size in (16, 5000)]
        for buf in made:
            _expect_decided(case, buf, power)
        with case.look() as look:
            for buf in made:
                _expect_aligned(case, look, buf, power)


@check("C06", outside=True)
def page_alignment_takes_whole_pages(case: Case) -> None:
    """Asks for alignments from a page on: the buffer starts a page, and its storage is whole pages."""
    made = [
        case.make(kIODirectionInOut, size, PAGE) for size in (1, 100, 4097, 5000, 64 * KIB + 1, 9 * MIB + 1)
    ]
    made += [case.make(kIODirectionInOut, 100, 2 * PAGE), case.make(kIODirectionInOut, 4097, 16 * PAGE)]
    for buf in made:
        _expect_decided(case, buf, PAGE)
    capacities = [buf.getCapacity() for buf in made]
    with case.look() as look:
        for buf, capacity in zip(made, capacities, strict=True):
            _expect_aligned(case, look, buf, PAGE)
            mapped = sum(one.length for one in look.where(buf))
            case.expect(mapped % PAGE, equals=0, what=f"bytes beyond whole pages in the storage of {buf!r}")
            case.expect_that(
                mapped >= capacity,
                expected=f"storage for {capacity} bytes",
                observed=f"{mapped} bytes mapped",
            )


@check("C07", outside=True, fills=True)
def more_than_page_alignment_is_contiguous(case: Case) -> None:
    """Asks for alignments above a page without the contiguous option: one physical run, else NULL.

    Asked again where memory is in pieces of 2 MiB, so that nobody finds one run by chance.
    """
    shapes = [(size, align) for align in (2 * PAGE, 64 * KIB, MIB) for size in (100, 5000, 3 * PAGE, MIB + 1)]
    made = [case.make(kIODirectionInOut, *shape) for shape in shapes]
    # Longer than the page allocator's longest block: NULL is an answer, several runs are not.
    longest = case.maybe(case.iokit.withOptions(kIODirectionInOut, 9 * MIB, 2 * PAGE))
    _expect_one_run(case, made + [buf for buf in (longest,) if buf])
    fragment(case, 2 * MIB, 128 * MIB)
    asked = [case.iokit.withOptions(kIODirectionInOut, size, 2 * PAGE) for size in (9 * MIB, 3 * MIB, MIB)]
    _expect_one_run(case, [buf for buf in map(case.maybe, asked) if buf])


def _expect_one_run(case: Case, made: Sequence[IOBufferMemoryDescriptor]) -> None:
    claims = [buf.getPhysicalSegment(0) for buf in made]
    lengths = [buf.getLength() for buf in made]
    with case.look() as look:
        for buf, claim, length in zip(made, claims, lengths, strict=True):
            case.expect(len(look.where(buf)), equals=1, what=f"physical runs of {buf!r}")
            case.expect(claim.length, equals=length, what=f"length of the first segment of {buf!r}")


@check("C08", outside=True)
def large_alignment_holds_for_both_addresses(case: Case) -> None:
    """Asks for powers of two above a page and compares the kernel VA and the PA found by the page walk."""
    shapes = [(100, 1 << bit) for bit in range(13, 23)]
    shapes += [(3 * PAGE, 64 * KIB), (MIB + 1, 2 * PAGE), (MIB, 4 * MIB), (3 * MIB, 2 * MIB)]
    made = [(align, case.make(kIODirectionInOut, size, align)) for size, align in shapes]
    wt = case.maybe(case.iokit.withOptions(kIODirectionInOut | kIOMapWriteThruCache, 5000, 64 * KIB))
    made += [(64 * KIB, wt)] if wt else []
    for align, buf in made:
        _expect_decided(case, buf, align)
    with case.look() as look:
        for align, buf in made:
            _expect_aligned(case, look, buf, align)
            look.where(buf)


@check("C09", outside=True)
def odd_large_alignment_clears_page_number_bits(case: Case) -> None:
    """Asks for alignments A above a page, no powers of two: the page number has no bit of (A-1)/4096."""
    alignments = (5000, 3 * PAGE, 5 * PAGE, 100_000, 1_000_000)
    made = [
        (align, case.make(kIODirectionInOut, size, align)) for align in alignments for size in (100, 9000)
    ]
    for align, buf in made:
        _expect_decided(case, buf, 1 << (align - 1).bit_length())
    with case.look() as look:
        for align, buf in made:
            frame, mask = look.at(buf.address) >> _PAGE_SHIFT, (align - 1) >> _PAGE_SHIFT
            case.expect(
                frame & mask, equals=0, what=f"page number {frame:#x} of {buf!r} & {mask:#x}", show=hex
            )
            case.expect(len(look.where(buf)), equals=1, what=f"physical runs of {buf!r}")


@check("C10", outside=True)
def small_contiguous_buffers_take_the_raw_alignment(case: Case) -> None:
    """Asks for contiguous buffers below half a page with alignment 100: address & 99 is 0."""
    options = kIODirectionInOut | kIOMemoryPhysicallyContiguous
    made = [case.make(options, size, 100) for size in (1, 16, 100, 1000, 2040)]
    for buf in made:
        case.expect_that(
            buf.describe().alignment > 99,
            expected="placed with the bits of 99 clear",
            observed=f"alignment {buf.describe().alignment}",
        )
    with case.look() as look:
        for buf in made:
            case.expect(buf.address & 99, equals=0, what=f"kernel VA of {buf!r} & 99", show=hex)
            case.expect(look.at(buf.address) & 99, equals=0, what=f"PA of {buf!r} & 99", show=hex)


@check("C11")
def alignment_beyond_32_bits_fails(case: Case) -> None:
    """Asks for alignments of 2^32 and more."""
    for alignment in (2**32, 2**33, 2**40, 2**63):
        for size in (16, PAGE, 5000):
            made = case.iokit.withOptions(kIODirectionInOut, size, alignment)
            null: Null = case.null(made)
            case.note(f"{null.call}: {null.reason}")


@check("C12", outside=True)
def sharing_and_cache_bits_force_page_alignment(case: Case) -> None:
    """Asks for 16 bytes at alignment 1 with each option that needs pages of its own."""
    modes = [mode << kIOMapCacheShift for mode in range(1, 10)]
    options = [kIOMemoryKernelUserShared, kIOMemoryClearEncrypt, *modes]
    _expect_page_aligned(case, options)


@check("C13", outside=True)
def mapper_none_forces_page_alignment(case: Case) -> None:
    """Asks for 16 bytes at alignment 1 with kIOMemoryMapperNone, whose bit lies in the cache mask."""
    _expect_page_aligned(case, [kIOMemoryMapperNone])


def _expect_page_aligned(case: Case, options: list[int]) -> None:
    made = []
    for option in options:
        for alignment in (1, 64):
            made_one = case.iokit.withOptions(kIODirectionInOut | option, 16, alignment)
            # A processor without the type has no such buffer to align.
            buf = case.maybe(made_one) if option in _MAY_LACK else case.need(made_one)
            if buf:
                _expect_decided(case, buf, PAGE)
                made.append(buf)
    with case.look() as look:
        for buf in made:
            _expect_aligned(case, look, buf, PAGE)
