# SPDX-License-Identifier: MIT
"""Group F: cache modes as page attributes of every alias.

What is compared are the attributes in page tables, PAT and MTRRs.  Emulated processors model no caches, so
that what a cache would do can be concluded from the attributes and not be watched.
"""

from collections.abc import Iterable, Sequence

from harness.contract.case import KIB, MIB, PAGE, Case
from harness.contract.engine import check
from harness.contract.look import Look
from harness.iokit import IOBufferMemoryDescriptor, kernel_task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIODirectionOut,
    kIOMapCopybackCache,
    kIOMapCopybackInnerCache,
    kIOMapDefaultCache,
    kIOMapInhibitCache,
    kIOMapPostedCombinedReordered,
    kIOMapPostedReordered,
    kIOMapPostedWrite,
    kIOMapRealTimeCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
    kIOMemoryHostPhysicallyContiguous,
    kIOMemoryPhysicallyContiguous,
)
from harness.oracle import Leaf, MemoryType

UNCACHED = frozenset({MemoryType.UC, MemoryType.UC_MINUS})
WC = frozenset({MemoryType.WC})
WT = frozenset({MemoryType.WT})
WB = frozenset({MemoryType.WB})
# A page, pages with a rest, a large page and more, and more than one allocation can hold.
_SIZES = (16, 5000, 64 * KIB, 2 * MIB, 4 * MIB, 5 * MIB + 123)
_TYPED = {
    kIOMapInhibitCache: UNCACHED,
    kIOMapWriteThruCache: WT,
    kIOMapWriteCombineCache: WC,
}


def _expect_types(
    case: Case, look: Look, buf: IOBufferMemoryDescriptor, allowed: frozenset[MemoryType]
) -> None:
    """Compare the effective type of every alias of every page of the storage."""
    aliases = look.aliases(buf)
    case.expect(_own_bytes(buf, aliases), equals=buf.storage, what=f"bytes of {buf!r} mapped at its address")
    wrong = [leaf for leaf in aliases if leaf.effective not in allowed]
    names = " or ".join(sorted(kind.name for kind in allowed))
    first = f", first {wrong[0].effective.name} at {wrong[0].va:#x}" if wrong else ""
    case.expect_that(
        not wrong,
        expected=f"{names} in each of {len(aliases)} leaves over {buf!r}",
        observed=f"{len(wrong)} of {len(aliases)} leaves of another type{first}" if wrong else names,
    )


def _own_bytes(buf: IOBufferMemoryDescriptor, leaves: Iterable[Leaf]) -> int:
    """Return how much of the buffer's own address range *leaves* map."""
    end = buf.address + buf.storage
    return sum(max(0, min(end, leaf.va + leaf.size) - max(buf.address, leaf.va)) for leaf in leaves)


def can_type(case: Case, kind: MemoryType) -> bool:
    """Return whether every processor's PAT has a slot of this type."""
    with case.look() as look:
        return kind in look.pat_types


def typed_modes(case: Case) -> dict[int, frozenset[MemoryType]]:
    """Return the modes this processor's PAT has a type for; there a factory has no excuse."""
    with case.look() as look:
        return {mode: allowed for mode, allowed in _TYPED.items() if allowed & look.pat_types}


def _expect_mode(
    case: Case,
    modes: Iterable[int],
    allowed: frozenset[MemoryType],
    sizes: Sequence[int] = _SIZES,
    options: int = 0,
) -> None:
    """Make buffers of each mode and size and compare all their leaves, and the module's word, in one look."""
    made = [case.make(kIODirectionInOut | options | mode, size) for mode in modes for size in sizes]
    claims = [buf.describe().memory_type for buf in made]
    with case.look() as look:
        for buf, claim in zip(made, claims, strict=True):
            _expect_types(case, look, buf, allowed)
            case.expect_that(
                claim in {kind.name for kind in allowed},
                expected=f"the module says {'/'.join(sorted(kind.name for kind in allowed))} of {buf!r}",
                observed=f"it says {claim}",
            )
    for buf in made:
        buf.release()


@check("F01", outside=True)
def inhibit_is_uncached(case: Case) -> None:
    """Reads the type of every alias of kIOMapInhibitCache buffers: UC- or UC, no leaf apart."""
    _expect_mode(case, [kIOMapInhibitCache], UNCACHED)


@check("F02", outside=True)
def write_combine_is_write_combined(case: Case) -> None:
    """Reads the type of every alias of kIOMapWriteCombineCache buffers: WC, no leaf apart."""
    if not can_type(case, MemoryType.WC):
        case.null(case.iokit.withOptions(kIODirectionInOut | kIOMapWriteCombineCache, PAGE))
        case.not_applicable("this processor's PAT has no write-combining entry; the factory gives NULL")
    _expect_mode(case, [kIOMapWriteCombineCache], WC)


@check("F03", outside=True)
def copyback_is_write_back(case: Case) -> None:
    """Reads the type of every alias of kIOMapCopybackCache buffers: WB."""
    _expect_mode(case, [kIOMapCopybackCache], WB)


@check("F04", outside=True)
def write_through_is_write_through(case: Case) -> None:
    """Reads the type of every alias of kIOMapWriteThruCache buffers: WT; NULL where the PAT has no WT."""
    if not can_type(case, MemoryType.WT):
        null = case.null(case.iokit.withOptions(kIODirectionInOut | kIOMapWriteThruCache, PAGE))
        case.note(f"this processor's PAT has no write-through entry: {null.reason}")
        return
    _expect_mode(case, [kIOMapWriteThruCache], WT)


@check("F05", outside=True)
def default_is_write_back(case: Case) -> None:
    """Reads the type of every alias of buffers made without a cache mode: WB."""
    _expect_mode(case, [kIOMapDefaultCache], WB, (1, *_SIZES))


@check("F06", outside=True)
def the_rarer_modes(case: Case) -> None:
    """Reads the types of RealTime (WC), PostedWrite (UC-) and CopybackInner (WB) buffers."""
    sizes = (16, 64 * KIB, 5 * MIB)
    _expect_mode(case, [kIOMapPostedWrite], UNCACHED, sizes)
    _expect_mode(case, [kIOMapCopybackInnerCache], WB, sizes)
    if can_type(case, MemoryType.WC):
        _expect_mode(case, [kIOMapRealTimeCache], WC, sizes)
    else:
        case.null(case.iokit.withOptions(kIODirectionInOut | kIOMapRealTimeCache, PAGE))


@check("F07", outside=True)
def cache_modes_take_whole_pages_of_their_own(case: Case) -> None:
    """Makes small buffers of each mode beside plain ones: whole pages, and none in two buffers."""
    typed = [case.make(kIODirectionInOut | mode, size) for mode in typed_modes(case) for size in (16, 5000)]
    for buf in typed:
        decided = buf.describe().alignment
        case.expect_that(
            decided >= PAGE, expected=f"{buf!r} placed for a page", observed=f"placed for alignment {decided}"
        )
    plain = [case.make(kIODirectionInOut, 16) for _ in range(4)]
    with case.look() as look:
        pages: dict[int, str] = {}
        for buf in typed:
            case.expect_multiple(buf.address, PAGE, what=f"kernel VA of {buf!r}")
            ranges = look.where(buf)
            case.expect(
                sum(one.length for one in ranges) % PAGE,
                equals=0,
                what=f"odd bytes in the storage of {buf!r}",
            )
            for page in (page for one in ranges for page in range(one.start, one.start + one.length, PAGE)):
                case.expect(
                    pages.setdefault(page, repr(buf)), equals=repr(buf), what=f"owner of page {page:#x}"
                )
        for buf in plain:
            page = look.at(buf.address) & -PAGE
            case.expect(pages.get(page), equals=None, what=f"typed buffer in the page of {buf!r}")


@check("F08", outside=True)
def the_mode_is_in_force_at_once(case: Case) -> None:
    """Looks right after the factory, before any access: every leaf is there and has its type."""
    made = [
        (allowed, case.make(kIODirectionOut | mode, size))
        for mode, allowed in typed_modes(case).items()
        for size in (16, 64 * KIB, 5 * MIB)
    ]
    with case.look() as look:
        for allowed, buf in made:
            _expect_types(case, look, buf, allowed)


@check("F12", outside=True)
def pages_go_home_write_back(case: Case) -> None:
    """Releases typed buffers and looks at the pages they had, and at new buffers: write-back."""
    for mode in typed_modes(case):
        made = [case.make(kIODirectionInOut | mode, size) for size in _SIZES]
        with case.look() as look:
            homes = [(repr(buf), look.where(buf)) for buf in made]
        for buf in made:
            buf.release()
        with case.look() as look:
            for name, where in homes:
                stale = [leaf for leaf in look.aliases_of(name, where) if leaf.effective is not MemoryType.WB]
                kind = f": {stale[0].effective.name} at {stale[0].va:#x}" if stale else ""
                case.expect_that(
                    not stale, expected=f"WB where {name} was", observed=f"{len(stale)} other leaves{kind}"
                )
    _expect_mode(case, [kIOMapDefaultCache], WB, (16, 64 * KIB, 4 * MIB))


@check("F13", outside=True)
def cache_mode_combines_with_contiguity_and_mask(case: Case) -> None:
    """Makes contiguous and masked buffers of each mode: one run, only bits of the mask, one type."""
    options = (kIOMemoryPhysicallyContiguous, kIOMemoryHostPhysicallyContiguous)
    for mode, allowed in typed_modes(case).items():
        for option in options:
            _expect_mode(case, [mode], allowed, (100, 64 * KIB, 4 * MIB), option)
        for mask in (0xFFFFFFFF, 0x0FFFFFFF, 0xFFFF0000):
            for capacity in (100, 64 * KIB):
                # Behind an IOMMU a mask is about pages only for those who ask for no mapper (D18).
                flags = kIODirectionInOut | case.direct | mode | options[0]
                made = case.iokit.initWithPhysicalMask(kernel_task, flags, capacity, 1, mask)
                buf = case.need(made)
                with case.look() as look:
                    where = look.where(buf)
                    case.expect(len(where), equals=1, what=f"physical runs of {buf!r}")
                    stray = where[0].start & ~mask & -PAGE
                    case.expect(stray, equals=0, what=f"address bits of {buf!r} outside {mask:#x}", show=hex)
                    last = (where[0].end - 1) & ~mask & -PAGE if mask & PAGE else 0
                    case.expect(last, equals=0, what=f"bits of its last page outside {mask:#x}", show=hex)
                    _expect_types(case, look, buf, allowed)
                buf.release()


@check("F15", outside=True)
def modes_eight_and_nine_lose_their_top_bit(case: Case) -> None:
    """Passes modes 8 and 9 as creation options: 8 is the default, WB, and 9 is inhibit, uncached."""
    sizes = (16, 64 * KIB)
    _expect_mode(case, [kIOMapPostedReordered], WB, sizes)
    _expect_mode(case, [kIOMapPostedCombinedReordered], UNCACHED, sizes)


@check("F16", outside=True)
def contents_survive_the_mode(case: Case) -> None:
    """Writes through the mapping and reads guest RAM, writes guest RAM and reads through the mapping."""
    modes = typed_modes(case)
    made = [case.make(kIODirectionInOut | mode, size) for mode in modes for size in (5000, 5 * MIB)]
    planted = [case.plant(buf) for buf in made]
    answers = [[(one.offset, case.pattern(len(one.data))) for one in bytes_] for bytes_ in planted]
    with case.look() as look:
        for buf, bytes_, answer in zip(made, planted, answers, strict=True):
            case.expect_planted(look, buf, bytes_)
            for offset, data in answer:
                look.write(buf, offset, data)
    for buf, answer in zip(made, answers, strict=True):
        for offset, data in answer:
            case.expect_bytes(
                buf.readBytes(offset, len(data)), equals=data, what=f"readBytes({offset}) of {buf!r}"
            )
    case.note(
        "emulated processors have no caches: what survives here is the mapping of bytes, not cache coherence"
    )
