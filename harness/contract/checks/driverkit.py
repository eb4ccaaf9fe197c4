# SPDX-License-Identifier: MIT
"""Group K: the DriverKit face of a buffer, codes instead of NULL and addresses in the calling process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.contract.case import KIB, MIB, PAGE, Case, Place
from harness.contract.checks.caching import can_type
from harness.contract.engine import check
from harness.contract.mapped import expect_access, expect_leaves, expect_shows, pages_of, place_of
from harness.iokit import Created, IOBufferMemoryDescriptor, IOMemoryMap, IOReturn
from harness.iokit.constants import (
    kIOMemoryDirectionIn,
    kIOMemoryDirectionInOut,
    kIOMemoryDirectionNone,
    kIOMemoryDirectionOut,
    kIOMemoryMapCacheModeCopyback,
    kIOMemoryMapCacheModeDefault,
    kIOMemoryMapCacheModeInhibit,
    kIOMemoryMapCacheModeRealTime,
    kIOMemoryMapCacheModeWriteThrough,
    kIOMemoryMapFixedAddress,
    kIOMemoryMapReadOnly,
    kIOMemoryThreadSafe,
)
from harness.iokit.driverkit import MappingCreated
from harness.iokit.handle import Handle
from harness.link import Process
from harness.oracle import MemoryType

_OK = IOReturn.kIOReturnSuccess
_BAD = IOReturn.kIOReturnBadArgument
_SIZES = (1, 100, PAGE, 5000, 64 * KIB)
# Each with the type that a processor's PAT may lack.
_MODES = {
    kIOMemoryMapCacheModeDefault: None,
    kIOMemoryMapCacheModeInhibit: None,
    kIOMemoryMapCacheModeCopyback: None,
    kIOMemoryMapCacheModeWriteThrough: MemoryType.WT,
    kIOMemoryMapCacheModeRealTime: MemoryType.WC,
}
_DIRECTIONS = (
    kIOMemoryDirectionNone,
    kIOMemoryDirectionIn,
    kIOMemoryDirectionOut,
    kIOMemoryDirectionInOut,
)


def _create(
    case: Case, capacity: int, alignment: int = 0, options: int = kIOMemoryDirectionInOut
) -> IOBufferMemoryDescriptor:
    """Call Create, which must succeed."""
    made = case.iokit.Create(options, capacity, alignment)
    what = f"code of Create({options:#x}, {capacity}, {alignment})"
    case.expect(made.code, equals=_OK, what=what, show=hex)
    return case.need(made.memory)


def _refused(case: Case, made: Created | MappingCreated, code: IOReturn, what: str) -> None:
    """Compare the code of a call that must give no object."""
    case.expect(made.code, equals=code, what=f"code of {what}", show=hex)
    case.null(made.memory if isinstance(made, Created) else made.map)


def _mapped(case: Case, buf: IOBufferMemoryDescriptor, *args: int) -> IOMemoryMap:
    """Call CreateMapping, which must succeed."""
    made = buf.CreateMapping(*args)
    case.expect(made.code, equals=_OK, what=f"code of CreateMapping{args}", show=hex)
    return case.need(made.map)


@contextmanager
def _as_held_by(
    case: Case, process: Process, buf: IOBufferMemoryDescriptor
) -> Iterator[IOBufferMemoryDescriptor]:
    """Hand *buf* to another process for as long as the block runs, as a driver hands it to its client."""
    session = case.iokit_of(process)
    handle = Handle(process, process.take(buf.fd, buf.process), session.layouts, buf.label)
    held = IOBufferMemoryDescriptor(session, handle)
    try:
        yield held
    finally:
        held.release()


@check("K01")
def create_gives_success_and_one_reference(case: Case) -> None:
    """Creates buffers in every direction: success, one more object each, and one release takes it away."""
    for direction in _DIRECTIONS:
        for capacity in (*_SIZES, 5 * MIB):
            before = case.live()
            buf = _create(case, capacity, 0, direction)
            case.expect(case.live(), equals=before + 1, what="objects after Create")
            case.expect(buf.getCapacity(), equals=capacity, what="getCapacity")
            case.expect(buf.getDirection(), equals=direction, what="getDirection")
            buf.release()
            case.expect(case.live(), equals=before, what="objects after one release")


@check("K02")
def create_takes_direction_bits_only(case: Case) -> None:
    """Passes every other bit of 64, alone and with a direction: kIOReturnBadArgument and no object."""
    before = case.live()
    for bit in range(2, 64):
        for direction in (kIOMemoryDirectionNone, kIOMemoryDirectionInOut):
            options = 1 << bit | direction
            made = case.iokit.Create(options, 5000, 0)
            _refused(case, made, _BAD, f"Create({options:#x})")
    case.expect(case.live(), equals=before, what="objects after refusals")
    _create(case, 5000)


@check("K03")
def create_of_nothing_is_no_memory(case: Case) -> None:
    """Asks for 0 bytes, and for more than there can be: kIOReturnNoMemory and NULL."""
    for capacity, alignment in ((0, 0), (0, 1), (0, PAGE), (2**64 - 1, 0), (2**63, PAGE)):
        made = case.iokit.Create(kIOMemoryDirectionInOut, capacity, alignment)
        _refused(case, made, IOReturn.kIOReturnNoMemory, f"Create of {capacity} bytes")


@check("K04")
def alignment_zero_is_no_guarantee(case: Case) -> None:
    """Creates buffers of many sizes with alignment 0 and 1: success, and bytes go in and out."""
    for alignment in (0, 1):
        for capacity in (*_SIZES, 5 * MIB):
            buf = _create(case, capacity, alignment)
            data = case.pattern(min(capacity, 1000))
            case.expect(buf.writeBytes(0, data), equals=len(data), what=f"bytes written into {buf!r}")
            case.expect_bytes(buf.readBytes(0, len(data)), equals=data, what=f"readBytes of {buf!r}")
            buf.release()


@check("K05", outside=True)
def buffers_are_page_aligned_in_any_case(case: Case) -> None:
    """Creates small buffers without and with small alignments: all addresses on a page."""
    for alignment in (0, 1, 2, 100, 256):
        for capacity in _SIZES:
            buf = _create(case, capacity, alignment)
            case.expect_multiple(buf.address, PAGE, what=f"kernel VA of {buf!r}")
            case.expect_multiple(buf.GetAddressRange().range.address, PAGE, what=f"user VA of {buf!r}")
            with case.look() as look:
                case.expect_multiple(look.at(buf.address), PAGE, what=f"PA of {buf!r}")
            buf.release()


@check("K06", outside=True)
def an_alignment_clears_the_low_bits(case: Case) -> None:
    """Creates buffers aligned to 256 and other powers of two: the low bits of every address are zero."""
    for alignment in (256, 2, 64, 1024, PAGE):
        for capacity in (1, 100, 5000):
            buf = _create(case, capacity, alignment)
            case.expect_multiple(buf.address, alignment, what=f"kernel VA of {buf!r}")
            address = buf.GetAddressRange().range.address
            case.expect_multiple(address, alignment, what=f"address in the process of {buf!r}")
            case.expect_that(address != 0, expected="an address in the process", observed="0")
            with case.look() as look:
                case.expect_multiple(look.at(buf.address), alignment, what=f"PA of {buf!r}")
            buf.release()


@check("K07", outside=True)
def a_large_alignment_is_physical(case: Case) -> None:
    """Creates buffers aligned to more than a page: one physical run that starts on a multiple of it.

    A few addresses are such multiples by luck; what the placement decided on is not.
    """
    shapes = [
        (alignment, capacity)
        for alignment in (2 * PAGE, 64 * KIB, MIB)
        for capacity in (100, 5000, 3 * PAGE, 256 * KIB)
    ]
    made = [(*shape, _create(case, shape[1], shape[0])) for shape in shapes]
    for alignment, capacity, buf in made:
        decided = buf.describe().alignment
        case.expect_multiple(decided, alignment, what=f"alignment decided on for {buf!r}")
        segment = buf.getPhysicalSegment(0)
        case.expect(segment.length, equals=capacity, what=f"length of the one segment of {buf!r}")
    with case.look() as look:
        for alignment, capacity, buf in made:
            where = look.where(buf, 0, capacity)
            case.expect(len(where), equals=1, what=f"physical runs of {buf!r}")
            case.expect_multiple(where[0].start, alignment, what=f"PA of {buf!r}")


@check("K08")
def length_starts_as_the_capacity(case: Case) -> None:
    """Reads GetLength right after Create: the capacity, which is the side kept here."""
    for capacity in (*_SIZES, 5 * MIB):
        buf = _create(case, capacity)
        case.expect(buf.GetLength(), equals=(_OK, capacity), what=f"GetLength of {buf!r}")
        case.expect(buf.GetAddressRange().range.length, equals=capacity, what=f"length of its range, {buf!r}")
        case.expect(buf.getLength(), equals=capacity, what=f"getLength of {buf!r}")
        buf.release()


@check("K09")
def setlength_changes_the_length_alone(case: Case) -> None:
    """Sets lengths up to the capacity, up and down: success, GetLength follows, the capacity does not."""
    for capacity in _SIZES:
        buf = _create(case, capacity)
        for length in (capacity // 2, 0, 1, capacity):
            case.expect(buf.SetLength(length), equals=_OK, what=f"code of SetLength({length})", show=hex)
            case.expect(buf.GetLength(), equals=(_OK, length), what=f"GetLength after SetLength({length})")
            case.expect(buf.getCapacity(), equals=capacity, what=f"capacity after SetLength({length})")
        buf.release()


@check("K10")
def setlength_beyond_the_capacity_is_refused(case: Case) -> None:
    """Sets lengths beyond the capacity: kIOReturnBadArgument each time, and the length stays."""
    buf = _create(case, 5000)
    case.expect(buf.SetLength(1234), equals=_OK, what="code of SetLength(1234)", show=hex)
    for length in (5001, 2 * PAGE, 2 * PAGE + 1, 2**32 + 1, 2**63, 2**64 - 1):
        case.expect(buf.SetLength(length), equals=_BAD, what=f"code of SetLength({length})", show=hex)
        case.expect(buf.GetLength(), equals=(_OK, 1234), what=f"GetLength after SetLength({length})")
    case.expect(buf.SetLength(5000), equals=_OK, what="code of SetLength(5000)", show=hex)


@check("K11", outside=True)
def the_address_range_is_the_buffer_in_the_process(case: Case) -> None:
    """Asks for the range, finds the buffer's pages there in the process's page tables, and uses it."""
    for capacity in (100, 5000, 64 * KIB, 5 * MIB):
        buf = _create(case, capacity)
        code, (address, length) = buf.GetAddressRange()
        case.expect(code, equals=_OK, what=f"code of GetAddressRange of {buf!r}", show=hex)
        case.expect(length, equals=capacity, what=f"length of the range of {buf!r}")
        data, answer = case.pattern(100), case.pattern(100)
        case.expect(buf.writeBytes(capacity - 100, data), equals=100, what=f"bytes written into {buf!r}")
        seen = case.guest.peek(address + capacity - 100, 100)
        case.expect_bytes(seen, equals=data, what="bytes the process reads in the range")
        case.guest.poke(address, answer)
        case.expect_bytes(buf.readBytes(0, 100), equals=answer, what="bytes the process wrote to the range")
        case.guest.peek(address, capacity)  # every page of it has a leaf then
        with case.look(case.guest) as look:
            place = Place(address, capacity)
            expect_shows(case, look, place, look.where(buf, 0, capacity))
            expect_leaves(case, look, place, user=True, writable=True)
        again = buf.GetAddressRange()
        case.expect(again, equals=(_OK, (address, length)), what="GetAddressRange once more")
        case.expect(buf.SetLength(50), equals=_OK, what="code of SetLength(50)", show=hex)
        case.expect(buf.GetAddressRange().range, equals=(address, 50), what="the range after SetLength(50)")
        buf.release()


@check("K12", outside=True)
def buffers_are_wired_zeroed_and_thread_safe(case: Case) -> None:
    """Looks at fresh buffers where dirty ones were: zero, in place under pressure, and the flag is set."""
    for direction in _DIRECTIONS:
        for capacity in (100, 64 * KIB, 5 * MIB):
            with _create(case, capacity) as dirty:
                dirty.writeBytes(0, case.pattern(capacity))
            buf = _create(case, capacity, 0, direction)
            flag = buf.getFlags() & kIOMemoryThreadSafe
            case.expect(flag, equals=kIOMemoryThreadSafe, what=f"ThreadSafe in getFlags of {buf!r}", show=hex)
            length = buf.getPhysicalSegment(0).length
            case.expect_that(length > 0, expected="a segment without prepare()", observed=f"{length} bytes")
            with case.look() as look:
                where = look.where(buf)
                case.expect_zero(look.read(buf, 0, capacity), what=f"fresh guest RAM behind {buf!r}")
            case.press()
            with case.look() as look:
                case.expect(look.where(buf), equals=where, what=f"physical ranges of {buf!r} under pressure")
            buf.release()


@check("K13")
def createmapping_refuses_with_codes(case: Case) -> None:
    """Passes every unknown cache bit (kIOReturnBadArgument) and impossible ranges (kIOReturnError).

    A known mode that this processor's PAT has no type for is an error as well (F04).
    """
    buf = _create(case, 3 * PAGE)
    known = {mode: kind is None or can_type(case, kind) for mode, kind in _MODES.items()}
    error = IOReturn.kIOReturnError
    for bits in range(0, 0x10000, 0x100):
        if bits not in known:
            _refused(case, buf.CreateMapping(bits), _BAD, f"CreateMapping({bits:#x})")
    for bits, possible in known.items():
        if possible:
            _mapped(case, buf, bits).release()
        else:
            _refused(case, buf.CreateMapping(bits), error, f"CreateMapping({bits:#x})")
    for offset, length in (
        (3 * PAGE, 1),
        (2 * PAGE, PAGE + 1),
        (1, 2**64 - 1),
        (2**64 - 1, 1),
        (2**63, 2**63),
    ):
        made = buf.CreateMapping(0, 0, offset, length)
        _refused(case, made, error, f"CreateMapping of {length} bytes at {offset}")
    for address in (1 << 47, 0xDEAD << 48, 2**64 - PAGE):
        made = buf.CreateMapping(kIOMemoryMapFixedAddress, address)
        _refused(case, made, error, f"CreateMapping to {address:#x}")
    case.expect(buf.describe().mappings, equals=0, what="mappings left behind by refusals")


@check("K14", outside=True)
def createmapping_of_length_zero_is_everything(case: Case) -> None:
    """Maps with length 0 and with other lengths: all of it, or what was asked for, never more."""
    buf = _create(case, 3 * PAGE)
    data = case.pattern(3 * PAGE)
    buf.writeBytes(0, data)
    for current in (3 * PAGE, PAGE + 100):
        case.expect(buf.SetLength(current), equals=_OK, what=f"code of SetLength({current})", show=hex)
        for offset, length in ((0, 0), (0, 1), (0, current), (100, 50), (PAGE, 100), (1, current - 1)):
            mapping = _mapped(case, buf, 0, 0, offset, length)
            wanted = length or current
            case.expect(mapping.getLength(), equals=wanted, what=f"length of {mapping!r}")
            expected = data[offset:][:wanted]
            case.expect_bytes(mapping.read(), equals=expected, what=f"bytes read through {mapping!r}")
            mapping.release()
        for offset, length in ((0, current + 1), (PAGE, 0), (1, 0), (1, current)):
            case.null(buf.CreateMapping(0, 0, offset, length).map)
        _expect_no_more(case, _mapped(case, buf))


def _expect_no_more(case: Case, mapping: IOMemoryMap) -> None:
    """Compare the pages at a mapping with its length, and the guards beside it with none."""
    place = place_of(mapping)
    mapping.read()
    end = place.address + pages_of(place.storage) * PAGE
    for address in (place.address - 1, end):
        expect_access(case, case.guest, address, faults=True, what=f"beside {mapping!r}")
    with case.look(case.guest) as look:
        case.expect(look.mapped_pages(place), equals=pages_of(place.storage), what=f"pages of {mapping!r}")
        beside = look.mapped_pages(Place(place.address - PAGE, PAGE)) + look.mapped_pages(Place(end, PAGE))
        case.expect(beside, equals=0, what=f"pages in the guards of {mapping!r}")
    mapping.release()


@check("K15", outside=True)
def an_out_buffer_is_read_only_for_others(case: Case) -> None:
    """Has creator and another process map a buffer: only the other's Out mapping is read-only."""
    for direction in (kIOMemoryDirectionOut, kIOMemoryDirectionInOut, kIOMemoryDirectionIn):
        for creator, other in ((case.guest, case.peer), (case.peer, case.guest)):
            made = case.iokit_of(creator).Create(direction, 2 * PAGE, 0)
            case.expect(made.code, equals=_OK, what=f"code of Create({direction}) by {creator.pid}", show=hex)
            buf = case.need(made.memory)
            _expect_mapped(case, creator, buf, writable=True)
            with _as_held_by(case, other, buf) as held:
                _expect_mapped(case, other, held, writable=direction != kIOMemoryDirectionOut)
                locked = _mapped(case, held, kIOMemoryMapReadOnly)
                what = "made read-only by option"
                expect_access(case, other, locked.getAddress(), write=True, faults=True, what=what)
                locked.release()
            buf.release()


def _expect_mapped(case: Case, process: Process, buf: IOBufferMemoryDescriptor, *, writable: bool) -> None:
    """Map *buf* in *process* and compare what a write does with the bit in the page table."""
    mapping = _mapped(case, buf)
    place = place_of(mapping)
    for page in (0, PAGE):
        at, what = mapping.getAddress() + page, f"{mapping!r} in process {process.pid}"
        expect_access(case, process, at, faults=False, what=what)
        expect_access(case, process, at, write=True, faults=not writable, what=what)
    with case.look(process) as look:
        expect_leaves(case, look, place, user=True, writable=writable)
        expect_shows(case, look, place, look.where(buf, 0, place.storage))
    mapping.release()
