# SPDX-License-Identifier: MIT
"""IOBufferMemoryDescriptor, Apple's method names over the module's ioctls.

What is returned here is what the guest *says*.  Nothing in this room is evidence; see `harness.oracle`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from harness.errors import BadInput
from harness.images import StructLayout

if TYPE_CHECKING:
    from harness.iokit.session import IOKit

# One request carries at most this much data; the link's frame limit is 1 MiB with its headers.
_TRANSFER_MAX = 512 * 1024


class PhysicalSegment(NamedTuple):
    """What getPhysicalSegment returned.

    Attributes:
        address: physical address of the byte asked for; 0 where there is none (clause I02).
        length: bytes to the end of the contiguous run, clipped to the length (clauses I01, I03).
    """

    address: int
    length: int


@dataclass(frozen=True)
class Description:
    """What the module believes about a descriptor: a claim, to be compared with evidence.

    Attributes:
        kernel_address: kernel virtual address of the first byte.
        storage: bytes behind the buffer, whole pages.
        memory_type: ``WB``, ``WC``, ``UC_MINUS`` or ``WT``, as the module read its page tables.
        storage_kind: ``RUN`` for one physical run, ``CHUNKS`` for several under one mapping.
        chunks: number of separate allocations.
        alignment: bytes, what the placement decided on.
        refused_lengths: setLength() calls beyond the capacity, ignored and counted (clause B05).
    """

    kernel_address: int
    storage: int
    memory_type: str
    storage_kind: str
    chunks: int
    alignment: int
    refused_lengths: int


class IOBufferMemoryDescriptor:
    """One descriptor that owns its buffer; made by the factories of `harness.iokit.IOKit`.

    Use it as a context manager, or call `release`; the pytest fixture releases whatever is left.
    Every method raises `harness.link.GuestOSError` when the guest refuses the call itself, and BadInput after
    `release`.
    """

    def __init__(self, session: IOKit, fd: int, call: str) -> None:
        self._session = session
        self._fd: int | None = fd
        self._call = call
        # Where to look; constant for the life of a wired buffer (clause I09), so asked for once.
        self._first = self.describe()

    def __repr__(self) -> str:
        state = "released" if self._fd is None else f"fd {self._fd}"
        return f"<IOBufferMemoryDescriptor {self._call}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    # -- Apple's methods ------------------------------------------------------------------------------------

    def getCapacity(self) -> int:
        """Return the bytes the buffer can hold, as requested (clauses B01, B02)."""
        return self._get("GET_CAPACITY", "<Q")

    def getLength(self) -> int:
        """Return the bytes of data the buffer is said to hold (clause B03)."""
        return self._get("GET_LENGTH", "<Q")

    def setLength(self, length: int) -> None:
        """Set the length in bytes; beyond the capacity it is ignored and counted (clauses B04, B05)."""
        self._put("SET_LENGTH", "<Q", length)

    def getDirection(self) -> int:
        """Return the current direction, three bits (clauses H01, H04)."""
        return self._get("GET_DIRECTION", "<I")

    def setDirection(self, direction: int) -> None:
        """Change the direction of transfers in place (clause H02)."""
        self._put("SET_DIRECTION", "<I", direction)

    def appendBytes(self, data: bytes) -> bool:
        """Add *data* at the current length, truncated at the capacity (clauses G12 to G16)."""
        pieces = list(_pieces(len(data))) or [(0, 0)]
        answers = [self._transfer("APPEND_BYTES", 0, size, data[at : at + size]) for at, size in pieces]
        return all(answers)

    def getBytesNoCopy(self, start: int | None = None, withLength: int = 0) -> int:
        """Return a kernel virtual address, or 0 for NULL.

        Without arguments the start of the buffer (clause G17); with them the address of offset *start*,
        provided that *withLength* bytes from there lie within the length (clauses G18 to G20).
        """
        if start is None:
            return self._get("GET_BYTES_NO_COPY", "<Q")
        window = self._session.layouts.struct("iobmd_window")
        reply = self._ioctl("GET_BYTES_NO_COPY_AT", window.pack(start=start, length=withLength))
        return integers(window, reply)["address"]

    def readBytes(self, offset: int, length: int) -> bytes:
        """Copy *length* bytes out from *offset*; empty where the request does not fit (clauses H08, H09)."""
        if length > _TRANSFER_MAX and offset + length > self.getLength():
            return self._read(offset, length)
        return b"".join(self._read(offset + at, size) for at, size in _pieces(length))

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
        if data is None or (length > _TRANSFER_MAX and offset + length > self.getLength()):
            return self._transfer("WRITE_BYTES", offset, length, None if data is None else data[:1])
        written = 0
        for at, size in _pieces(length):
            moved = self._transfer("WRITE_BYTES", offset + at, size, data[at : at + size])
            written += moved
            if moved != size:
                break
        return written

    def getPhysicalSegment(self, offset: int) -> PhysicalSegment:
        """Return physical address of the byte at *offset* and length of the run from it (I01 to I05)."""
        segment = self._session.layouts.struct("iobmd_segment")
        reply = integers(segment, self._ioctl("GET_PHYSICAL_SEGMENT", segment.pack(offset=offset)))
        return PhysicalSegment(reply["address"], reply["length"])

    def getPhysicalAddress(self) -> int:
        """Return the physical address of the first byte (clause I06)."""
        return self._get("GET_PHYSICAL_ADDRESS", "<Q")

    def release(self) -> None:
        """Give descriptor and buffer back (clause A13); a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._session.forget(self, fd)

    # -- beside Apple's methods -----------------------------------------------------------------------------

    @property
    def address(self) -> int:
        """Kernel virtual address of the first byte: where an observer should start to look."""
        return self._first.kernel_address

    @property
    def storage(self) -> int:
        """Bytes of storage behind the buffer: how far an observer should look."""
        return self._first.storage

    @property
    def refusedLengths(self) -> int:
        """How many setLength() calls beyond the capacity were ignored (clause B05)."""
        return self.describe().refused_lengths

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
        layouts = self._session.layouts
        layout = layouts.struct("iobmd_description")
        number = integers(layout, self._ioctl("DESCRIBE", layout.pack()))
        types = {value: name for name, value in layouts.enum("iobmd_memory_type").items()}
        kinds = {value: name for name, value in layouts.enum("iobmd_storage").items()}
        return Description(
            kernel_address=number["kernel_address"],
            storage=number["storage"],
            memory_type=types[number["memory_type"]].removeprefix("IOBMD_TYPE_"),
            storage_kind=kinds[number["storage_kind"]].removeprefix("IOBMD_STORAGE_"),
            chunks=number["chunks"],
            alignment=number["alignment"],
            refused_lengths=number["refused_lengths"],
        )

    # -- ioctl plumbing -------------------------------------------------------------------------------------

    def _ioctl(self, name: str, arg: bytes) -> bytes:
        if self._fd is None:
            raise BadInput(
                f"{self!r} was released", tried=name.lower(), hint="keep it alive while it is used"
            )
        return self._session.ioctl(self._fd, name, arg).arg

    def _get(self, name: str, format_: str) -> int:
        reply = self._ioctl(name, bytes(struct.calcsize(format_)))
        return int(struct.unpack(format_, reply)[0])

    def _put(self, name: str, format_: str, value: int) -> None:
        try:
            packed = struct.pack(format_, value)
        except struct.error as error:
            raise BadInput(f"{name.lower()}({value}): {error}") from error
        self._ioctl(name, packed)

    def _transfer(self, name: str, offset: int, length: int, data: bytes | None) -> int:
        layout = self._session.layouts.struct("iobmd_transfer")
        arg = layout.pack(offset=offset, length=length)
        pointers: dict[int, bytes | int] = {} if data is None else {layout.fields["bytes"].offset: data}
        if self._fd is None:
            return self._ioctl(name, arg)[0]
        reply = self._session.ioctl(self._fd, name, arg, pointers)
        return integers(layout, reply.arg)["result"]

    def _read(self, offset: int, length: int) -> bytes:
        layout = self._session.layouts.struct("iobmd_transfer")
        where = layout.fields["bytes"].offset
        if self._fd is None:
            return self._ioctl("READ_BYTES", b"")
        arg = layout.pack(offset=offset, length=length)
        reply = self._session.ioctl(self._fd, "READ_BYTES", arg, {where: min(length, _TRANSFER_MAX)})
        moved = integers(layout, reply.arg)["result"]
        return reply.data[where][:moved]


def integers(layout: StructLayout, data: bytes) -> dict[str, int]:
    """Return the scalar fields of *data* laid out as *layout*; arrays are left out."""
    return {name: value for name, value in layout.unpack(data).items() if isinstance(value, int)}


def _pieces(length: int) -> Iterator[tuple[int, int]]:
    """Yield (start, size) pieces of *length* that fit one request each; a request of 0 bytes is made, too."""
    if length == 0:
        yield 0, 0
    for at in range(0, length, _TRANSFER_MAX):
        yield at, min(_TRANSFER_MAX, length - at)
