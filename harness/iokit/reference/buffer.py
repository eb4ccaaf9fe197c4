# SPDX-License-Identifier: MIT
"""What a descriptor has to answer, and hold, after any sequence of calls: the written contract in Python."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from harness.iokit import constants as k
from harness.iokit.reference.placement import PAGE, Placement, Role
from harness.iokit.returns import IOReturn

_WORD = 1 << 64
_OK = IOReturn.kIOReturnSuccess
_STATES = (
    k.kIOMemoryPurgeableKeepCurrent,
    k.kIOMemoryPurgeableNonVolatile,
    k.kIOMemoryPurgeableVolatile,
    k.kIOMemoryPurgeableEmpty,
)


@dataclass(frozen=True)
class ReferenceMap:
    """A mapping as it has to be.

    Attributes:
        buffer: what is mapped.
        role: where.
        offset: bytes into the buffer.
        length: bytes (clauses B11, J05).
        own: it is the buffer's own address (clause J02).
        writable: user writes do not fault (clause J04).
    """

    buffer: ReferenceBuffer
    role: Role
    offset: int
    length: int
    own: bool
    writable: bool


class ReferenceBuffer:
    """The state of one descriptor, and the answers that follow from it.

    Where the contract leaves the moment open (a volatile buffer may be emptied at any time) a method returns
    all answers that are right, and is told afterwards which one was given.

    Args:
        placement: what the factory promised.
        contents: what withBytes or withCopy put in; zeros for the others (clauses G01, G02).

    Attributes:
        placement: as given.
        length: bytes.
        direction: three bits.
        prepared: prepare() calls without their complete(); a wired buffer is born with one (clause E04).
        state: ``kIOMemoryPurgeable*``.
        contents: every byte of the capacity.
        writable: the CPU may write it through the descriptor: what goes Out only may not (clauses H05, H06).
        uncertain: it was emptied while wired; its bytes are gone, or will be when it is completed.
    """

    def __init__(self, placement: Placement, contents: bytes = b"") -> None:
        self.placement = placement
        self.length = placement.capacity  # B03
        self.direction = placement.direction
        self.prepared = 0
        self.state = k.kIOMemoryPurgeableNonVolatile
        self.contents = bytearray(placement.capacity)
        self.contents[: len(contents)] = contents  # G03, G08
        self.writable = not _only_read(self.direction)
        self.uncertain = False
        if not placement.pageable:
            self.prepare(k.kIODirectionNone)

    @property
    def intact(self) -> bool:
        """Whether nothing but the caller changes the contents."""
        return self.state == k.kIOMemoryPurgeableNonVolatile and not self.uncertain

    def settle(self, contents: bytes) -> None:
        """Take over what a read of the whole capacity found, where either answer was right."""
        if self.uncertain and self.state == k.kIOMemoryPurgeableNonVolatile:
            self.contents[:] = contents
            self.uncertain = False

    def setLength(self, length: int) -> None:
        """B04, B05, B06; contents stay (clauses B07, B09)."""
        if length <= self.placement.capacity:
            self.length = length

    def setDirection(self, direction: int) -> None:
        """H02, H04; in place, so that a buffer that went Out can be written from now on (clause H06)."""
        self.direction = direction & k.kIOMemoryDirectionMask
        self.writable = not _only_read(self.direction)

    # -- contents -------------------------------------------------------------------------------------------

    def appendBytes(self, data: bytes) -> bool:
        """G12 to G16: what fits is copied whatever the direction, and the answer is true."""
        fits = data[: self.placement.capacity - self.length]
        if self.placement.role is Role.KERNEL or self.writable:
            self.contents[self.length : self.length + len(fits)] = fits
        self.length += len(fits)
        return True

    def readBytes(self, offset: int, length: int) -> frozenset[bytes]:
        """H07 to H09: all of it or nothing; a volatile buffer may have become zeros."""
        if not self._fits(offset, length):
            return frozenset((b"",))
        held = bytes(self.contents[offset : offset + length])
        if self.intact:
            return frozenset((held,))
        return frozenset((held, bytes(length)))

    def writeBytes(self, offset: int, data: bytes | None, length: int) -> int:
        """H05, H08 to H10: the bytes copied."""
        if not self._fits(offset, length) or not self.writable:
            return 0
        self.contents[offset : offset + length] = bytes(length) if data is None else data
        return length

    def getBytesNoCopy(self, base: int, start: int, length: int) -> int:
        """G18 to G20: the address of an offset, from the address of the beginning."""
        if not base or start + length >= _WORD or start >= self.length or start + length > self.length:
            return 0
        return base + start

    # -- wiring ---------------------------------------------------------------------------------------------

    def prepare(self, direction: int) -> IOReturn:
        """H11, H12; the first call fixes the access, a later one may not widen it (clauses H03, H06)."""
        reads = _only_read(direction if direction & k.kIODirectionInOut else self.direction)
        if self.prepared == 0:
            self.writable = not reads
        elif not reads and not self.writable:
            return IOReturn.kIOReturnNotWritable
        self.prepared += 1
        return _OK

    def complete(self) -> IOReturn:
        """H13, H14: one level less, and success in any case."""
        self.prepared = max(self.prepared - 1, 0)
        if self.prepared == 0:
            self.writable = not _only_read(self.direction)
        return _OK

    # -- purgeability ---------------------------------------------------------------------------------------

    def purge_answers(self, newState: int) -> frozenset[tuple[int, int]]:
        """E07 to E14: every code and old state that may come back; an old state of -1 is not looked at."""
        if newState & k.kIOMemoryPurgeableStateMask not in _STATES:
            return frozenset({(IOReturn.kIOReturnBadArgument, -1)})
        if not self.placement.purgeable:
            if self.placement.pageable:
                return frozenset({(IOReturn.KERN_INVALID_ARGUMENT, -1)})
            # E07: which of the two depends on xnu's heap
            return frozenset({(IOReturn.KERN_INVALID_ARGUMENT, -1), (IOReturn.KERN_INVALID_ADDRESS, -1)})
        if self.state == k.kIOMemoryPurgeableVolatile:
            return frozenset({(_OK, k.kIOMemoryPurgeableVolatile), (_OK, k.kIOMemoryPurgeableEmpty)})
        return frozenset({(_OK, self.state)})

    def purge(self, newState: int, old: int) -> None:
        """Take over what setPurgeable did, given the old state it reported."""
        if not self.placement.purgeable or newState & k.kIOMemoryPurgeableStateMask not in _STATES:
            return
        wanted = newState & k.kIOMemoryPurgeableStateMask
        if old == k.kIOMemoryPurgeableEmpty and self.state != old:
            self._empty()  # E10: it happened meanwhile
        elif wanted == k.kIOMemoryPurgeableEmpty and self.prepared:
            self.uncertain = any(self.contents)  # wired pages do not go
        elif wanted == k.kIOMemoryPurgeableEmpty:
            self._empty()  # E11
        if wanted == k.kIOMemoryPurgeableKeepCurrent:
            wanted = old  # E13
        elif wanted == k.kIOMemoryPurgeableVolatile and old == k.kIOMemoryPurgeableEmpty:
            wanted = old  # E12
        self.state = wanted

    def _empty(self) -> None:
        self.contents[:] = bytes(len(self.contents))
        self.uncertain = False

    # -- pages and mappings ---------------------------------------------------------------------------------

    def judge_segments(self, segments: list[tuple[int, int]], fixed: list[tuple[int, int]] | None) -> str:
        """Compare a walk of getPhysicalSegment with I01 to I08 and the placement.

        Args:
            segments: address and length, from offset 0 on.
            fixed: an earlier walk over at least as many bytes of a buffer that stays wired (clause I09).

        Returns:
            What is wrong, or ``""``.
        """
        placement = self.placement
        pages = _pages(segments)
        total = sum(length for _, length in segments)
        touching = any(first + size == then for (first, size), (then, _) in pairwise(segments))
        outside = [page for page in pages if placement.mask is not None and page & ~placement.mask]
        rules = (
            (total != self.length, f"I04: segments of {total} bytes, length {self.length}"),
            (touching, "I05: adjacent segments"),
            (placement.contiguous and len(segments) > 1, f"D01: {len(segments)} segments"),
            (bool(pages and pages[0] & placement.page_bits), "C08: the first page is not aligned"),
            (bool(outside), f"D09: pages outside of the mask, {[hex(page) for page in outside[:3]]}"),
            (fixed is not None and pages != _pages(fixed)[: len(pages)], "I09: the pages moved"),
        )
        return next((text for broken, text in rules if broken), "")

    def map_answer(self, role: Role, options: int, offset: int, length: int) -> ReferenceMap | None:
        """J02, J05, J06, J11, B06: the mapping createMappingInTask has to make anywhere; None is NULL."""
        count = length or self.length
        if role is Role.NULL or count == 0 or offset >= self.length or offset + count > self.length:
            return None
        if options & k.kIOMapPrefault and not self.prepared:
            return None
        at_home = role is self.placement.role and self.placement.mapped and offset == 0
        own = at_home and not options & (k.kIOMapUnique | k.kIOMapGuardedMask)
        return ReferenceMap(self, role, offset, count, own, own or not options & k.kIOMapReadOnly)

    def _fits(self, offset: int, length: int) -> bool:
        return offset <= self.length and offset + length <= self.length


def _only_read(direction: int) -> bool:
    return direction & k.kIODirectionInOut == k.kIODirectionOut


def _pages(segments: list[tuple[int, int]]) -> list[int]:
    return [page for address, length in segments for page in range(address & -PAGE, address + length, PAGE)]
