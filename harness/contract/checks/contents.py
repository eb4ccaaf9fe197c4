# SPDX-License-Identifier: MIT
"""Group G: contents, copies in, append, pointers."""

from harness.contract.case import KIB, MIB, PAGE, Case
from harness.contract.engine import check
from harness.iokit import IOBufferMemoryDescriptor
from harness.iokit.constants import (
    kIODirectionIn,
    kIODirectionInOut,
    kIODirectionOut,
    kIOMapInhibitCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
    kIOMemoryPhysicallyContiguous,
)


@check("G01", outside=True)
def fresh_memory_is_zero(case: Case) -> None:
    """Dirties memory and gives it back, makes buffers of every kind, and reads all of their storage."""
    for _ in range(2):
        dirty = [case.make(kIODirectionInOut, size) for size in (16, 5000, 64 * KIB, 64 * KIB)]
        for buf in dirty:
            buf.writeBytes(0, case.pattern(buf.getLength()))
        for buf in dirty:
            buf.release()
    options = (
        0,
        kIOMemoryPhysicallyContiguous,
        kIOMapWriteCombineCache,
        kIOMapInhibitCache,
        kIOMapWriteThruCache,
    )
    asked = [
        case.iokit.withOptions(kIODirectionInOut | option, size)
        for option in options
        for size in (16, 5000, 64 * KIB)
    ]
    asked += [case.iokit.withOptions(kIODirectionInOut, size) for size in (2 * MIB, 9 * MIB + 123)]
    asked += [
        case.iokit.withOptions(kIODirectionInOut, 100, 64 * KIB),
        case.iokit.withCapacity(5000, kIODirectionIn),
    ]
    made = [buf for buf in map(case.maybe, asked) if buf]
    with case.look() as look:
        for buf in made:
            case.expect_zero(look.read(buf), what=f"storage of {buf!r}")
    case.note(f"{len(made)} buffers, {sum(buf.storage for buf in made)} bytes, all zero")


@check("G03", outside=True)
def withbytes_holds_a_copy(case: Case) -> None:
    """Passes bytes and finds them in guest RAM, also after other bytes went through the same source."""
    made = []
    for size in (1, 5, PAGE - 1, PAGE + 1, 64 * KIB, 600 * KIB):
        data = case.pattern(size)
        made.append((data, case.need(case.iokit.withBytes(data, kIODirectionInOut))))
    # The source was the agent's memory; whatever comes next overwrites it.
    case.need(case.iokit.withBytes(case.pattern(600 * KIB), kIODirectionInOut))
    with case.look() as look:
        for data, buf in made:
            case.expect_bytes(look.read(buf, 0, len(data)), equals=data, what=f"guest RAM behind {buf!r}")
            case.expect_zero(look.read(buf, len(data)), what=f"storage beyond the bytes of {buf!r}")


@check("G04")
def withbytes_is_full(case: Case) -> None:
    """Compares length and capacity with the number of bytes passed."""
    for size in (1, 5, 100, PAGE, 5000, 64 * KIB):
        buf = case.need(case.iokit.withBytes(bytes(size), kIODirectionInOut))
        case.expect(buf.getLength(), equals=size, what=f"getLength of {buf!r}")
        case.expect(buf.getCapacity(), equals=size, what=f"getCapacity of {buf!r}")


@check("G05", outside=True)
def withbytes_fills_an_out_buffer(case: Case) -> None:
    """Passes bytes and kIODirectionOut, which forbids later writes, and finds the bytes in guest RAM."""
    for size in (5, 5000):
        data = case.pattern(size)
        buf = case.need(case.iokit.withBytes(data, kIODirectionOut))
        case.expect(buf.getDirection(), equals=kIODirectionOut, what="getDirection")
        with case.look() as look:
            case.expect_bytes(look.read(buf, 0, size), equals=data, what=f"guest RAM behind {buf!r}")


@check("G06", outside=True)
def withbytes_aligns_to_its_size(case: Case) -> None:
    """Compares the address with the byte count rounded up to a power of two, a page at most.

    Behind an IOMMU small buffers share a page in steps of their own (C15): that may align them to more.
    """
    rounded = {1: 1, 5: 8, 8: 8, 100: 128, 3000: PAGE, PAGE: PAGE, 5000: PAGE, 64 * KIB: PAGE}
    made = [
        (power, case.need(case.iokit.withBytes(bytes(size), kIODirectionIn)))
        for size, power in rounded.items()
    ]
    for power, buf in made:
        decided = buf.describe().alignment
        if case.facts.iommu:
            case.expect_multiple(decided, power, what=f"alignment decided on for {buf!r}")
        else:
            case.expect(decided, equals=power, what=f"alignment decided on for {buf!r}")
    with case.look() as look:
        for power, buf in made:
            case.expect_multiple(buf.address, power, what=f"kernel VA of {buf!r}")
            case.expect_multiple(look.at(buf.address), power, what=f"PA of {buf!r}")


@check("G07", outside=True)
def withcapacity_has_room(case: Case) -> None:
    """Asks withCapacity for many sizes: length and capacity are the size, and its last byte takes a value."""
    for contiguous in (False, True):
        made = [
            (size, case.need(case.iokit.withCapacity(size, kIODirectionInOut, contiguous)))
            for size in (1, 100, 2041, PAGE, 5000, MIB)
        ]
        planted = []
        for size, buf in made:
            case.expect(buf.getLength(), equals=size, what=f"getLength of {buf!r}")
            case.expect(buf.getCapacity(), equals=size, what=f"getCapacity of {buf!r}")
            planted.append(case.plant(buf))
        with case.look() as look:
            for (_, buf), bytes_ in zip(made, planted, strict=True):
                case.expect_planted(look, buf, bytes_)


@check("G12", outside=True)
def append_adds_at_the_length(case: Case) -> None:
    """Appends pieces after setLength(0): one after another in guest RAM, the length at their end."""
    buf = case.make(kIODirectionInOut, 20_000)
    buf.setLength(0)
    whole = b""
    for size in (1, 100, PAGE, 5000):
        piece = case.pattern(size)
        case.expect(buf.appendBytes(piece), equals=True, what=f"appendBytes of {size} bytes")
        whole += piece
        case.expect(buf.getLength(), equals=len(whole), what="getLength after appendBytes")
    buf.setLength(50)
    piece = case.pattern(200)
    case.expect(buf.appendBytes(piece), equals=True, what="appendBytes after setLength(50)")
    case.expect(buf.getLength(), equals=250, what="getLength after appending 200 bytes at 50")
    with case.look() as look:
        expected = whole[:50] + piece + whole[250:]
        case.expect_bytes(
            look.read(buf, 0, len(expected)), equals=expected, what="guest RAM behind what was appended"
        )
        case.expect_zero(look.read(buf, len(expected)), what="storage beyond what was appended")


@check("G13", outside=True)
def append_stops_at_the_capacity(case: Case) -> None:
    """Appends more than fits: the length is the capacity, and the storage beyond keeps what it had."""
    for capacity, length, size in ((5000, 4900, 200), (5000, 4999, 2), (100, 0, 101), (PAGE, 4000, 5000)):
        buf = case.make(kIODirectionInOut, capacity)
        guard = case.pattern(buf.storage - capacity)
        with case.look() as look:
            look.write(buf, capacity, guard)
        buf.setLength(length)
        data = case.pattern(size)
        buf.appendBytes(data)
        case.expect(
            buf.getLength(), equals=capacity, what=f"getLength after appending {size} bytes at {length}"
        )
        with case.look() as look:
            fits = capacity - length
            case.expect_bytes(
                look.read(buf, length, fits), equals=data[:fits], what="what fits, in guest RAM"
            )
            case.expect_bytes(look.read(buf, capacity), equals=guard, what="storage beyond the capacity")


@check("G14")
def append_always_says_true(case: Case) -> None:
    """Appends what fits, what fits in part, and what does not fit at all."""
    buf = case.make(kIODirectionInOut, 5000)
    for length, size in ((0, 10), (4999, 10), (5000, 10), (0, 9999)):
        buf.setLength(length)
        case.expect(
            buf.appendBytes(case.pattern(size)), equals=True, what=f"appendBytes of {size} bytes at {length}"
        )


@check("G15", outside=True)
def a_fresh_buffer_is_full(case: Case) -> None:
    """Appends to a fresh buffer: nothing changes.  After setLength(0) the same bytes arrive."""
    buf = case.make(kIODirectionInOut, 5000)
    data = case.pattern(64)
    buf.appendBytes(data)
    case.expect(buf.getLength(), equals=5000, what="getLength after appending to a fresh buffer")
    with case.look() as look:
        case.expect_zero(look.read(buf), what="storage after appending to a fresh buffer")
    buf.setLength(0)
    buf.appendBytes(data)
    case.expect(buf.getLength(), equals=64, what="getLength after setLength(0) and appending 64 bytes")
    with case.look() as look:
        case.expect_bytes(look.read(buf, 0, 64), equals=data, what="guest RAM behind what was appended")


@check("G16", outside=True)
def appending_nothing_changes_nothing(case: Case) -> None:
    """Appends 0 bytes at several lengths: true, same length, same bytes."""
    buf = case.make(kIODirectionInOut, 5000)
    data = case.pattern(5000)
    buf.writeBytes(0, data)
    for length in (5000, 100, 0):
        buf.setLength(length)
        case.expect(buf.appendBytes(b""), equals=True, what=f"appendBytes of nothing at {length}")
        case.expect(buf.getLength(), equals=length, what="getLength after appending nothing")
    with case.look() as look:
        case.expect_bytes(look.read(buf, 0, 5000), equals=data, what="guest RAM after appending nothing")


@check("G17", outside=True)
def getbytesnocopy_is_the_buffer(case: Case) -> None:
    """Writes guest RAM behind the pointer and reads with readBytes, and the other way round."""
    for size in (16, 5000, 9 * MIB):
        buf = case.make(kIODirectionInOut, size)
        pointer = buf.getBytesNoCopy()
        case.expect_that(pointer != 0, expected=f"an address for {buf!r}", observed="NULL")
        there = _At(pointer, buf.storage)
        data, back = case.pattern(16), case.pattern(16)
        with case.look() as look:
            look.write(there, 0, data)
        case.expect_bytes(buf.readBytes(0, 16), equals=data, what=f"readBytes after a write at {pointer:#x}")
        buf.writeBytes(0, back)
        with case.look() as look:
            case.expect_bytes(look.read(there, 0, 16), equals=back, what=f"guest RAM behind {pointer:#x}")


@check("G18", outside=True)
def getbytesnocopy_of_an_offset(case: Case) -> None:
    """Compares the pointer of an offset with base + offset, and what lies there with what was written."""
    buf = case.make(kIODirectionInOut, 9 * MIB)
    base = buf.getBytesNoCopy()
    for offset, length in ((0, 1), (1, 1), (PAGE - 1, 2), (5 * MIB + 7, MIB), (9 * MIB - 16, 16)):
        pointer = buf.getBytesNoCopy(offset, length)
        case.expect(pointer, equals=base + offset, what=f"getBytesNoCopy({offset}, {length})", show=hex)
        data = case.pattern(min(length, 16))
        buf.writeBytes(offset, data)
        with case.look() as look:
            found = look.read(_At(pointer, len(data)))
            case.expect_bytes(found, equals=data, what=f"guest RAM behind getBytesNoCopy({offset}, {length})")


@check("G19")
def getbytesnocopy_outside_is_null(case: Case) -> None:
    """Asks for windows that cross or start behind the end, and for one that wraps."""
    buf = case.make(kIODirectionInOut, 5000)
    _expect_windows(case, buf, 5000)


@check("G20")
def getbytesnocopy_is_bounded_by_the_length(case: Case) -> None:
    """Shrinks the length and asks for windows that the capacity would still hold."""
    buf = case.make(kIODirectionInOut, 5000)
    for length in (10, 4096, 1):
        buf.setLength(length)
        _expect_windows(case, buf, length)
    buf.setLength(0)
    for window in ((0, 0), (0, 1), (1, 0)):
        case.expect(
            buf.getBytesNoCopy(*window), equals=0, what=f"getBytesNoCopy{window} at length 0", show=hex
        )


def _expect_windows(case: Case, buf: IOBufferMemoryDescriptor, length: int) -> None:
    base = buf.getBytesNoCopy()
    case.expect(buf.getBytesNoCopy(0, length), equals=base, what=f"getBytesNoCopy(0, {length})", show=hex)
    last = buf.getBytesNoCopy(length - 1, 1)
    case.expect(last, equals=base + length - 1, what=f"getBytesNoCopy({length - 1}, 1)", show=hex)
    for start, size in (
        (0, length + 1), (length - 1, 2), (length, 0), (length, 1), (length + 1, 0), (1, length),
        (2**64 - 1, 1), (1, 2**64 - 1), (2**63, 2**63), (length - 1, 2**64 - max(length, 2) + 1),
    ):  # fmt: skip
        found = buf.getBytesNoCopy(start, size)
        case.expect(found, equals=0, what=f"getBytesNoCopy({start}, {size}) at length {length}", show=hex)


class _At:
    """Somewhere in the kernel's address space."""

    def __init__(self, address: int, storage: int) -> None:
        self.address = address
        self.storage = storage

    def __repr__(self) -> str:
        return f"{self.storage} bytes at {self.address:#x}"
