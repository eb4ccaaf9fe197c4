# SPDX-License-Identifier: MIT
"""Group H: direction, readBytes and writeBytes."""

from harness.contract.case import MIB, PAGE, Case
from harness.contract.engine import check
from harness.iokit import IOBufferMemoryDescriptor
from harness.iokit.constants import (
    kIODirectionIn,
    kIODirectionInOut,
    kIODirectionNone,
    kIODirectionOut,
    kIOMapInhibitCache,
)


@check("H01")
def options_set_the_direction(case: Case) -> None:
    """Passes each direction to each factory and reads it back."""
    for direction in (kIODirectionIn, kIODirectionOut, kIODirectionInOut):
        for made in (
            case.iokit.withOptions(direction, 100),
            case.iokit.withOptions(direction | kIOMapInhibitCache, 100),
            case.iokit.withCapacity(100, direction),
            case.iokit.withBytes(b"x", direction),
        ):
            buf = case.need(made)
            case.expect(buf.getDirection(), equals=direction, what=f"getDirection of {buf!r}")


@check("H02", outside=True)
def setdirection_changes_nothing_else(case: Case) -> None:
    """Changes the direction several times; address, length, contents and physical pages stay."""
    buf = case.make(kIODirectionIn, 5000)
    buf.setLength(4321)
    with case.look() as look:
        before, data = look.where(buf), look.read(buf)
    address = buf.getBytesNoCopy()
    for direction in (kIODirectionOut, kIODirectionInOut, kIODirectionIn, kIODirectionNone):
        buf.setDirection(direction)
        case.expect(
            buf.getDirection(), equals=direction, what=f"getDirection after setDirection({direction})"
        )
        case.expect(buf.getLength(), equals=4321, what="getLength after setDirection")
        case.expect(buf.getBytesNoCopy(), equals=address, what="getBytesNoCopy after setDirection", show=hex)
    with case.look() as look:
        case.expect(look.where(buf), equals=before, what="physical ranges after setDirection")
        case.expect_bytes(look.read(buf), equals=data, what="contents after setDirection")


@check("H03", outside=True)
def no_direction_reads_and_writes(case: Case) -> None:
    """Makes a buffer without direction bits: direction 0, and bytes go in and out."""
    buf = case.make(kIODirectionNone, 5000)
    case.expect(buf.getDirection(), equals=0, what="getDirection")
    _expect_writes(case, buf)
    data = case.pattern(100)
    with case.look() as look:
        look.write(buf, 10, data)
    case.expect_bytes(buf.readBytes(10, 100), equals=data, what="readBytes")


@check("H04")
def direction_has_three_bits(case: Case) -> None:
    """Stores 4 and more in the direction and reads three bits back."""
    for direction in (4, 5, 6, 7):
        case.expect(
            case.make(direction, 100).getDirection(), equals=direction, what=f"getDirection of {direction}"
        )
    buf = case.make(kIODirectionIn, 100)
    for direction, kept in ((4, 4), (7, 7), (8 | 1, 1), (0xF0 | 2, 2)):
        buf.setDirection(direction)
        case.expect(buf.getDirection(), equals=kept, what=f"getDirection after setDirection({direction:#x})")


@check("H05", outside=True)
def writes_into_an_out_buffer_move_nothing(case: Case) -> None:
    """Writes into wired Out-only buffers: 0 bytes, and guest RAM keeps what it had."""
    for capacity in (16, 5000):
        buf = case.need(case.iokit.withOptions(kIODirectionOut, capacity))
        before = case.pattern(capacity)
        with case.look() as look:
            look.write(buf, 0, before)
        case.expect(
            buf.writeBytes(0, case.pattern(16)), equals=0, what="bytes written into an Out-only buffer"
        )
        case.expect(buf.writeBytes(0, None, 16), equals=0, what="bytes zero-filled in an Out-only buffer")
        with case.look() as look:
            case.expect_bytes(
                look.read(buf, 0, capacity), equals=before, what="guest RAM behind an Out-only buffer"
            )


@check("H07", outside=True)
def reads_ignore_the_direction(case: Case) -> None:
    """Puts bytes into guest RAM and reads them through buffers of every direction, In-only among them."""
    made = [case.make(direction, 5000) for direction in (kIODirectionIn, kIODirectionOut, kIODirectionNone)]
    data = case.pattern(5000)
    with case.look() as look:
        for buf in made:
            look.write(buf, 0, data)
    for buf in made:
        case.expect_bytes(buf.readBytes(0, 5000), equals=data, what=f"readBytes of {buf!r}")


@check("H08", outside=True)
def transfers_say_how_many_bytes(case: Case) -> None:
    """Moves bytes at several offsets and compares count and contents; behind the length nothing moves."""
    buf = case.make(kIODirectionInOut, 5000)
    whole = bytearray(5000)
    for offset, size in ((0, 5000), (0, 1), (4999, 1), (PAGE - 3, 7), (100, 4000)):
        data = case.pattern(size)
        case.expect(buf.writeBytes(offset, data), equals=size, what=f"writeBytes({offset}, {size} bytes)")
        whole[offset : offset + size] = data
        case.expect_bytes(buf.readBytes(offset, size), equals=data, what=f"readBytes({offset}, {size})")
    for offset in (5001, 6000, 2**32, 2**63, 2**64 - 1):
        case.expect(buf.writeBytes(offset, b"xy"), equals=0, what=f"bytes written at {offset}")
        case.expect(buf.readBytes(offset, 2), equals=b"", what=f"bytes read at {offset}")
    with case.look() as look:
        case.expect_bytes(look.read(buf, 0, 5000), equals=bytes(whole), what="guest RAM after all writes")


@check("H09", outside=True)
def transfers_across_the_end_move_nothing(case: Case) -> None:
    """Moves bytes across the length, within and beyond the storage: count 0, guest RAM as before."""
    buf = case.make(kIODirectionInOut, 5000)
    before = case.pattern(buf.storage)
    with case.look() as look:
        look.write(buf, 0, before)
    for length in (5000, 1000):
        buf.setLength(length)
        for offset, size in ((length - 1, 2), (0, length + 1), (length - 100, 200), (length, 1), (1, length)):
            case.expect(
                buf.writeBytes(offset, case.pattern(size)),
                equals=0,
                what=f"written at {offset}, {size} bytes",
            )
            case.expect(buf.readBytes(offset, size), equals=b"", what=f"read at {offset}, {size} bytes")
    with case.look() as look:
        case.expect_bytes(look.read(buf), equals=before, what="guest RAM after refused writes")


@check("H10", outside=True)
def writing_null_fills_with_zero(case: Case) -> None:
    """Fills buffers with a pattern, writes NULL over a part, and reads guest RAM around it."""
    for capacity, offset, size in (
        (5000, 100, 4500),
        (5000, 0, 5000),
        (100, 99, 1),
        (9 * MIB, 4 * MIB - 50, 100),
    ):
        buf = case.make(kIODirectionInOut, capacity)
        start, end = max(0, offset - 16), min(capacity, offset + size + 16)
        before = case.pattern(end - start)
        with case.look() as look:
            look.write(buf, start, before)
        case.expect(
            buf.writeBytes(offset, None, size), equals=size, what=f"writeBytes({offset}, NULL, {size})"
        )
        expected = before[: offset - start] + bytes(size) + before[offset - start + size :]
        with case.look() as look:
            found = look.read(buf, start, end - start)
            case.expect_bytes(
                found, equals=expected, what=f"guest RAM after writeBytes({offset}, NULL, {size})"
            )


def _expect_writes(case: Case, buf: IOBufferMemoryDescriptor) -> None:
    data = case.pattern(200)
    case.expect(buf.writeBytes(50, data), equals=200, what=f"bytes written into {buf!r}")
    with case.look() as look:
        case.expect_bytes(look.read(buf, 50, 200), equals=data, what=f"guest RAM behind {buf!r}")
