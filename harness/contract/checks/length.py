# SPDX-License-Identifier: MIT
"""Group B: capacity and length."""

from harness.contract.case import KIB, MIB, PAGE, Case, Place
from harness.contract.checks.creation import SIZES
from harness.contract.engine import check
from harness.contract.mapped import (
    PAGEABLE,
    expect_access,
    expect_shows,
    filled,
    map_into,
    pages_of,
    place_of,
)
from harness.iokit import IOMemoryMap, PhysicalSegment, Task, kernel_task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapAnywhere,
    kIOMapGuardedLarge,
    kIOMapGuardedSmall,
    kIOMapUnique,
    kIOMemoryPhysicallyContiguous,
)
from harness.link import Process


@check("B01")
def capacity_is_what_was_asked_for(case: Case) -> None:
    """Asks every factory for many sizes and compares getCapacity."""
    for size in SIZES:
        case.expect(
            case.make(kIODirectionInOut, size).getCapacity(), equals=size, what="getCapacity, withOptions"
        )
    for size in (1, 100, 5000, 64 * KIB):
        for buf in (
            case.need(case.iokit.inTaskWithOptions(kernel_task, kIODirectionInOut, size)),
            case.need(case.iokit.withCapacity(size, kIODirectionInOut)),
            case.need(case.iokit.withCapacity(size, kIODirectionInOut, True)),
            case.need(case.iokit.withBytes(bytes(size), kIODirectionInOut)),
        ):
            case.expect(buf.getCapacity(), equals=size, what=f"getCapacity of {buf!r}")


@check("B02", outside=True)
def capacity_is_not_rounded_though_storage_is(case: Case) -> None:
    """Makes page-aligned buffers of odd sizes: the capacity stays odd, whole pages are mapped."""
    for capacity, alignment, pages in ((5000, PAGE, 2), (1, PAGE, 1), (PAGE + 1, PAGE, 2)):
        buf = case.make(kIODirectionInOut, capacity, alignment)
        case.expect(buf.getCapacity(), equals=capacity, what=f"getCapacity of {buf!r}")
        with case.look() as look:
            mapped = sum(one.length for one in look.where(buf))
            case.expect(mapped, equals=pages * PAGE, what=f"bytes of storage of {buf!r}")
        buf.setLength(capacity)
        case.expect(buf.getLength(), equals=capacity, what=f"getLength of {buf!r} after setLength(capacity)")
        buf.setLength(capacity + 1)
        case.expect(
            buf.getLength(), equals=capacity, what=f"getLength of {buf!r} after setLength(capacity + 1)"
        )


@check("B03")
def length_starts_as_the_capacity(case: Case) -> None:
    """Reads getLength right after each factory."""
    for size in (1, 100, PAGE, 5000, 9 * MIB + 123):
        for made in (
            case.iokit.withOptions(kIODirectionInOut, size),
            case.iokit.withOptions(kIODirectionInOut, size, PAGE),
            case.iokit.inTaskWithOptions(kernel_task, kIODirectionInOut, size),
            case.iokit.withCapacity(size, kIODirectionInOut),
        ):
            with case.need(made) as buf:
                case.expect(buf.getLength(), equals=size, what=f"getLength of {buf!r}")
    with case.need(case.iokit.withBytes(b"seven b", kIODirectionInOut)) as buf:
        case.expect(buf.getLength(), equals=7, what=f"getLength of {buf!r}")


@check("B04")
def setlength_up_to_the_capacity(case: Case) -> None:
    """Sets lengths from 0 to the capacity, up and down, and compares length and capacity."""
    for capacity in (1, 5000, 5 * MIB):
        buf = case.make(kIODirectionInOut, capacity)
        for length in (capacity, capacity // 2, 1, 0, capacity - 1, capacity):
            buf.setLength(length)
            case.expect(buf.getLength(), equals=length, what=f"getLength after setLength({length})")
            case.expect(buf.getCapacity(), equals=capacity, what=f"getCapacity after setLength({length})")


@check("B05")
def setlength_beyond_the_capacity_is_ignored(case: Case) -> None:
    """Sets lengths beyond the capacity: the length stays, and each attempt is counted."""
    buf = case.make(kIODirectionInOut, 5000, PAGE)
    buf.setLength(1234)
    # 5001 still lies in the storage, whole pages; the bound is the capacity all the same.
    for number, length in enumerate((5001, 2 * PAGE, 2 * PAGE + 1, 2**32 + 1, 2**63, 2**64 - 1), start=1):
        buf.setLength(length)
        case.expect(buf.getLength(), equals=1234, what=f"getLength after setLength({length})")
        case.expect(buf.getCapacity(), equals=5000, what=f"getCapacity after setLength({length})")
        case.expect(buf.refusedLengths, equals=number, what="setLength calls counted as refused")


@check("B06", outside=True)
def length_zero_is_legal(case: Case) -> None:
    """Sets length 0: nothing can be described or mapped then, and the buffer stays where it is."""
    buf = case.make(kIODirectionInOut, 5000)
    with case.look() as look:
        where = look.where(buf)
    buf.setLength(0)
    case.expect(buf.getLength(), equals=0, what="getLength after setLength(0)")
    case.expect(buf.getPhysicalSegment(0), equals=PhysicalSegment(0, 0), what="getPhysicalSegment(0)")
    case.expect(buf.getBytesNoCopy(), equals=buf.address, what="getBytesNoCopy() at length 0", show=hex)
    for task in (kernel_task, case.guest):
        for how in (kIOMapAnywhere, kIOMapAnywhere | kIOMapUnique):
            for length in (0, 1, 5000):
                case.null(buf.createMappingInTask(task, 0, how, 0, length))
    with case.look() as look:
        case.expect(look.where(buf), equals=where, what=f"physical ranges of {buf!r} at length 0")
    buf.setLength(5000)
    mapping = map_into(case, buf, case.guest, kIOMapUnique)
    case.expect(mapping.getLength(), equals=5000, what="length of a mapping after setLength(5000)")


@check("B07", outside=True)
def shrinking_and_growing_keeps_everything(case: Case) -> None:
    """Plants patterns, shrinks and grows the length, and compares guest RAM and physical pages."""
    for capacity in (5000, 9 * MIB):
        buf = case.make(kIODirectionInOut, capacity)
        planted = case.plant(buf)
        with case.look() as look:
            before = look.where(buf)
        for length in (1, 0, capacity // 2, 0, capacity):
            buf.setLength(length)
        case.expect(buf.getLength(), equals=capacity, what="getLength after shrinking and growing")
        with case.look() as look:
            case.expect(look.where(buf), equals=before, what=f"physical ranges of {buf!r}")
            case.expect_planted(look, buf, planted)
        last = planted[-1]
        read = buf.readBytes(last.offset, len(last.data))
        case.expect_bytes(read, equals=last.data, what="readBytes of what was planted last")


@check("B08", outside=True)
def one_descriptor_serves_many_transfer_sizes(case: Case) -> None:
    """Uses one buffer for transfers of several lengths: address and physical pages stay, the bytes arrive."""
    buf = case.make(kIODirectionInOut | kIOMemoryPhysicallyContiguous, 64 * KIB)
    address = buf.getBytesNoCopy()
    with case.look() as look:
        where = look.where(buf)
    for length in (512, 64 * KIB, 4097, 1):
        buf.setLength(length)
        data = case.pattern(length)
        case.expect(buf.writeBytes(0, data), equals=length, what=f"writeBytes at length {length}")
        case.expect(buf.getBytesNoCopy(), equals=address, what=f"getBytesNoCopy at length {length}", show=hex)
        with case.look() as look:
            case.expect(look.where(buf), equals=where, what=f"physical ranges at length {length}")
            case.expect_bytes(look.read(buf, 0, length), equals=data, what=f"guest RAM at length {length}")


@check("B09", outside=True)
def setlength_does_not_clear(case: Case) -> None:
    """Fills a buffer, shrinks the length, and finds the bytes beyond it untouched in guest RAM."""
    buf = case.make(kIODirectionInOut, 5000)
    data = case.pattern(5000)
    case.expect(buf.writeBytes(0, data), equals=5000, what="writeBytes")
    for length in (4096, 10, 0):
        buf.setLength(length)
        with case.look() as look:
            found = look.read(buf, 0, 5000)
        case.expect_bytes(found, equals=data, what=f"guest RAM after setLength({length})")


@check("B10", outside=True)
def the_length_may_grow_between_mappings(case: Case) -> None:
    """Maps a buffer at length 0x100 and again at 0x200, capacity 0x4000: two views of one page."""
    for how in (0, kIOMapUnique):
        for task, process in ((kernel_task, case.guest), (case.guest, case.guest), (case.peer, case.peer)):
            buf, data = filled(case, kIODirectionInOut, 0x4000)
            maps = []
            for length in (0x100, 0x200):
                buf.setLength(length)
                maps.append(map_into(case, buf, task, how))
                case.expect(maps[-1].getLength(), equals=length, what=f"length of {maps[-1]!r}")
                if task is not kernel_task:
                    case.expect_bytes(maps[-1].read(), equals=data[:length], what=f"bytes of {maps[-1]!r}")
            with case.look(process) as look:
                for mapping in maps:
                    place = place_of(mapping)
                    expect_shows(case, look, place, look.where(buf, 0, place.storage))
            case.release_all()


@check("B11", outside=True)
def a_mapping_keeps_the_length_it_was_made_at(case: Case) -> None:
    """Maps at several lengths and changes the length then: the mapping's own stays."""
    for options in (kIODirectionInOut, PAGEABLE):
        for length in (1, 0x100, PAGE, 5000, 0x4000):
            buf, data = filled(case, options, 0x4000)
            buf.setLength(length)
            user, kernel = map_into(case, buf, case.peer, kIOMapUnique), case.need(buf.map(kIOMapUnique))
            for later in (1, 0x4000):
                buf.setLength(later)
                for mapping in (user, kernel):
                    said = mapping.describe().length
                    case.expect(said, equals=length, what=f"length of {mapping!r} after setLength({later})")
            case.expect_bytes(user.read(), equals=data[:length], what=f"bytes read through {user!r}")
            end = user.getAddress() + pages_of(length) * PAGE
            if length <= 0x3000 and not case.peer.faults(end):
                # The process may have something of its own there.
                behind, mine = case.peer.peek(end, 64), data[pages_of(length) * PAGE :][:64]
                case.expect(behind == mine, equals=False, what="the buffer's bytes behind its last page")
            with case.look(case.peer) as look:
                for mapping in (user, kernel):
                    read = look.read(place_of(mapping))
                    case.expect_bytes(read, equals=data[:length], what=f"guest RAM behind {mapping!r}")
            case.release_all()
    for task, process in ((kernel_task, case.guest), (case.guest, case.guest), (case.peer, case.peer)):
        for how, size in ((kIOMapGuardedSmall, PAGE), (kIOMapGuardedLarge, 64 * KIB)):
            _expect_guards(case, map_into(case, filled(case, PAGEABLE, 5000)[0], task, how), process, size)


def _expect_guards(case: Case, mapping: IOMemoryMap, process: Process, size: int) -> None:
    """Guards are beside a mapping and no part of its length: nothing is there, for reads neither."""
    start = mapping.getAddress()
    end = start + pages_of(5000) * PAGE
    case.expect(mapping.getLength(), equals=5000, what=f"length of {mapping!r}, guarded")
    case.expect(mapping.guard, equals=size, what=f"guard of {mapping!r}")
    if mapping.describe().task is Task.CURRENT:
        for address in (start - size, start - 1, end, end + size - 1):
            expect_access(case, process, address, faults=True, what=f"in a guard of {mapping!r}")
        mapping.read()
    with case.look(process) as look:
        case.expect(look.mapped_pages(place_of(mapping)), equals=pages_of(5000), what=f"pages of {mapping!r}")
        beside = look.mapped_pages(Place(start - size, size)) + look.mapped_pages(Place(end, size))
        case.expect(beside, equals=0, what=f"pages in the guards of {mapping!r}")
