# SPDX-License-Identifier: MIT
"""Group H, second half: prepare and complete, on pageable memory that really comes and goes.

A process's own pageable buffer has no page before it is touched or prepared.  The kernel can page its pages
out, and its shrinkers can take those of a volatile one, unless they are wired.  That is how wiring shows: in
what the kernel can and cannot take, and in guest RAM at the addresses the descriptor claims meanwhile.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from harness.contract.case import KIB, MIB, PAGE, Case, Place
from harness.contract.engine import check
from harness.contract.look import Look
from harness.contract.pressure import purge, swapping
from harness.iokit import IOBufferMemoryDescriptor, IOReturn, PhysicalSegment, Task
from harness.iokit.constants import (
    kIODirectionIn,
    kIODirectionInOut,
    kIODirectionNone,
    kIODirectionOut,
    kIOMemoryPageable,
    kIOMemoryPurgeable,
    kIOMemoryPurgeableKeepCurrent,
    kIOMemoryPurgeableNonVolatile,
    kIOMemoryPurgeableVolatile,
    kIOMemoryThreadSafe,
)
from harness.oracle import PhysRange

_OK = IOReturn.kIOReturnSuccess
_PURGEABLE = kIOMemoryPageable | kIOMemoryPurgeable
_ROUNDS = 40
_THREADS = 4
_NOWHERE = PhysicalSegment(0, 0)


def _pageable(case: Case, options: int = 0, capacity: int = 64 * KIB + 100) -> IOBufferMemoryDescriptor:
    """Make a pageable buffer in the calling process; nothing of it exists yet."""
    options |= kIODirectionInOut | kIOMemoryPageable
    return case.need(case.iokit.inTaskWithOptions(Task.CURRENT, options, capacity))


def _pages(buf: IOBufferMemoryDescriptor) -> int:
    return -(-buf.getCapacity() // PAGE)


def _expect_ok(case: Case, code: object, what: str) -> None:
    case.expect(code, equals=_OK, what=what)


def _ranges(segments: list[PhysicalSegment]) -> tuple[PhysRange, ...]:
    return tuple(PhysRange(one.address, one.length) for one in segments)


def _expect_at_segments(
    case: Case, look: Look, buf: IOBufferMemoryDescriptor, segments: list[PhysicalSegment], data: bytes
) -> None:
    """Compare guest RAM with the bytes, at the kernel's address, or at the claimed segments if it has none.

    Segments of wired memory may be addresses of an IOMMU (clause I07).
    """
    if buf.address:
        found = look.read(buf, 0, len(data))
    else:
        found = b"".join(look.read_at(one.address, one.length) for one in segments)
    case.expect_bytes(found, equals=data, what=f"guest RAM behind {buf!r}")


def _write_at_segments(
    look: Look, buf: IOBufferMemoryDescriptor, segments: list[PhysicalSegment], data: bytes
) -> None:
    """Put bytes into guest RAM, as a device would; where, is as for `_expect_at_segments`."""
    if buf.address:
        look.write(buf, 0, data)
        return
    done = 0
    for one in segments:
        look.write_at(one.address, data[done : done + one.length])
        done += one.length


def _expect_resident(case: Case, buf: IOBufferMemoryDescriptor, pages: int, what: str) -> None:
    counts = buf.getPageCounts()
    case.expect((counts.code, counts.resident), equals=(_OK, pages), what=f"code and resident pages {what}")


@check("H06", outside=True)
def an_out_buffer_can_be_redirected(case: Case) -> None:
    """Redirects a wired Out-only buffer in place: prepare() is refused before and input arrives after."""
    for direction in (kIODirectionIn, kIODirectionInOut):
        for capacity in (100, 5000, 5 * MIB):
            buf = case.make(kIODirectionOut, capacity)
            address = buf.getBytesNoCopy()
            with case.look() as look:
                where = look.where(buf)
            case.expect(buf.writeBytes(0, b"before"), equals=0, what="bytes written while Out-only")
            case.expect(
                buf.prepare(kIODirectionIn),
                equals=IOReturn.kIOReturnNotWritable,
                what="prepare(In) while Out-only",
            )
            buf.setDirection(direction)
            _expect_ok(case, buf.prepare(), f"prepare() after setDirection({direction})")
            _expect_ok(case, buf.prepare(kIODirectionIn), f"prepare(In) after setDirection({direction})")
            data, answer = case.pattern(90), case.pattern(90)
            case.expect(buf.writeBytes(5, data), equals=90, what="bytes written after the redirection")
            with case.look() as look:
                case.expect(look.where(buf), equals=where, what=f"physical ranges of {buf!r}")
                case.expect_bytes(look.read(buf, 5, 90), equals=data, what=f"guest RAM behind {buf!r}")
                look.write(buf, 5, answer)
            case.expect_bytes(buf.readBytes(5, 90), equals=answer, what="input of a device, read back")
            case.expect(buf.getBytesNoCopy(), equals=address, what="getBytesNoCopy after it", show=hex)
            for _ in range(2):
                _expect_ok(case, buf.complete(), "complete()")
            buf.release()


@check("H11", outside=True)
def every_prepare_wants_its_complete(case: Case) -> None:
    """Nests prepares over volatile memory and lets the kernel shrink: pages go after the last complete."""
    depth = 3
    buf = _pageable(case, _PURGEABLE)
    data = case.pattern(buf.getCapacity())
    case.expect(buf.writeBytes(0, data), equals=len(data), what=f"bytes written into {buf!r}")
    for _ in range(depth):
        _expect_ok(case, buf.prepare(), "prepare()")
    segments = buf.segments()
    case.expect(buf.setPurgeable(kIOMemoryPurgeableVolatile).code, equals=_OK, what="setPurgeable(Volatile)")
    for left in range(depth, 0, -1):
        case.press()
        what = f"with {left} prepares outstanding"
        case.expect(buf.segments(), equals=segments, what=f"segments {what}")
        _expect_resident(case, buf, _pages(buf), what)
        with case.look() as look:
            _expect_at_segments(case, look, buf, segments, data)
        _expect_ok(case, buf.complete(), f"complete() {what}")
    purge(case, buf)
    case.expect(
        buf.getPageCounts().resident, equals=0, what="resident pages after the last complete and pressure"
    )
    case.expect(buf.describe().held, equals=0, what="pages held after the last complete")
    _expect_ok(case, buf.setPurgeable(kIOMemoryPurgeableNonVolatile).code, "setPurgeable(NonVolatile)")
    case.expect_zero(buf.readBytes(0, len(data)), what="contents after the pages were taken")
    wired = case.make(kIODirectionInOut, 5000)
    with case.look() as look:
        where = look.where(wired)
    before = wired.describe().prepared
    for up in range(1, 4):
        _expect_ok(case, wired.prepare(), "prepare() of a wired buffer")
        case.expect(wired.describe().prepared, equals=before + up, what="prepares outstanding")
    for down in range(2, -1, -1):
        _expect_ok(case, wired.complete(), "complete() of a wired buffer")
        case.expect(wired.describe().prepared, equals=before + down, what="prepares outstanding")
    with case.look() as look:
        case.expect(look.where(wired), equals=where, what="physical ranges of the wired buffer")


@check("H12", outside=True)
def prepare_brings_pages_in_and_wires_them(case: Case) -> None:
    """Prepares buffers that have no page, untouched and paged out: all are there, where it says, and stay."""
    for before in (b"", case.pattern(64 * KIB + 100)):
        buf = _pageable(case)
        place = Place(buf.getBytesNoCopy(), buf.getCapacity())
        with swapping(case) as swap:
            if before:
                case.guest.poke(place.address, before)
                swap.empty(buf, place.address, place.storage)
            _expect_resident(case, buf, 0, "before prepare()")
            with case.look(case.guest) as look:
                case.expect(look.mapped_pages(place), equals=0, what="pages mapped before prepare()")
            _expect_ok(case, buf.prepare(), "prepare()")
            _expect_resident(case, buf, _pages(buf), "after prepare()")
            data = _expect_in_place(case, buf, before or bytes(place.storage))
            written, segments = swap.written(), buf.segments()
            swap.page_out(place.address, place.storage)
            case.press()
            case.expect(swap.written(), equals=written, what="pages written to the swap area by then")
            case.expect(buf.segments(), equals=segments, what="segments after all attempts to take the pages")
            case.expect_bytes(case.guest.peek(place.address, place.storage), equals=data, what="bytes read")
            with case.look(case.guest) as look:
                case.expect(look.where(place), equals=_ranges(segments), what=f"ranges behind {place}")
            _expect_ok(case, buf.complete(), "complete()")
            case.expect(
                buf.getPhysicalSegment(0), equals=_NOWHERE, what="getPhysicalSegment after complete()"
            )
            swap.empty(buf, place.address, place.storage)
            _expect_resident(case, buf, 0, "after complete() and paging out")
            case.expect_bytes(case.guest.peek(place.address, place.storage), equals=data, what="bytes back")
        buf.release()


def _expect_in_place(case: Case, buf: IOBufferMemoryDescriptor, held: bytes) -> bytes:
    """Compare RAM at the segments of a prepared buffer, have a device write it, and return what it wrote."""
    segments = buf.segments()
    case.expect(sum(one.length for one in segments), equals=len(held), what="bytes in the segments")
    data = case.pattern(len(held))
    with case.look() as look:
        _expect_at_segments(case, look, buf, segments, held)
        _write_at_segments(look, buf, segments, data)
    case.expect_bytes(buf.readBytes(0, len(data)), equals=data, what="readBytes of what a device wrote")
    return data


@check("H13", outside=True)
def complete_does_not_heed_its_direction(case: Case) -> None:
    """Ends transfers with each direction in turn: the same code, counts, flags and contents every time."""
    seen = []
    for options in (0, kIOMemoryPageable):
        for direction in (kIODirectionNone, kIODirectionIn, kIODirectionOut, kIODirectionInOut, 4, 7):
            buf = _pageable(case) if options else case.make(kIODirectionInOut, 64 * KIB + 100)
            _expect_ok(case, buf.prepare(), "prepare()")
            data = case.pattern(buf.getCapacity())
            segments = buf.segments()
            with case.look() as look:
                _write_at_segments(look, buf, segments, data)
            _expect_ok(case, buf.complete(direction), f"complete({direction})")
            case.expect_bytes(
                buf.readBytes(0, len(data)), equals=data, what=f"contents after complete({direction})"
            )
            state = buf.describe()
            seen.append((options, direction, state.prepared, state.held, buf.getDirection(), buf.getFlags()))
            first = next(one for one in seen if one[0] == options)
            case.expect(seen[-1][2:], equals=first[2:], what=f"state after complete({direction})")
            case.expect(
                buf.getDirection(), equals=kIODirectionInOut, what=f"getDirection after complete({direction})"
            )
            buf.release()


@check("H14", outside=True)
def one_complete_too_many_does_nothing(case: Case) -> None:
    """Completes more often than it prepared: success, and a later prepare works."""
    buf = _pageable(case)
    data = case.pattern(buf.getCapacity())
    buf.writeBytes(0, data)
    for _ in range(3):
        _expect_ok(case, buf.complete(), "complete() without a prepare")
        case.expect(buf.describe().prepared, equals=0, what="prepares outstanding")
    _expect_ok(case, buf.prepare(), "prepare() after it")
    case.expect(buf.describe().prepared, equals=1, what="prepares outstanding after one")
    segments = buf.segments()
    with case.look() as look:
        _expect_at_segments(case, look, buf, segments, data)
    for _ in range(2):
        _expect_ok(case, buf.complete(), "complete()")
        case.expect(buf.describe().held, equals=0, what="pages held after the last complete")
    case.expect_bytes(buf.readBytes(0, len(data)), equals=data, what="contents after all")
    wired = case.make(kIODirectionInOut, 5000)
    data = case.pattern(5000)
    wired.writeBytes(0, data)
    for _ in range(wired.describe().prepared + 2):
        _expect_ok(case, wired.complete(), "complete() of a wired buffer")
    case.expect(wired.describe().prepared, equals=0, what="prepares outstanding of the wired buffer")
    _expect_ok(case, wired.prepare(), "prepare() of the wired buffer after it")
    with case.look() as look:
        case.expect_bytes(look.read(wired, 0, 5000), equals=data, what="guest RAM behind the wired buffer")
    case.expect_bytes(wired.readBytes(0, 5000), equals=data, what="readBytes of it")


@check("H15", outside=True)
def thread_safe_buffers_take_calls_from_many_threads(case: Case) -> None:
    """Lets threads prepare, complete and read one buffer at once: codes, bytes and the balance are right."""
    for options in (0, _PURGEABLE):
        buf = (
            _pageable(case, options | kIOMemoryThreadSafe)
            if options
            else case.make(kIODirectionInOut | kIOMemoryThreadSafe, 64 * KIB + 100)
        )
        data = case.pattern(buf.getCapacity())
        case.expect(buf.writeBytes(0, data), equals=len(data), what=f"bytes written into {buf!r}")
        before = buf.describe()
        with ThreadPoolExecutor(_THREADS) as pool:
            wrong = [one for found in pool.map(_hammer, [(buf, data)] * _THREADS) for one in found]
        case.expect(wrong[:3], equals=[], what=f"wrong answers to {_THREADS} threads at {buf!r}")
        _expect_all_counted(case, buf, before.prepared)
        after = buf.describe()
        case.expect(
            (after.prepared, after.held),
            equals=(before.prepared, before.held),
            what="prepares and pages held, after all",
        )
        _expect_ok(case, buf.prepare(), "prepare() after all")
        segments = buf.segments()
        with case.look() as look:
            _expect_at_segments(case, look, buf, segments, data)
        _expect_ok(case, buf.complete(), "complete() after all")
        if options:
            state = buf.setPurgeable(kIOMemoryPurgeableKeepCurrent)
            case.expect(
                state.oldState, equals=kIOMemoryPurgeableNonVolatile, what="purgeable state after all"
            )
    case.note(f"{_THREADS} threads, {_ROUNDS} rounds each, their calls in flight at the same time")


def _expect_all_counted(case: Case, buf: IOBufferMemoryDescriptor, before: int) -> None:
    """Send calls together, which the agent's workers make side by side, and count after each such volley.

    What is lost in one place may be gained in another: at the end alone the balance may be right by chance.
    """
    for _ in range(_ROUNDS):
        for name, wanted in (("PREPARE", before + _THREADS), ("COMPLETE", before)):
            case.expect(_together(case, buf, name), equals=[_OK] * _THREADS, what=f"codes of {name}")
            case.expect(buf.describe().prepared, equals=wanted, what=f"prepares after {_THREADS} at a time")


def _together(case: Case, buf: IOBufferMemoryDescriptor, name: str) -> list[object]:
    """Send one ioctl for each thread before any is answered, and return their codes."""
    command = case.iokit.layouts.enum("iobmd_ioctl")[f"IOBMD_IOC_{name}"]
    wiring = case.iokit.layouts.struct("iobmd_wiring")
    sent = [case.guest.start_ioctl(buf.fd, command, wiring.pack()) for _ in range(_THREADS)]
    answers = [one.wait(case.guest.operation_timeout).arg for one in sent]
    return [wiring.unpack(answer)["code"] for answer in answers]


def _hammer(work: tuple[IOBufferMemoryDescriptor, bytes]) -> list[str]:
    """One thread's rounds; what was wrong, in words."""
    buf, data = work
    wrong = []
    for number in range(_ROUNDS):
        start = number * 997 % (len(data) - 100)
        code = buf.prepare()
        if code != _OK:
            wrong.append(f"prepare() = {code}")
        if buf.readBytes(start, 100) != data[start : start + 100]:
            wrong.append(f"readBytes({start}) gave other bytes")
        if code == _OK and (code := buf.complete()) != _OK:
            wrong.append(f"complete() = {code}")
    return wrong
