# SPDX-License-Identifier: MIT
"""Group J: mappings of a descriptor into the kernel and into processes.

A mapping's address and length are the module's word.  What is there is read from page tables from outside:
which physical pages, for whom, writable or not.  That a write would fault shows twice: as a bit in the page
table, and as EFAULT of a system call that writes on the process's behalf.
"""

from __future__ import annotations

from harness.contract.case import KIB, MIB, PAGE, Case, Place
from harness.contract.engine import check
from harness.contract.mapped import (
    PAGEABLE,
    expect_access,
    expect_errno,
    expect_gone,
    expect_layout,
    expect_leaves,
    expect_shows,
    filled,
    layout,
    map_into,
    pages_of,
    place_of,
    user_leaves,
)
from harness.iokit import IOBufferMemoryDescriptor, IOMemoryMap, TaskLike, kernel_task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapAnywhere,
    kIOMapInhibitCache,
    kIOMapPrefault,
    kIOMapReadOnly,
    kIOMapUnique,
    kIOMapWriteCombineCache,
    kIOMemoryPageable,
)
from harness.link import GuestOSError, Process
from harness.link.memory import PROT_READ, PROT_WRITE
from harness.link.syscalls import Nr

_KERNEL_HALF = 1 << 63
_MAP_SHARED = 1
_KINDS = (kIODirectionInOut, PAGEABLE)
_PARTS = (
    (0, PAGE), (PAGE, PAGE), (PAGE, 3 * PAGE), (100, 50), (PAGE - 10, 20), (2 * PAGE + 1, 1),
    (0, 64 * KIB), (60 * KIB, 4 * KIB), (64 * KIB - 1, 1),
)  # fmt: skip
_BEYOND = (
    (0, 3 * PAGE + 1), (3 * PAGE, 1), (2 * PAGE, PAGE + 1), (1, 3 * PAGE), (4 * PAGE, PAGE), (2**32, PAGE),
    (2**63, 2**63), (1, 2**64 - 1), (2**64 - 1, 1), (PAGE, 2**64 - PAGE),
)  # fmt: skip


def _tasks(case: Case) -> tuple[tuple[TaskLike, Process], ...]:
    """The tasks to map into, each with the process whose page tables show it."""
    return (kernel_task, case.guest), (case.guest, case.guest), (case.peer, case.peer)


@check("J01", outside=True)
def map_shows_the_whole_descriptor_to_the_kernel(case: Case) -> None:
    """Maps buffers into the kernel and finds all their bytes there; what cannot be mapped is NULL."""
    for options, capacity in (
        (kIODirectionInOut, 5000),
        (kIODirectionInOut | kIOMapInhibitCache, 64 * KIB),
        (kIODirectionInOut, 5 * MIB + 123),
        (PAGEABLE, 64 * KIB + 5),
    ):
        buf, data = filled(case, options, capacity)
        for how in (0, kIOMapUnique):
            place = place_of(case.need(buf.map(how)))
            case.expect(place.storage, equals=capacity, what=f"length of map() of {buf!r}")
            case.expect_that(
                place.address >= _KERNEL_HALF, expected="an address of the kernel", observed=f"{place}"
            )
            with case.look() as look:
                expect_leaves(case, look, place, user=False, writable=True)
                case.expect_bytes(look.read(place), equals=data, what=f"guest RAM behind {place}")
        buf.release()
    buf, _ = filled(case, PAGEABLE, 5000)
    case.null(buf.map(kIOMapPrefault))  # not prepared: there is nothing yet that could be there at once
    buf.setLength(0)
    case.null(buf.map())


@check("J02", outside=True)
def map_of_a_wired_buffer_is_its_own_address(case: Case) -> None:
    """Compares map() with getBytesNoCopy, and all leaves over the pages before and after: nothing new."""
    for options, capacity in ((0, 16), (0, 5000), (kIOMapWriteCombineCache, 64 * KIB), (0, 5 * MIB)):
        buf = case.maybe(case.iokit.withOptions(kIODirectionInOut | options, capacity))
        if buf is None:
            continue
        with case.look() as look:
            before = layout(look.aliases(buf))
        made = [case.need(buf.map(how)) for how in (0, kIOMapReadOnly, 0)]
        own = buf.getBytesNoCopy()
        for mapping in made:
            case.expect(mapping.getVirtualAddress(), equals=own, what=f"address of {mapping!r}", show=hex)
            case.expect(mapping.own, equals=True, what=f"{mapping!r} is the buffer's own address")
        with case.look() as look:
            expect_layout(case, look.aliases(buf), before, f"over {buf!r}, mapped three times")
            expect_leaves(case, look, Place(own, capacity), user=False, writable=True)
        for mapping in made:
            mapping.release()
        with case.look() as look:
            expect_layout(case, look.aliases(buf), before, f"over {buf!r}, mapped no more")


@check("J03", outside=True)
def unique_mappings_have_addresses_of_their_own(case: Case) -> None:
    """Maps a buffer several times with kIOMapUnique: other addresses, the same pages, one set of bytes."""
    buf, data = filled(case, kIODirectionInOut, 64 * KIB + 100)
    maps = [case.need(buf.map(kIOMapUnique)) for _ in range(2)]
    mine, other = (map_into(case, buf, case.guest, kIOMapUnique) for _ in range(2))
    places = [place_of(one) for one in (*maps, mine, other)]
    addresses = {buf.address, *(place.address for place in places)}
    case.expect(len(addresses), equals=5, what="different addresses of one buffer and four mappings")
    answer = case.pattern(len(data))
    case.expect_bytes(mine.read(), equals=data, what=f"bytes read through {mine!r}")
    other.write(0, answer)
    case.expect_bytes(mine.read(), equals=answer, what="bytes written through the other mapping")
    case.expect_bytes(buf.readBytes(0, len(answer)), equals=answer, what="readBytes of them")
    with case.look(case.guest) as look:
        where = look.where(buf, 0, len(data))
        for place in places:
            expect_shows(case, look, place, where)
            case.expect_bytes(look.read(place), equals=answer, what=f"guest RAM behind {place}")


@check("J04", outside=True)
def writes_through_a_read_only_mapping_fault(case: Case) -> None:
    """Maps read-only and writable, in kernel and processes: the leaf's bit and the write's EFAULT agree."""
    for options in _KINDS:
        buf, data = filled(case, options, 3 * PAGE)
        for process in (case.guest, case.peer):
            locked = map_into(case, buf, process, kIOMapReadOnly | kIOMapUnique)
            free = map_into(case, buf, process, kIOMapUnique)
            for page in range(0, 3 * PAGE, PAGE):
                at, beside = locked.getVirtualAddress() + page, free.getVirtualAddress() + page
                expect_access(case, process, at, faults=False, what="mapped read-only")
                expect_access(case, process, at, write=True, faults=True, what="mapped read-only")
                expect_access(case, process, beside, write=True, faults=False, what="mapped writable")
            with case.look(process) as look:
                expect_leaves(case, look, place_of(locked), user=True, writable=False)
                expect_leaves(case, look, place_of(free), user=True, writable=True)
            _expect_no_way_around(case, process, locked)
        case.expect_bytes(buf.readBytes(0, len(data)), equals=data, what="readBytes after the refused writes")
        places = [place_of(case.need(buf.map(how | kIOMapUnique))) for how in (kIOMapReadOnly, 0)]
        with case.look() as look:
            expect_leaves(case, look, places[0], user=False, writable=False)
            expect_leaves(case, look, places[1], user=False, writable=True)
        buf.release()


def _expect_no_way_around(case: Case, process: Process, mapping: IOMemoryMap) -> None:
    """A second view of a read-only mapping, by mmap(2), cannot be made writable either."""
    length, both = 3 * PAGE, PROT_READ | PROT_WRITE

    def view(protection: int) -> int:
        return process.syscall(Nr.MMAP, 0, length, protection, _MAP_SHARED, mapping.fd, 0, what="mmap").value

    try:
        seen, address = "success", view(both)
    except GuestOSError as error:
        seen, address = error.observed, view(PROT_READ)
    try:
        case.expect(seen, equals="EACCES", what="mmap of a read-only mapping's descriptor for writing")
        what = "mprotect of a view of it for writing"
        expect_errno(case, process, "EACCES", Nr.MPROTECT, address, length, both, what=what)
    finally:
        process.syscall(Nr.MUNMAP, address, length, what="munmap")


@check("J05", outside=True)
def offset_and_length_choose_a_part(case: Case) -> None:
    """Maps many parts of buffers into kernel and process and finds exactly these bytes there."""
    for options in _KINDS:
        buf, data = filled(case, options, 64 * KIB)
        for task in (kernel_task, case.guest):
            for offset, length in _PARTS:
                _expect_part(case, buf, data, task, (offset, length))
            whole = map_into(case, buf, task, kIOMapUnique)
            case.expect(
                whole.getLength(), equals=len(data), what="length of a mapping of length 0, the default"
            )
            whole.release()
        buf.release()


def _expect_part(
    case: Case, buf: IOBufferMemoryDescriptor, data: bytes, task: TaskLike, part: tuple[int, int]
) -> None:
    offset, length = part
    mapping = map_into(case, buf, task, kIOMapUnique, part)
    place, bytes_ = place_of(mapping), data[offset:][:length]
    case.expect(place.storage, equals=length, what=f"length of {mapping!r}")
    case.expect(place.address % PAGE, equals=offset % PAGE, what=f"offset in the page of {mapping!r}")
    if task is not kernel_task:
        case.expect_bytes(mapping.read(), equals=bytes_, what=f"bytes read through {mapping!r}")
    with case.look(case.guest) as look:
        case.expect_bytes(look.read(place), equals=bytes_, what=f"guest RAM behind {place}")
        if buf.address:
            expect_shows(case, look, place, look.where(buf, offset, length))
    mapping.release()


@check("J06")
def parts_beyond_the_length_are_null(case: Case) -> None:
    """Asks for parts that end behind the length, which is less than the capacity: NULL, every time."""
    for options in _KINDS:
        buf, _ = filled(case, options, 5 * PAGE)
        buf.setLength(3 * PAGE)
        for task in (kernel_task, case.guest):
            for how in (kIOMapAnywhere, kIOMapAnywhere | kIOMapUnique):
                for offset, length in _BEYOND:
                    case.null(buf.createMappingInTask(task, 0, how, offset, length))
            map_into(case, buf, task, kIOMapUnique, (PAGE, 2 * PAGE)).release()
        case.expect(buf.describe().mappings, equals=0, what="mappings left behind by refusals")
        buf.release()


@check("J07", outside=True)
def impossible_fixed_addresses_are_null(case: Case) -> None:
    """Asks for fixed addresses where nothing can be mapped: NULL, nothing there, and no complaint."""
    buf, data = filled(case, kIODirectionInOut, 2 * PAGE)
    said = len(case.kernel_log())
    inside = buf.address + PAGE
    for address in (0x2000, 0, PAGE, 1 << 46, 1 << 47, 0xDEAD << 48, inside, 2**64 - PAGE):
        for how in (0, kIOMapReadOnly, kIOMapUnique):
            case.null(buf.createMappingInTask(kernel_task, address, how))
    for address in (1 << 47, 0xDEAD << 48, buf.address, 2**64 - PAGE):
        case.null(buf.createMappingInTask(case.guest, address, kIOMapUnique))
    with case.guest.memory(data[::-1]) as taken:
        case.null(buf.createMappingInTask(case.guest, taken.address, kIOMapUnique))
        case.null(buf.createMappingInTask(case.guest, taken.address + 1, kIOMapUnique))
        case.expect_bytes(taken.read(), equals=data[::-1], what="memory that was there before")
        address = taken.address
    # Where that memory was there is room now.
    mapping = case.need(buf.createMappingInTask(case.guest, address, kIOMapUnique))
    case.expect(mapping.getVirtualAddress(), equals=address, what="address of a mapping that fits", show=hex)
    case.expect_bytes(mapping.read(), equals=data, what="bytes read through it")
    with case.look(case.guest) as look:
        case.expect(look.mapped_pages(Place(0x2000, 2 * PAGE)), equals=0, what="pages mapped at 0x2000")
        expect_shows(case, look, place_of(mapping), look.where(buf, 0, len(data)))
    case.expect(case.guest.link.ping(b"alive"), equals=b"alive", what="the agent's echo after it all")
    case.expect(case.complaints(said), equals=[], what="complaints of the kernel")


@check("J08", outside=True)
def compatible_mappings_are_shared(case: Case) -> None:
    """Maps a buffer twice alike: one address, one leaf per page; read-only ones get another address."""
    for options in _KINDS:
        buf, data = filled(case, options, 4 * PAGE)
        # A process in which the buffer itself lives shares the buffer's own address, J02's counterpart.
        for process in (case.peer,) if options & kIOMemoryPageable else (case.guest, case.peer):
            first, second = map_into(case, buf, process), map_into(case, buf, process)
            part = map_into(case, buf, process, 0, (PAGE, PAGE))
            apart = map_into(case, buf, process, kIOMapReadOnly)
            place = place_of(first)
            case.expect(second.getAddress(), equals=place.address, what="address of the second", show=hex)
            case.expect(part.getAddress(), equals=place.address + PAGE, what="address of a part", show=hex)
            case.expect_bytes(first.read(), equals=data, what="bytes read through the first")
            with case.look(process) as look:
                found = user_leaves(look, repr(first), look.where(place))
                case.expect(len(found), equals=4, what="leaves over four pages mapped twice")
            expect_access(case, process, apart.getAddress(), write=True, faults=True, what="mapped read-only")
            expect_access(case, process, place.address, write=True, faults=False, what="mapped writable")
            apart.release()
            first.release()
            case.expect_bytes(second.read(), equals=data, what="bytes read through the second alone")
            second.release()
            case.expect_bytes(part.read(), equals=data[PAGE : 2 * PAGE], what="bytes read through the part")
            part.release()
            expect_access(case, process, place.address + PAGE, faults=True, what="where they were")
        buf.release()
    wired, _ = filled(case, kIODirectionInOut, 4 * PAGE)
    one, two = case.need(wired.map()), case.need(wired.map())
    case.expect(one.getAddress(), equals=two.getAddress(), what="address of map() twice", show=hex)


@check("J09", outside=True)
def prefaulted_mappings_need_no_fault(case: Case) -> None:
    """Reads prefaulted mappings with a lock held, where no fault can be served: every byte is there."""
    for options in _KINDS:
        buf, data = filled(case, options, 5 * PAGE + 100)
        if options & kIOMemoryPageable:
            case.null(buf.createMappingInTask(case.guest, 0, kIOMapAnywhere | kIOMapPrefault | kIOMapUnique))
        case.expect(buf.prepare(), equals=0, what=f"prepare of {buf!r}")
        lazy = map_into(case, buf, case.peer)
        case.expect(len(lazy.readLocked(0, len(data))), equals=0, what="bytes of a mapping nobody touched")
        for task, process in _tasks(case):
            # Without kIOMapUnique it shares what is there, which nobody touched either.
            for how in (kIOMapUnique, 0):
                mapping = map_into(case, buf, task, kIOMapPrefault | how)
                with case.look(process) as look:
                    there = look.mapped_pages(place_of(mapping))
                    case.expect(there, equals=pages_of(len(data)), what=f"untouched pages of {mapping!r}")
                    case.expect_bytes(look.read(place_of(mapping)), equals=data, what="guest RAM behind it")
                locked = mapping.readLocked(0, len(data))
                case.expect_bytes(locked, equals=data, what=f"bytes read with a lock held, {mapping!r}")
                mapping.release()
        case.expect(buf.complete(), equals=0, what=f"complete of {buf!r}")


@check("J10", outside=True)
def releasing_the_last_reference_unmaps(case: Case) -> None:
    """Releases mappings one reference after the other: what was mapped is gone with the last one."""
    for options in _KINDS:
        buf, data = filled(case, options, 2 * PAGE)
        for task, process in _tasks(case):
            mapping = map_into(case, buf, task, kIOMapUnique)
            place = place_of(mapping)
            if task is not kernel_task:
                case.expect_bytes(mapping.read(), equals=data, what=f"bytes read through {mapping!r}")
            with case.look(process) as look:
                case.expect_bytes(look.read(place), equals=data, what=f"guest RAM behind {place}")
                where = look.where(place)
            mapping.release()
            if task is not kernel_task:
                expect_access(case, process, place.address, faults=True, what="after the release")
            with case.look(process) as look:
                expect_gone(case, look, place, where)
        case.expect(buf.describe().mappings, equals=0, what="mappings the module counts")
        buf.release()
    _expect_shared_until_the_last(case)


def _expect_shared_until_the_last(case: Case) -> None:
    """Two references to one mapping: the first release, and the descriptor's, take nothing away."""
    buf, data = filled(case, kIODirectionInOut, PAGE)
    first, second = map_into(case, buf, case.peer), map_into(case, buf, case.peer)
    first.release()
    case.expect_bytes(second.read(), equals=data, what="bytes read through the reference that is left")
    buf.release()
    case.expect_bytes(second.read(), equals=data, what="bytes read after the descriptor's release")
    place = place_of(second)
    with case.look(case.peer) as look:
        where = look.where(place)
    second.release()
    expect_access(case, case.peer, place.address, faults=True, what="after both releases")
    with case.look(case.peer) as look:
        expect_gone(case, look, place, where)


@check("J11")
def length_zero_is_the_whole_not_the_rest(case: Case) -> None:
    """Maps with length 0 at offset 0, the whole current length, and at other offsets: NULL."""
    for options in _KINDS:
        buf, _ = filled(case, options, 4 * PAGE)
        for length in (4 * PAGE, 2 * PAGE + 5):
            buf.setLength(length)
            for task in (kernel_task, case.guest):
                for how in (0, kIOMapUnique):
                    whole = map_into(case, buf, task, how)
                    case.expect(whole.getLength(), equals=length, what=f"length of {whole!r}")
                    whole.release()
                    for offset in (1, PAGE, length - 1, length):
                        case.null(buf.createMappingInTask(task, 0, how | kIOMapAnywhere, offset, 0))
        buf.release()
