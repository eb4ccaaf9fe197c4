# SPDX-License-Identifier: MIT
"""Group D: physical masks, checked page by page against the page walk."""

from collections.abc import Iterable, Sequence

from harness.contract.case import GIB, KIB, MIB, PAGE, Case
from harness.contract.engine import check
from harness.contract.look import Look
from harness.contract.pressure import fragment
from harness.iokit import IOBufferMemoryDescriptor, Task, kernel_task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMemoryPageable,
    kIOMemoryPhysicallyContiguous,
)
from harness.oracle import PhysRange

_BELOW_16M = 0x00FF_FFFF
_BELOW_4G = 0xFFFF_FFFF
_ALL = 2**64 - 1
_SIZES = (1, PAGE, 5000, 64 * KIB, MIB + 5)
_NO_HIGH_RAM = "no RAM above 4 GiB in this machine"

Masked = Sequence[tuple[int, IOBufferMemoryDescriptor]]


def _allowed(mask: int) -> int:
    """Return the bits a byte of the buffer may have: zeros below the lowest bit ask for alignment (D10)."""
    return mask | ((mask & -mask) - 1) | (PAGE - 1)


def _first_wrong_page(ranges: Iterable[PhysRange], mask: int) -> int | None:
    return next(
        (
            page
            for one in ranges
            for page in range(one.start // PAGE * PAGE, one.start + one.length, PAGE)
            if page & ~_allowed(mask)
        ),
        None,
    )


def _expect_kept(case: Case, look: Look, made: Masked) -> None:
    """Compare every page of the storage of every buffer with its mask."""
    for mask, buf in made:
        wrong = _first_wrong_page(look.where(buf), mask)
        case.expect_that(
            wrong is None,
            expected=f"every page of {buf!r} with bits of {mask:#x} only",
            observed="no other page" if wrong is None else f"a page at {wrong:#x}",
        )


def _masked(
    case: Case, masks: Iterable[int], sizes: Iterable[int], options: int = 0, *, may_fail: bool = False
) -> list[tuple[int, IOBufferMemoryDescriptor]]:
    """Make one buffer of each size under each mask; where NULL is an answer, at least one must be made.

    Behind an IOMMU a mask is about pages only for those who ask for no mapper (D18).
    """
    made, direct = [], kIODirectionInOut | case.direct
    for mask in masks:
        for size in sizes:
            asked = case.iokit.inTaskWithPhysicalMask(kernel_task, direct | options, size, mask)
            buf = case.maybe(asked) if may_fail else case.need(asked)
            if buf:
                made.append((mask, buf))
    case.expect_that(bool(made), expected="at least one buffer", observed="NULL for every mask and size")
    return made


def _ones_up_to(case: Case) -> int:
    """Return all bits an address of RAM can have in this machine."""
    return (1 << (case.facts.top_of_ram - 1).bit_length()) - 1


def _without_the_pages_at_hand(case: Case, size: int) -> int:
    """Return a mask that leaves out what the kernel gives away now: a bit that most such pages have.

    Which part of RAM that is depends on what ran before: under any other mask pages can be right by chance.
    """
    with case.make(kIODirectionInOut | case.direct, size) as buf, case.look() as look:
        pages = [page for one in look.where(buf) for page in range(one.start, one.start + one.length, PAGE)]
    ones = _ones_up_to(case)
    # The highest such bit: what is given away next is near, and nothing near differs in it.
    bits = reversed(range(20, ones.bit_length()))
    return ones & ~(1 << max(bits, key=lambda bit: sum(page >> bit & 1 for page in pages)))


@check("D09", outside=True)
def no_page_has_a_bit_outside_the_mask(case: Case) -> None:
    """Asks under masks that leave out part of this machine's RAM and walks to every page."""
    half = _ones_up_to(case) >> 1
    masks = (_BELOW_4G, 0x7FFF_FFFF, half, half >> 1)
    made = _masked(case, masks, _SIZES)
    # Above 4 GiB a mask takes one run (D16), and none is that long.
    made += _masked(case, [mask for mask in masks if mask <= _BELOW_4G], (9 * MIB,))
    for size in _SIZES:
        made += _masked(case, (_without_the_pages_at_hand(case, size),), (size,))
    with case.look() as look:
        _expect_kept(case, look, made)
    case.note(f"RAM reaches up to {case.facts.top_of_ram:#x}; masks {', '.join(map(hex, masks))}")


@check("D10", outside=True)
def the_lowest_bit_of_the_mask_aligns(case: Case) -> None:
    """Asks under masks whose low bits are zero: that alignment, and above a page one run."""
    masks = [_BELOW_4G & -(1 << bit) for bit in (4, 12, 13, 16, 20, 22)]
    made = _masked(case, masks, (1, 5000, 64 * KIB))
    segments = [buf.segments() for _, buf in made]
    with case.look() as look:
        _expect_kept(case, look, made)
        for (mask, buf), said in zip(made, segments, strict=True):
            lowest = max(mask & -mask, PAGE)
            case.expect_multiple(look.at(buf.address), lowest, what=f"PA of {buf!r}")
            case.expect_multiple(buf.address, lowest, what=f"kernel VA of {buf!r}")
            if lowest > PAGE:
                case.expect(len(look.where(buf)), equals=1, what=f"physical runs of {buf!r}")
                case.expect(len(said), equals=1, what=f"segments of {buf!r}")
    for mask, buf in made:
        decided = buf.describe().alignment
        case.expect_multiple(decided, max(mask & -mask, PAGE), what=f"alignment decided on for {buf!r}")


@check("D11", outside=True)
def an_alignment_drops_the_mask(case: Case) -> None:
    """Gives a mask of 16 MiB and an alignment: a buffer that does not fit below 16 MiB is made."""
    size = 24 * MIB
    for alignment in (0, 1):
        case.null(
            case.iokit.initWithPhysicalMask(kernel_task, kIODirectionInOut, size, alignment, _BELOW_16M)
        )
    made = [
        case.need(
            case.iokit.initWithPhysicalMask(kernel_task, kIODirectionInOut, size, alignment, _BELOW_16M)
        )
        for alignment in (2, 256, PAGE)
    ]
    with case.look() as look:
        for buf in made:
            wrong = _first_wrong_page(look.where(buf), _BELOW_16M)
            case.expect_that(wrong is not None, expected="pages above 16 MiB", observed="none")


@check("D12", outside=True)
def masks_below_4_gib_hold_for_scattered_pages(case: Case) -> None:
    """Asks for scattered pages below 16, 32 and 64 MiB: there, or NULL; never a wrong page."""
    masks = (_BELOW_16M, 0x00FF_F000, 0x01FF_FFFF, 0x03FF_FFFF)
    made = _masked(case, masks, (*_SIZES, 6 * MIB), may_fail=True)
    with case.look() as look:
        _expect_kept(case, look, made)
    direct = kIODirectionInOut | case.direct
    case.null(case.iokit.inTaskWithPhysicalMask(kernel_task, direct, 17 * MIB, _BELOW_16M))
    case.null(case.iokit.inTaskWithPhysicalMask(kernel_task, direct, 1, 1))


@check("D13", outside=True)
def contiguous_under_16_mib(case: Case) -> None:
    """Asks for contiguous buffers under 0x00FFFFFF: one run below 16 MiB, or NULL."""
    made = _masked(case, (_BELOW_16M,), (*_SIZES, 4 * MIB), kIOMemoryPhysicallyContiguous, may_fail=True)
    case.expect_that(
        any(buf.storage > PAGE for _, buf in made), expected="a buffer of several pages", observed="none"
    )
    with case.look() as look:
        _expect_kept(case, look, made)
        for _, buf in made:
            runs = look.where(buf)
            case.expect(len(runs), equals=1, what=f"physical runs of {buf!r}")
            last = runs[0].start + runs[0].length - 1
            case.expect_that(last <= _BELOW_16M, expected=f"{buf!r} below 16 MiB", observed=f"to {last:#x}")


@check("D14", outside=True)
def masks_with_holes_are_kept(case: Case) -> None:
    """Takes single bits out of the middle of a mask: no page has one of them, or there is NULL."""
    whole = _ones_up_to(case)
    top = whole.bit_length() - 1
    masks = [whole & ~(1 << bit) for bit in (12, 14, 20, top - 1)]
    made = _masked(case, masks, _SIZES, may_fail=True)
    masks += [whole & ~(1 << 13 | 1 << 21), 0xF0F0_F000 & whole, 0x0AAA_AFFF & whole]
    made += _masked(case, masks[-3:], (1, 5000, 64 * KIB), may_fail=True)
    made += _masked(case, masks, (1, 4 * KIB, 16 * KIB), kIOMemoryPhysicallyContiguous, may_fail=True)
    case.expect_that(len(made) > len(masks), expected="more than a buffer a mask", observed=f"{len(made)}")
    with case.look() as look:
        _expect_kept(case, look, made)
    # Counting up from anywhere, bit 14 gets set within 16 KiB: no such run exists.
    without = whole & ~(1 << 14)
    options = kIODirectionInOut | kIOMemoryPhysicallyContiguous | case.direct
    case.null(case.iokit.inTaskWithPhysicalMask(kernel_task, options, 32 * KIB, without))


@check("D15", outside=True)
def a_mask_above_all_ram_changes_nothing(case: Case) -> None:
    """Asks under masks that every page fits: all pages there are, contiguous or not, page aligned."""
    masks = (_ones_up_to(case), _ALL, _ALL - PAGE + 1, 2**63 - 1)
    made = _masked(case, masks, (16, 5000, 9 * MIB, 24 * MIB))
    for mask, buf in made:
        said = buf.describe()
        with case.make(kIODirectionInOut, buf.getCapacity(), PAGE) as other:
            plain = other.describe()
        case.expect(
            (said.storage, said.alignment), equals=(plain.storage, plain.alignment),
            what=f"storage and alignment under {mask:#x}",
        )  # fmt: skip
    with case.look() as look:
        for _, buf in made:
            mapped = sum(one.length for one in look.where(buf))
            case.expect(mapped, equals=buf.storage, what=f"bytes mapped for {buf!r}")


@check("D16", outside=True)
def a_mask_inside_high_memory_is_contiguous(case: Case) -> None:
    """Asks under masks that end between 4 GiB and the top of RAM: one run, though nobody asked for it."""
    top = case.facts.top_of_ram
    if top <= 4 * GIB:
        case.not_applicable(_NO_HIGH_RAM)
    # One with holes as well: the bits below its highest are not all set.
    masks = [*((1 << bits) - 1 for bits in range(33, 52) if (1 << bits) < top), top - GIB // 2 - 1]
    made = _masked(case, masks, (5000, 64 * KIB, MIB + 5, 4 * MIB))
    segments = [len(buf.segments()) for _, buf in made]
    with case.look() as look:
        _expect_kept(case, look, made)
        for (_, buf), said in zip(made, segments, strict=True):
            case.expect(len(look.where(buf)), equals=1, what=f"physical runs of {buf!r}")
            case.expect(said, equals=1, what=f"segments of {buf!r}")
    for mask in masks:
        # No block of the kernel's page allocator is as long as what follows, and the blocks it would be put
        # together from, the ones that were freed last, have their neighbours in use.
        held = [
            case.need(case.iokit.inTaskWithPhysicalMask(kernel_task, kIODirectionInOut, 4 * MIB, mask))
            for _ in range(8)
        ]
        with case.look() as look:
            at = {look.at(buf.address): buf for buf in held}
        freed: set[int] = set()
        for start in sorted(at):
            if start - 4 * MIB not in freed:
                freed.add(start)
                at[start].release()
        longest = case.maybe(case.iokit.inTaskWithPhysicalMask(kernel_task, kIODirectionInOut, 9 * MIB, mask))
        if longest:
            with case.look() as look:
                case.expect(len(look.where(longest)), equals=1, what=f"physical runs of {longest!r}")


@check("D17", outside=True)
def mask_zero_restricts_nothing(case: Case) -> None:
    """Compares mask 0 with withOptions of alignment 1: alignment decided on and storage are the same."""
    pairs = []
    for size in (1, 16, 5000, 64 * KIB, 9 * MIB + 5, 24 * MIB):
        masked = case.need(case.iokit.inTaskWithPhysicalMask(kernel_task, kIODirectionInOut, size, 0))
        pairs.append((masked, case.make(kIODirectionInOut, size, 1)))
    for masked, plain in pairs:
        case.expect(
            masked.describe().alignment, equals=plain.describe().alignment,
            what=f"alignment decided on for {masked!r}",
        )  # fmt: skip
    aligned = case.need(case.iokit.initWithPhysicalMask(kernel_task, kIODirectionInOut, 16, 256, 0))
    case.expect_multiple(aligned.address, 256, what=f"kernel VA of {aligned!r}")
    with case.look() as look:
        for masked, plain in pairs:
            mapped = [sum(one.length for one in look.where(buf)) for buf in (masked, plain)]
            case.expect(mapped[0], equals=mapped[1], what=f"bytes mapped for {masked!r}")


@check("D19", outside=True, fills=True)
def pageable_pages_lie_anywhere(case: Case) -> None:
    """Prepares pageable buffers made with mask and contiguity: above the mask, and in many runs.

    Memory is in pieces of 2 MiB, so that nobody finds one run by chance.
    """
    size = 24 * MIB
    fragment(case, 2 * MIB)
    options = kIODirectionInOut | kIOMemoryPageable | kIOMemoryPhysicallyContiguous
    made = [
        case.need(case.iokit.inTaskWithPhysicalMask(task, options, size, _BELOW_16M))
        for task in (kernel_task, Task.NULL)
    ]
    for buf in made:
        case.expect(int(buf.prepare()), equals=0, what=f"prepare of {buf!r}", show=hex)
    data = case.pattern(64)
    planted = [(buf, offset) for buf in made for offset in (0, size // 2, size - 64)]
    for buf, offset in planted:
        buf.writeBytes(offset, data)
    claims = [(buf, offset, buf.getPhysicalSegment(offset).address) for buf, offset in planted]
    segments = [(buf, buf.segments()) for buf in made]
    with case.look() as look:
        for buf, offset, address in claims:
            found = look.read_at(address, 64)
            case.expect_bytes(found, equals=data, what=f"RAM at the segment at {offset} of {buf!r}")
        runs = look.where(made[0])
    case.expect_that(len(runs) > 1, expected="several physical runs", observed=f"{len(runs)}")
    for buf, said in segments:
        case.expect_that(len(said) > 1, expected="several segments", observed=f"{len(said)}")
        wrong = _first_wrong_page((PhysRange(*one) for one in said), _BELOW_16M)
        case.expect_that(wrong is not None, expected=f"pages of {buf!r} above 16 MiB", observed="none")


@check("D20", outside=True)
def a_mask_takes_whole_pages(case: Case) -> None:
    """Asks for a few bytes under masks: the buffer starts a page, and its storage is whole pages."""
    made = _masked(case, (_BELOW_4G, 0x0FFF_FFFF, _ALL, 0xFFFF_FFF0), (1, 16, 100, 5000))
    for _, buf in made:
        decided = buf.describe().alignment
        case.expect_multiple(decided, PAGE, what=f"alignment decided on for {buf!r}")
    with case.look() as look:
        for _, buf in made:
            case.expect_multiple(buf.address, PAGE, what=f"kernel VA of {buf!r}")
            case.expect_multiple(look.at(buf.address), PAGE, what=f"PA of {buf!r}")
            mapped = sum(one.length for one in look.where(buf))
            case.expect(mapped % PAGE, equals=0, what=f"bytes beyond whole pages behind {buf!r}")
