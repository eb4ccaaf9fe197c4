# SPDX-License-Identifier: MIT
"""Groups E, C, G and I: memory that comes with the first touch and can be paged out."""

from harness.contract.case import KIB, MIB, PAGE, Case, Place
from harness.contract.engine import check
from harness.contract.pressure import swapping
from harness.iokit import IOBufferMemoryDescriptor, IOReturn, PageCounts, Task, kernel_task
from harness.iokit.constants import (
    kIODirectionIn,
    kIODirectionInOut,
    kIOMapCopybackCache,
    kIOMapInhibitCache,
    kIOMapPrefault,
    kIOMemoryClearEncrypt,
    kIOMemoryHostOnly,
    kIOMemoryMapCopyOnWrite,
    kIOMemoryMapperNone,
    kIOMemoryPageable,
    kIOMemoryPersistent,
    kIOMemoryRemote,
    kIOMemoryThreadSafe,
    kIOMemoryUseReserve,
)

_PAGEABLE = kIODirectionInOut | kIOMemoryPageable
_SIZE = 64 * KIB
_PAGES = _SIZE // PAGE


def _user_buffer(case: Case, size: int = _SIZE) -> tuple[IOBufferMemoryDescriptor, Place]:
    buf = case.need(case.iokit.inTaskWithOptions(Task.CURRENT, _PAGEABLE, size))
    return buf, Place(buf.getBytesNoCopy(), size)


def _expect_resident(case: Case, buf: IOBufferMemoryDescriptor, pages: int, when: str) -> None:
    counts = buf.getPageCounts()
    case.expect(counts.code, equals=IOReturn.kIOReturnSuccess, what=f"getPageCounts {when}")
    case.expect(counts.resident, equals=pages, what=f"resident pages {when}")


def _succeeds(case: Case, code: IOReturn | int, what: str) -> None:
    case.expect(code, equals=IOReturn.kIOReturnSuccess, what=what)


@check("C14", outside=True)
def pageable_buffers_are_page_aligned_and_no_more(case: Case) -> None:
    """Asks for pageable buffers of a page with alignment 64 KiB: page aligned, and not all at 64 KiB."""
    made = [
        case.need(case.iokit.inTaskWithOptions(task, _PAGEABLE, PAGE, 64 * KIB))
        for task in [Task.CURRENT] * 16 + [kernel_task] * 4
    ]
    addresses = [buf.getBytesNoCopy() for buf in made]
    for buf, address in zip(made, addresses, strict=True):
        buf.writeBytes(0, b"touched")
        if not buf.address:
            case.guest.peek(address, 1)
        case.expect(buf.describe().alignment, equals=PAGE, what=f"alignment decided on for {buf!r}")
    odd = [address for address in addresses if address % (64 * KIB)]
    case.expect_that(bool(odd), expected="an address that is no multiple of 64 KiB", observed="none of 20")
    with case.look(case.guest) as look:
        for buf, address in zip(made, addresses, strict=True):
            case.expect_multiple(address, PAGE, what=f"VA of {buf!r}")
            case.expect_multiple(look.at(address), PAGE, what=f"PA of {buf!r}")


@check("E02", outside=True)
def pageable_memory_is_not_wired(case: Case) -> None:
    """Looks at a pageable buffer untouched, touched and paged out: no page, all pages, no page.

    Pages that went are on the guest's swap disk by the kernel's account, and come back with their bytes.
    """
    untouched = case.need(case.iokit.inTaskWithOptions(Task.NULL, _PAGEABLE, _SIZE))
    _expect_resident(case, untouched, 0, "of an untouched buffer in no task")
    buf, place = _user_buffer(case)
    _expect_resident(case, buf, 0, "of an untouched buffer")
    with case.look(case.guest) as look:
        case.expect(look.mapped_pages(place), equals=0, what="pages mapped before the first touch")
    data = case.pattern(_SIZE)
    case.guest.poke(place.address, data)
    _expect_resident(case, buf, _PAGES, "after every byte was written")
    with case.look(case.guest) as look:
        case.expect_bytes(look.read(place), equals=data, what=f"RAM behind {buf!r}")
    with swapping(case) as swap:
        swap.empty(buf, place.address, _SIZE)
        case.expect(swap.written(), equals=_PAGES, what="pages written to the swap area")
        _expect_resident(case, buf, 0, "after the kernel paged it out")
        with case.look(case.guest) as look:
            case.expect(look.mapped_pages(place), equals=0, what="pages mapped after paging out")
        case.expect_bytes(case.guest.peek(place.address, _SIZE), equals=data, what="what came back")
        with case.look(case.guest) as look:
            case.expect_bytes(look.read(place), equals=data, what=f"RAM behind {buf!r} after it came back")
    held = case.need(case.iokit.inTaskWithOptions(kernel_task, _PAGEABLE, PAGE)).describe().held
    case.note(
        f"a kernel address cannot fault on Linux: in kernel_task {held} of 1 page stays while it exists"
    )


@check("E03", outside=True)
def prepare_wires_and_complete_lets_go(case: Case) -> None:
    """Prepares, has the kernel page out, and finds every page where it was; after complete they go."""
    buf, place = _user_buffer(case)
    _expect_resident(case, buf, 0, "of an untouched buffer")
    _succeeds(case, buf.prepare(), "prepare")
    _expect_resident(case, buf, _PAGES, "after prepare")
    segments = buf.segments()
    case.expect(sum(one.length for one in segments), equals=_SIZE, what="bytes in the segments")
    data = case.pattern(_SIZE)
    case.guest.poke(place.address, data)
    with case.look(case.guest) as look:
        where = look.where(place)
        stored = b"".join(look.read_at(one.address, one.length) for one in segments)
        case.expect_bytes(stored, equals=data, what="RAM at the segments")
    with swapping(case) as swap:
        swap.page_out(place.address, _SIZE)
        case.press()
        case.expect(swap.written(), equals=0, what="pages written to the swap area while prepared")
        _expect_resident(case, buf, _PAGES, "after an attempt to page out")
        case.expect(buf.segments(), equals=segments, what="segments after an attempt to page out")
        case.expect_bytes(case.guest.peek(place.address, _SIZE), equals=data, what="contents")
        with case.look(case.guest) as look:
            case.expect(look.where(place), equals=where, what="physical ranges while prepared")
        _succeeds(case, buf.complete(), "complete")
        swap.empty(buf, place.address, _SIZE)
        case.expect(swap.written(), equals=_PAGES, what="pages written to the swap area after complete")
        _expect_resident(case, buf, 0, "after complete and paging out")
        with case.look(case.guest) as look:
            case.expect(look.mapped_pages(place), equals=0, what="pages mapped after complete")
        case.expect_bytes(case.guest.peek(place.address, _SIZE), equals=data, what="what came back")


@check("E17", outside=True)
def pageable_in_the_kernel_is_usable_at_once(case: Case) -> None:
    """Walks the kernel address of fresh pageable buffers: mapped, zero, and it shows what is written."""
    made = [
        case.need(case.iokit.inTaskWithOptions(kernel_task, _PAGEABLE, size))
        for size in (1, 5000, _SIZE, MIB + 5)
    ]
    made.append(case.make(_PAGEABLE, 5000))
    for buf in made:
        case.expect(buf.getBytesNoCopy(), equals=buf.address, what=f"getBytesNoCopy of {buf!r}", show=hex)
        case.expect(buf.address >> 63, equals=1, what=f"top bit of {buf.address:#x}")
    with case.look() as look:
        for buf in made:
            case.expect_zero(look.read(buf), what=f"storage of {buf!r}")
            closed = [leaf for leaf in look.leaves(buf) if leaf.user or not leaf.writable]
            case.expect(closed, equals=[], what=f"leaves of {buf!r} for users or without writing")
    planted = [case.plant(buf) for buf in made]
    with case.look() as look:
        for buf, bytes_ in zip(made, planted, strict=True):
            case.expect_planted(look, buf, bytes_)


@check("E18")
def prefault_at_creation_is_refused(case: Case) -> None:
    """Passes kIOMapPrefault to pageable buffers: NULL; without it, and for wired ones, there is a buffer."""
    live = case.live()
    for task in (kernel_task, Task.CURRENT):
        for size in (16, 5000, _SIZE):
            options = _PAGEABLE | kIOMapPrefault
            case.null(case.iokit.inTaskWithOptions(task, options, size))
            case.null(case.iokit.inTaskWithPhysicalMask(task, options, size, 0xFFFF_FFFF))
            case.need(case.iokit.inTaskWithOptions(task, _PAGEABLE, size)).release()
    case.null(case.iokit.withOptions(_PAGEABLE | kIOMapPrefault, 5000))
    case.make(kIODirectionInOut | kIOMapPrefault, 5000).release()
    case.expect(case.live(), equals=live, what="descriptors that exist")


@check("E19")
def some_options_are_not_forwarded(case: Case) -> None:
    """Passes superclass options one by one and together, and reads the flags: they are not there."""
    dropped = {
        "kIOMemoryHostOnly": kIOMemoryHostOnly,
        "kIOMemoryRemote": kIOMemoryRemote,
        "kIOMemoryMapCopyOnWrite": kIOMemoryMapCopyOnWrite,
        "kIOMemoryPersistent": kIOMemoryPersistent,
    }
    kept = {
        "kIOMemoryMapperNone": kIOMemoryMapperNone,
        "kIOMemoryThreadSafe": kIOMemoryThreadSafe,
        "kIOMemoryClearEncrypt": kIOMemoryClearEncrypt,
        "kIOMemoryUseReserve": kIOMemoryUseReserve,
    }
    together = sum(dropped.values())
    for pageable in (0, kIOMemoryPageable):
        for name, option in (*dropped.items(), ("all four", together)):
            flags = case.make(kIODirectionIn | pageable | option, 5000).getFlags()
            case.expect(flags & together, equals=0, what=f"{name} in getFlags", show=hex)
            case.expect(flags & 7, equals=kIODirectionIn, what="direction in getFlags")
        for name, option in kept.items():
            flags = case.make(kIODirectionIn | pageable | option, 5000).getFlags()
            case.expect(flags & option, equals=option, what=f"{name} in getFlags", show=hex)


@check("G02", outside=True)
def fresh_pageable_memory_is_zero(case: Case) -> None:
    """Dirties pageable and wired memory and gives it back; new pageable buffers read as zero everywhere."""
    for task in (Task.CURRENT, Task.NULL, kernel_task):
        for options in (_PAGEABLE, kIODirectionInOut):
            if options == _PAGEABLE or task is kernel_task:
                with case.need(case.iokit.inTaskWithOptions(task, options, 300 * KIB)) as old:
                    old.writeBytes(0, case.pattern(300 * KIB))
    user, place = _user_buffer(case, 300 * KIB)
    case.expect_zero(case.guest.peek(place.address, 300 * KIB), what=f"what the process reads in {user!r}")
    for task in (Task.NULL, Task.CURRENT):
        buf = case.need(case.iokit.inTaskWithOptions(task, _PAGEABLE, 5000))
        case.expect_zero(buf.readBytes(0, 5000), what=f"readBytes of {buf!r}")
    wired = case.need(case.iokit.inTaskWithOptions(Task.NULL, _PAGEABLE, 300 * KIB))
    _succeeds(case, wired.prepare(), "prepare")
    segments = wired.segments()
    kernel = case.need(case.iokit.inTaskWithOptions(kernel_task, _PAGEABLE, 300 * KIB))
    with case.look(case.guest) as look:
        case.expect_zero(look.read(place), what=f"RAM behind {user!r}")
        case.expect_zero(look.read(kernel), what=f"RAM behind {kernel!r}")
        for one in segments:
            case.expect_zero(look.read_at(one.address, one.length), what=f"RAM of {wired!r}, prepared")


@check("I10", outside=True)
def page_counts_are_pages(case: Case) -> None:
    """Compares getPageCounts with the pages in the page tables; plain wired buffers are not ready."""
    for size in (16, 5000, 5 * MIB):
        plain = case.make(kIODirectionInOut, size)
        case.expect(plain.getPageCounts().code, equals=IOReturn.kIOReturnNotReady, what=f"code of {plain!r}")
    for mode in (kIOMapInhibitCache, kIOMapCopybackCache):
        typed = case.make(kIODirectionInOut | mode, 5000)
        case.expect(
            typed.getPageCounts()[:2], equals=(IOReturn.kIOReturnSuccess, 2), what=f"pages of {typed!r}"
        )
    buf, place = _user_buffer(case)
    for touched in (1, 3, _PAGES):
        case.guest.poke(place.address, case.pattern(touched * PAGE))
        counts = buf.getPageCounts()
        with case.look(case.guest) as look:
            case.expect(counts.resident, equals=look.mapped_pages(place), what="resident pages")
        case.expect(
            counts, equals=PageCounts(IOReturn.kIOReturnSuccess, touched, touched),
            what=f"counts after writing {touched} pages",
        )  # fmt: skip
