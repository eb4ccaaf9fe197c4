# SPDX-License-Identifier: MIT
"""Group I: what the descriptor says about physical memory, compared with the page walk."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from harness.contract.case import KIB, MIB, PAGE, Case
from harness.contract.engine import check
from harness.iokit import IOBufferMemoryDescriptor, PhysicalSegment
from harness.iokit.constants import (
    kIODirectionIn,
    kIODirectionInOut,
    kIODirectionOut,
    kIOMapInhibitCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
    kIOMemoryPhysicallyContiguous,
)
from harness.oracle import PhysRange

_SHAPES = (
    (0, 1, 1), (0, 5000, 1), (0, 100, 64 * KIB), (kIOMemoryPhysicallyContiguous, 64 * KIB, 1),
    (0, 9 * MIB + 123, 1), (kIOMapWriteCombineCache, 9 * MIB, 1), (kIOMapInhibitCache, 5000, 1),
    (kIOMapWriteThruCache, 64 * KIB, 1),
)  # fmt: skip


def _shapes(case: Case) -> list[IOBufferMemoryDescriptor]:
    """Make one buffer of each layout and type this machine can give."""
    asked = [
        case.iokit.withOptions(kIODirectionInOut | case.direct | option, size, align)
        for option, size, align in _SHAPES
    ]
    return [buf for buf in map(case.maybe, asked) if buf]


def _offsets(length: int) -> list[int]:
    inside = (0, 1, PAGE - 1, PAGE, length // 2, 4 * MIB - 1, 4 * MIB, 8 * MIB + 17, length - 1)
    return sorted({offset for offset in inside if 0 <= offset < length})


def _run_at(runs: Iterable[PhysRange], offset: int, length: int) -> PhysicalSegment:
    """Return the run from *offset* to the *length* of a buffer that lies in *runs*."""
    start = 0
    for run in runs:
        if offset < start + run.length:
            end = min(start + run.length, length)
            return PhysicalSegment(run.start + offset - start, end - offset)
        start += run.length
    return PhysicalSegment(0, 0)


@dataclass(frozen=True)
class _Claim:
    """What the module said of one offset while the buffer had one length."""

    buf: IOBufferMemoryDescriptor
    length: int
    offset: int
    segment: PhysicalSegment


def _claims(buf: IOBufferMemoryDescriptor) -> list[_Claim]:
    length = buf.getLength()
    return [_Claim(buf, length, offset, buf.getPhysicalSegment(offset)) for offset in _offsets(length)]


def _expect_claims(case: Case, claims: Iterable[_Claim]) -> None:
    """Compare all claims with the page walk in one look; wired pages do not move in between (I09)."""
    runs: dict[IOBufferMemoryDescriptor, tuple[PhysRange, ...]] = {}
    with case.look() as look:
        for claim in claims:
            if claim.buf not in runs:
                runs[claim.buf] = look.where(claim.buf)
            run = _run_at(runs[claim.buf], claim.offset, claim.length)
            what = f"getPhysicalSegment({claim.offset}) of {claim.buf!r} at length {claim.length}"
            case.expect(claim.segment.address, equals=run.address, what=what, show=hex)
            case.expect(claim.segment.length, equals=run.length, what=f"run length of {what}")


@check("I01", outside=True)
def segments_are_where_the_page_tables_say(case: Case) -> None:
    """Asks for the segment at many offsets and compares address and run length with the page walk."""
    _expect_claims(case, [claim for buf in _shapes(case) for claim in _claims(buf)])


@check("I02")
def no_segment_behind_the_end(case: Case) -> None:
    """Asks for segments at and behind the length: address 0, length 0."""
    for capacity in (1, 5000, 9 * MIB):
        buf = case.make(kIODirectionInOut, capacity)
        for length in (capacity, capacity // 2, 0):
            buf.setLength(length)
            for offset in (length, length + 1, length + PAGE, capacity + 1, 2**32 + length, 2**63, 2**64 - 1):
                segment = buf.getPhysicalSegment(offset)
                case.expect(
                    segment, equals=PhysicalSegment(0, 0), what=f"segment at {offset}, length {length}"
                )


@check("I03", outside=True)
def segments_end_at_the_length(case: Case) -> None:
    """Shrinks the length and compares the run length with the page walk clipped to it."""
    claims: list[_Claim] = []
    for buf in _shapes(case):
        capacity = buf.getCapacity()
        for length in sorted({1, capacity // 3 + 1, max(1, capacity - 1)}):
            buf.setLength(length)
            claims += _claims(buf)
    _expect_claims(case, claims)


@check("I04", outside=True)
def walking_the_segments_visits_every_byte_once(case: Case) -> None:
    """Walks the segments to the end and compares them one by one with the runs of the page walk."""
    walks = []
    for buf in _shapes(case):
        for length in (buf.getCapacity(), buf.getCapacity() // 2 + 1):
            buf.setLength(length)
            segments = buf.segments()
            total = sum(one.length for one in segments)
            case.expect(total, equals=length, what=f"bytes in the segments of {buf!r}")
            walks.append((buf, segments))
    with case.look() as look:
        for buf, segments in walks:
            offset = 0
            for segment in segments:
                there = look.at(buf.address + offset)
                case.expect(segment.address, equals=there, what=f"segment at {offset} of {buf!r}", show=hex)
                offset += segment.length


@check("I05", outside=True)
def adjacent_pages_are_one_segment(case: Case) -> None:
    """Walks the segments: no two meet, and there are exactly as many as the page walk finds runs."""
    walks = [(buf, buf.segments(), buf.getLength()) for buf in _shapes(case)]
    for _, segments, _ in walks:
        for one, other in pairwise(segments):
            end = one.address + one.length
            case.expect_that(
                end != other.address, expected="segments that do not touch", observed=f"two touch at {end:#x}"
            )
    with case.look() as look:
        for buf, segments, length in walks:
            runs = look.where(buf, 0, length)
            case.expect(len(segments), equals=len(runs), what=f"segments of {buf!r}")


@check("I06", outside=True)
def physical_address_is_the_first_byte(case: Case) -> None:
    """Compares getPhysicalAddress with the first segment and the page walk."""
    made = _shapes(case)
    claims = [(buf.getPhysicalAddress(), buf.getPhysicalSegment(0).address) for buf in made]
    with case.look() as look:
        for buf, (address, segment) in zip(made, claims, strict=True):
            case.expect(address, equals=look.at(buf.address), what=f"getPhysicalAddress of {buf!r}", show=hex)
            case.expect(address, equals=segment, what=f"getPhysicalAddress and segment of {buf!r}", show=hex)


@check("I08", outside=True)
def offsets_in_a_page_agree(case: Case) -> None:
    """Compares the low 12 bits of physical and virtual address at many offsets."""
    claims = [claim for buf in _shapes(case) for claim in _claims(buf)]
    with case.look() as look:
        for claim in claims:
            address, said = claim.buf.address + claim.offset, claim.segment.address
            case.expect(
                said % PAGE, equals=address % PAGE, what=f"low bits of the PA at {claim.offset}", show=hex
            )
            case.expect(
                said, equals=look.at(address), what=f"PA at {claim.offset} of {claim.buf!r}", show=hex
            )


@check("I09", outside=True)
def physical_addresses_never_change(case: Case) -> None:
    """Repeats the walk across setLength, setDirection, transfers and memory pressure."""
    made = _shapes(case)
    before = [buf.segments() for buf in made]
    with case.look() as look:
        where = [look.where(buf) for buf in made]
    for buf in made:
        capacity = buf.getCapacity()
        for length in (0, 1, capacity):
            buf.setLength(length)
        for direction in (kIODirectionOut, kIODirectionIn, kIODirectionInOut):
            buf.setDirection(direction)
        buf.writeBytes(0, b"x")
        buf.readBytes(0, 1)
    case.press()
    for buf, segments in zip(made, before, strict=True):
        case.expect(buf.segments(), equals=segments, what=f"segments of {buf!r}")
    with case.look() as look:
        for buf, ranges in zip(made, where, strict=True):
            case.expect(look.where(buf), equals=ranges, what=f"physical ranges of {buf!r}")
    case.note("across setLength, setDirection, transfers, reclaim and compaction")
