# SPDX-License-Identifier: MIT
"""What a buffer inherits: Apple's IOMemoryDescriptor, over the module's ioctls.

What is returned here is what the guest *says*.  Nothing in this room is evidence; see `harness.oracle`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import BadInput
from harness.iokit.constants import kIODirectionNone, kIOMapAnywhere
from harness.iokit.description import Description, read_description
from harness.iokit.handle import TRANSFER_MAX, Handle
from harness.iokit.held import Held
from harness.iokit.mapping import IOMemoryMap
from harness.iokit.null import Null
from harness.iokit.returns import IOReturn
from harness.iokit.task import TaskLike, kernel_task

if TYPE_CHECKING:
    from harness.iokit.session import IOKit


class PhysicalSegment(NamedTuple):
    """What getPhysicalSegment returned.

    Attributes:
        address: physical address of the byte asked for; 0 where there is none (clause I02).
        length: bytes to the end of the contiguous run, clipped to the length (clauses I01, I03).
    """

    address: int
    length: int


class Purged(NamedTuple):
    """What setPurgeable returned.

    Attributes:
        code: an `IOReturn`; Mach codes come out unchanged (clauses E07, E08).
        oldState: ``kIOMemoryPurgeable*``; 0 where Apple leaves the argument alone.
    """

    code: IOReturn | int
    oldState: int


class PageCounts(NamedTuple):
    """What getPageCounts returned.

    Attributes:
        code: an `IOReturn`; not ready for plain wired buffers (clause I10).
        resident: pages, although Apple's text says bytes.
        dirty: pages.
    """

    code: IOReturn | int
    resident: int
    dirty: int


class IOGeneralMemoryDescriptor(Held):
    """A range of memory, described; the part of a buffer that is not about owning it (clause A18).

    Use it as a context manager, or call `release`; the pytest fixture releases whatever is left.
    Every method raises `harness.link.GuestOSError` when the guest refuses the call itself, and BadInput after
    `release`.
    """

    def __init__(self, session: IOKit, handle: Handle, first: Description | None = None) -> None:
        super().__init__(session, handle)
        # Where to look; constant for the life of a wired buffer (clause I09), so asked for once.
        self._first = first or self.describe()

    # -- Apple's methods: state -----------------------------------------------------------------------------

    def getLength(self) -> int:
        """Return the bytes of data the memory is said to hold (clause B03)."""
        return self._handle.get("GET_LENGTH")

    def getDirection(self) -> int:
        """Return the current direction, three bits (clauses H01, H04)."""
        return self._handle.get("GET_DIRECTION", "u32")

    def getFlags(self) -> int:
        """Return the flag word: direction, type and the options that are kept (clauses E19, K12)."""
        return self._handle.get("GET_FLAGS", "u32")

    def prepare(self, forDirection: int = kIODirectionNone) -> IOReturn | int:
        """Page in and wire; nested calls count (clauses H11, H12).

        Args:
            forDirection: of the transfer to come, None for the descriptor's own; ``kIODirectionPrepare*``
                may be added.

        Returns:
            kIOReturnSuccess, or kIOReturnNotWritable, kIOReturnCannotWire, kIOReturnNoResources,
            kIOReturnNoMemory.
        """
        reply = self._handle.call("PREPARE", "iobmd_wiring", direction=forDirection)
        return IOReturn.of(reply["code"])

    def complete(self, forDirection: int = kIODirectionNone) -> IOReturn | int:
        """Undo one `prepare` (clauses H11, H14); the direction counts for nothing (clause H13)."""
        reply = self._handle.call("COMPLETE", "iobmd_wiring", direction=forDirection)
        return IOReturn.of(reply["code"])

    def setPurgeable(self, newState: int) -> Purged:
        """Change the purgeable state and learn the old one, in one step (clauses E05 to E14)."""
        reply = self._handle.call("SET_PURGEABLE", "iobmd_purge", state=newState)
        return Purged(IOReturn.of(reply["code"]), reply["old_state"])

    def getPageCounts(self) -> PageCounts:
        """Count the pages that are resident and dirty (clauses E02, E03, I10)."""
        reply = self._handle.call("GET_PAGE_COUNTS", "iobmd_page_counts")
        return PageCounts(IOReturn.of(reply["code"]), reply["resident"], reply["dirty"])

    def performOperation(self, options: int, offset: int, length: int) -> IOReturn | int:
        """Flush or store cache lines, or mark encryption, ``kIOMemoryIncoherentIO*`` and kin.

        Returns:
            kIOReturnSuccess; kIOReturnUnsupported for an unknown operation; kIOReturnUnderrun for an offset
            beyond the length.
        """
        reply = self._handle.call(
            "PERFORM_OPERATION", "iobmd_operation", operation=options, offset=offset, length=length
        )
        return IOReturn.of(reply["code"])

    # -- Apple's methods: bytes -----------------------------------------------------------------------------

    def readBytes(self, offset: int, length: int) -> bytes:
        """Copy *length* bytes out from *offset*; empty where the request does not fit (clauses H08, H09)."""
        if length > TRANSFER_MAX and offset + length > self.getLength():
            return self._read(offset, length)
        return b"".join(self._read(offset + at, size) for at, size in pieces(length))

    def writeBytes(self, offset: int, data: bytes | None, length: int | None = None) -> int:
        """Copy *data* in at *offset* and return the bytes copied; 0 where the request does not fit.

        Args:
            offset: bytes from the start of the buffer.
            data: the bytes; None is NULL, which zero-fills (clause H10) and needs *length*.
            length: bytes asked for; defaults to ``len(data)``.
        """
        if length is None:
            if data is None:
                raise BadInput(
                    "writeBytes(offset, None) needs a length", hint="writeBytes(offset, None, 4096)"
                )
            length = len(data)
        if data is not None and length > len(data):
            raise BadInput(f"writeBytes was given {len(data)} bytes and told to copy {length}")
        if data is None or (length > TRANSFER_MAX and offset + length > self.getLength()):
            return self._handle.transfer("WRITE_BYTES", offset, length, data and data[:1])[0]
        written = 0
        for at, size in pieces(length):
            moved, _ = self._handle.transfer("WRITE_BYTES", offset + at, size, data[at : at + size])
            written += moved
            if moved != size:
                break
        return written

    # -- Apple's methods: pages -----------------------------------------------------------------------------

    def getPhysicalSegment(self, offset: int) -> PhysicalSegment:
        """Return physical address of the byte at *offset* and length of the run from it (I01 to I05)."""
        reply = self._handle.call("GET_PHYSICAL_SEGMENT", "iobmd_segment", offset=offset)
        return PhysicalSegment(reply["address"], reply["length"])

    def getPhysicalAddress(self) -> int:
        """Return the physical address of the first byte (clause I06)."""
        return self._handle.get("GET_PHYSICAL_ADDRESS")

    def map(self, options: int = 0) -> IOMemoryMap | Null:
        """Map the whole descriptor into the kernel (clauses J01, J02).

        Args:
            options: ``kIOMap*`` bits; kIOMapAnywhere is added.
        """
        return self.createMappingInTask(kernel_task, 0, options | kIOMapAnywhere)

    def createMappingInTask(
        self, intoTask: TaskLike, atAddress: int, options: int, offset: int = 0, length: int = 0
    ) -> IOMemoryMap | Null:
        """Map a part of the descriptor into a task (clauses J02 to J11).

        Args:
            intoTask: the kernel's, or a process: ``Task.CURRENT``, ``guest``, ``guest.peer``.
            atAddress: where to, unless the options have kIOMapAnywhere.
            options: ``kIOMap*`` bits with a cache mode.
            offset: bytes into the buffer.
            length: bytes; 0 is the whole current length, whatever the offset (clause J11).
        """
        return self._session.create_mapping(self, intoTask, atAddress, options, offset, length)

    # -- beside Apple's methods -----------------------------------------------------------------------------

    @property
    def address(self) -> int:
        """Kernel virtual address of the first byte, 0 if it has none: where an observer should start."""
        return self._first.kernel_address

    @property
    def storage(self) -> int:
        """Bytes of storage behind the buffer: how far an observer should look."""
        return self._first.storage

    def segments(self) -> list[PhysicalSegment]:
        """Walk getPhysicalSegment over the whole length (clause I04)."""
        found: list[PhysicalSegment] = []
        offset, length = 0, self.getLength()
        while offset < length:
            segment = self.getPhysicalSegment(offset)
            if segment.length <= 0:
                break
            found.append(segment)
            offset += segment.length
        return found

    def describe(self) -> Description:
        """Return the module's own account of this descriptor."""
        return read_description(self._handle)

    def _read(self, offset: int, length: int) -> bytes:
        moved, data = self._handle.transfer("READ_BYTES", offset, length, min(length, TRANSFER_MAX))
        return data[:moved]


def pieces(length: int) -> Iterator[tuple[int, int]]:
    """Yield (start, size) pieces of *length* that fit one request each; a request of 0 bytes is made, too."""
    if length == 0:
        yield 0, 0
    for at in range(0, length, TRANSFER_MAX):
        yield at, min(TRANSFER_MAX, length - at)
