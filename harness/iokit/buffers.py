# SPDX-License-Identifier: MIT
"""Thousands of buffers at once: every method is a few requests to the guest, every answer an array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from harness.errors import BadInput
from harness.iokit.constants import kIODirectionNone
from harness.iokit.description import Description, descriptions
from harness.iokit.descriptor import IOBufferMemoryDescriptor
from harness.iokit.handle import Handle
from harness.iokit.held import Releasable
from harness.iokit.null import Null
from harness.iokit.numbers import Numbers, spread
from harness.link import GuestOSError

if TYPE_CHECKING:
    from harness.iokit.session import IOKit

_NO_FD: Final = -1
_U32, _U64 = np.dtype("<u4"), np.dtype("<u8")
SEGMENTS: Final = np.dtype([("address", "<u8"), ("length", "<u8")])
"""What `Buffers.getPhysicalSegment` returns an array of; the fields of `PhysicalSegment`."""
PURGED: Final = np.dtype([("code", "<u4"), ("oldState", "<u4")])
"""What `Buffers.setPurgeable` returns an array of; the fields of `Purged`."""
PAGE_COUNTS: Final = np.dtype([("code", "<u4"), ("resident", "<u8"), ("dirty", "<u8")])
"""What `Buffers.getPageCounts` returns an array of; the fields of `PageCounts`."""


class RowHandle(Handle):
    """The file of one row; the row's place in `Buffers` says whether it is still open."""

    def __init__(self, buffers: Buffers, row: int) -> None:
        super().__init__(buffers.session.process, _NO_FD, buffers.session.layouts, buffers.label(row))
        self._buffers = buffers
        self._row = row
        self._generation = buffers.generation

    @property
    def open(self) -> bool:
        """Whether neither the object nor all of them were released."""
        return self._buffers.holds(self._row)

    @property
    def fd(self) -> int:
        """Its descriptor; BadInput once it was released."""
        self._fd = self._buffers.fd(self._row) if self.open else None
        return super().fd

    def detach(self) -> int | None:
        """Its descriptor, which is the caller's to close now; None if it was released."""
        return self._buffers.let_go(self._row)


class Buffers(Releasable):
    """What a factory of `harness.iokit.Batch` made: n buffers, or NULLs among them.

    It has a length, an iterator and an index, which give `IOBufferMemoryDescriptor` objects (and `Null`);
    an object and its row are the same buffer, and releasing one releases the other.  Its methods are Apple's,
    for all of them at once: an argument is one value for all or an array, an answer is an array with a row
    for each buffer, zeros where the buffer is NULL.

    Every method raises `harness.link.GuestOSError` when the guest refuses one of the calls, and BadInput when
    a buffer has been released, for arrays of the wrong length, and for values with too many bits.

    Attributes:
        session: the `harness.iokit.IOKit` that owns them.
        generation: of the session's process when they were made.
        made: which of them are buffers; the others are NULL.
        errno: beside a NULL the errno that explains it, else 0.
        address: kernel virtual address of the first byte, 0 if it has none: where an observer should start.
        storage: bytes of storage behind the buffer: how far an observer should look.
    """

    def __init__(
        self, session: IOKit, records: NDArray[Any], told: NDArray[Any], label: Callable[[int], str]
    ) -> None:
        """Take over ``iobmd_create`` and ``iobmd_description`` records as factory calls left them."""
        self.session = session
        self.label = label
        self.generation = session.process.generation
        self._reasons = records["reason"]
        self._fds: NDArray[np.int32] = records["fd"]  # not a copy: see Custody.making
        self.made: NDArray[np.bool_] = self._fds >= 0
        self.errno: NDArray[np.int32] = records["error"].copy()
        self._first = np.where(self.made, told, np.zeros((), told.dtype))
        self.address: NDArray[np.uint64] = self._first["kernel_address"].copy()
        self.storage: NDArray[np.uint64] = self._first["storage"].copy()
        self._objects: dict[int, IOBufferMemoryDescriptor] = {}
        for array in (self.made, self.errno, self.address, self.storage):
            array.flags.writeable = False

    def __repr__(self) -> str:
        nulls = len(self) - int(self.made.sum())
        return f"<Buffers {len(self)} from {self.label(0)}, {nulls} NULL, {self.living.size} not released>"

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[IOBufferMemoryDescriptor | Null]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> IOBufferMemoryDescriptor | Null: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[IOBufferMemoryDescriptor | Null, ...]: ...
    def __getitem__(
        self, index: int | slice
    ) -> IOBufferMemoryDescriptor | Null | tuple[IOBufferMemoryDescriptor | Null, ...]:
        rows = range(len(self))[index]
        return self._object(rows) if isinstance(rows, int) else tuple(map(self._object, rows))

    # -- Apple's methods ------------------------------------------------------------------------------------

    def getCapacity(self) -> NDArray[np.uint64]:
        """Return the bytes each can hold, as requested (clauses B01, B02)."""
        return self._get("GET_CAPACITY", _U64)

    def getLength(self) -> NDArray[np.uint64]:
        """Return the bytes of data each is said to hold (clause B03)."""
        return self._get("GET_LENGTH", _U64)

    def setLength(self, length: Numbers) -> None:
        """Set the length in bytes; beyond the capacity it is ignored and counted (clauses B04, B05)."""
        self._ask("SET_LENGTH", spread("length", length, len(self), _U64).copy())

    def getDirection(self) -> NDArray[np.uint32]:
        """Return the current direction, three bits (clauses H01, H04)."""
        return self._get("GET_DIRECTION", _U32)

    def setDirection(self, direction: Numbers) -> None:
        """Change the direction of transfers in place (clause H02)."""
        self._ask("SET_DIRECTION", spread("direction", direction, len(self), _U32).copy())

    def getFlags(self) -> NDArray[np.uint32]:
        """Return the flag word: direction, type and the options that are kept (clauses E19, K12)."""
        return self._get("GET_FLAGS", _U32)

    def getPhysicalAddress(self) -> NDArray[np.uint64]:
        """Return the physical address of the first byte (clause I06)."""
        return self._get("GET_PHYSICAL_ADDRESS", _U64)

    def getPhysicalSegment(self, offset: Numbers = 0) -> NDArray[Any]:
        """Return ``address`` of the byte at *offset* and ``length`` of the run from it (I01 to I05)."""
        return self._pick(SEGMENTS, self._call("GET_PHYSICAL_SEGMENT", "iobmd_segment", offset=offset))

    def getBytesNoCopy(self, start: Numbers | None = None, withLength: Numbers = 0) -> NDArray[np.uint64]:
        """Return an address in the task that owns the buffer, or 0 for NULL (A11, A12, G17 to G20)."""
        if start is None:
            return self._get("GET_BYTES_NO_COPY", _U64)
        answer = self._call("GET_BYTES_NO_COPY_AT", "iobmd_window", start=start, length=withLength)
        return answer["address"].copy()

    def prepare(self, forDirection: Numbers = kIODirectionNone) -> NDArray[np.uint32]:
        """Page in and wire; return each one's `IOReturn` as a number (clauses H11, H12)."""
        return self._call("PREPARE", "iobmd_wiring", direction=forDirection)["code"].copy()

    def complete(self, forDirection: Numbers = kIODirectionNone) -> NDArray[np.uint32]:
        """Undo one `prepare`; return each one's `IOReturn` as a number (clauses H11, H13, H14)."""
        return self._call("COMPLETE", "iobmd_wiring", direction=forDirection)["code"].copy()

    def setPurgeable(self, newState: Numbers) -> NDArray[Any]:
        """Change the purgeable state; return ``code`` and ``oldState`` of each (clauses E05 to E14)."""
        answer = self._call("SET_PURGEABLE", "iobmd_purge", state=newState)
        return self._pick(PURGED, answer, oldState="old_state")

    def getPageCounts(self) -> NDArray[Any]:
        """Count the pages that are ``resident`` and ``dirty``, with a ``code`` (clauses E02, E03, I10)."""
        return self._pick(PAGE_COUNTS, self._call("GET_PAGE_COUNTS", "iobmd_page_counts"))

    def release(self) -> None:
        """Give all of them back (clause A13); a second call does nothing."""
        if self._stale:
            self._fds[:] = _NO_FD  # a restored guest has none of them
        self.session.close_rows(self._fds, self.living)
        self.session.forget(self)

    # -- beside Apple's methods -----------------------------------------------------------------------------

    def describe(self) -> NDArray[Any]:
        """Return the module's own account of each, with the fields of `Description`."""
        layouts = self.session.layouts
        return descriptions(layouts, self._ask("DESCRIBE", self._zeros("iobmd_description")), self.made)

    def reason(self, row: int) -> str:
        """One sentence for a person beside a NULL, else ``""``."""
        return bytes(self._reasons[row]).decode(errors="replace")

    @property
    def living(self) -> NDArray[np.intp]:
        """The rows that are buffers and were not released."""
        rows: NDArray[np.intp] = np.flatnonzero(self._fds >= 0)
        return rows

    def holds(self, row: int) -> bool:
        """Whether a row is a buffer that was not released."""
        return bool(self._fds[row] >= 0)

    def fd(self, row: int) -> int:
        """A row's descriptor in the session's process; -1 for NULL and after its release."""
        return int(self._fds[row])

    def let_go(self, row: int) -> int | None:
        """Stop owning a row; its descriptor, None if it has none."""
        fd = self.fd(row)
        self._fds[row] = _NO_FD
        if not self.living.size:
            self.session.forget(self)
        return None if fd < 0 else fd

    # -- plumbing -------------------------------------------------------------------------------------------

    @property
    def _stale(self) -> bool:
        return self.session.process.generation != self.generation

    def _object(self, row: int) -> IOBufferMemoryDescriptor | Null:
        if not self.made[row]:
            return Null(self.label(row), int(self.errno[row]), self.reason(row))
        if row not in self._objects:
            only = slice(row, row + 1)
            (first,) = descriptions(self.session.layouts, self._first[only], self.made[only])
            handle = RowHandle(self, row)
            self._objects[row] = IOBufferMemoryDescriptor(self.session, handle, Description.of(first))
        return self._objects[row]

    def _zeros(self, struct: str) -> NDArray[Any]:
        return np.zeros(len(self), self.session.layouts.struct(struct).dtype)

    def _get(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        return self._ask(name, np.zeros(len(self), dtype))

    def _call(self, name: str, struct: str, **fields: Numbers) -> NDArray[Any]:
        records = self._zeros(struct)
        for field, value in fields.items():
            records[field] = spread(field, value, len(self), records.dtype[field])
        return self._ask(name, records)

    def _ask(self, name: str, records: NDArray[Any]) -> NDArray[Any]:
        """Issue an ioctl on every buffer; *records* afterwards, zeros where the row is NULL."""
        if self._stale:
            raise BadInput(f"{self!r}: the guest was restored since", hint="make new ones after a restore")
        gone = np.flatnonzero(self.made & (self._fds < 0))
        if gone.size:
            row = int(gone[0])
            raise BadInput(
                f"row {row} of {len(self)}, {self.label(row)}, was released",
                hint="keep the objects alive while all of them are used",
            )
        rows = self.living
        answers = np.zeros_like(records)
        if not rows.size:
            return answers
        batch = self.session.process.batch(len(rows))
        column = batch.exchange(records[rows])
        command = self.session.layouts.enum("iobmd_ioctl")[f"IOBMD_IOC_{name}"]
        batch.ioctl(self._fds[rows], command, column, what=name)
        batch.run()
        failed = batch.failed()
        if failed.size:
            row = int(rows[failed[0]])
            raise GuestOSError(
                int(-batch.values[failed[0], 0]), f"{name} on row {row} of {len(self)}, {self.label(row)}"
            )
        answers[rows] = column.records
        return answers

    def _pick(self, dtype: DTypeLike, answer: NDArray[Any], **renamed: str) -> NDArray[Any]:
        picked = np.zeros(len(self), dtype)
        for name in picked.dtype.names or ():
            picked[name] = answer[renamed.get(name, name)]
        return picked
