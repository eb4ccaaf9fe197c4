# SPDX-License-Identifier: MIT
"""IOBufferMemoryDescriptor, Apple's method names over the module's ioctls."""

from __future__ import annotations

from harness.iokit.driverkit import DriverKitDescriptor
from harness.iokit.handle import TRANSFER_MAX


class IOBufferMemoryDescriptor(DriverKitDescriptor):
    """One descriptor that owns its buffer; made by the factories of `harness.iokit.IOKit`."""

    def getCapacity(self) -> int:
        """Return the bytes the buffer can hold, as requested (clauses B01, B02)."""
        return self._handle.get("GET_CAPACITY")

    def setLength(self, length: int) -> None:
        """Set the length in bytes; beyond the capacity it is ignored and counted (clauses B04, B05)."""
        self._handle.put("SET_LENGTH", length)

    def setDirection(self, direction: int) -> None:
        """Change the direction of transfers in place (clause H02)."""
        self._handle.put("SET_DIRECTION", direction, "u32")

    def appendBytes(self, data: bytes) -> bool:
        """Add *data* at the current length, truncated at the capacity (clauses G12 to G16).

        More than a request holds is placed in memory of the process first: Apple's call is one call.
        """
        if len(data) <= TRANSFER_MAX:
            return bool(self._handle.transfer("APPEND_BYTES", 0, len(data), data)[0])
        with self._handle.process.memory(data) as source:
            return bool(self._handle.transfer_from("APPEND_BYTES", len(data), source.address))

    def getBytesNoCopy(self, start: int | None = None, withLength: int = 0) -> int:
        """Return an address in the task that owns the buffer, or 0 for NULL.

        Without arguments the start of the buffer (clauses A11, A12, G17); with them the address of offset
        *start*, provided that *withLength* bytes from there lie within the length (clauses G18 to G20).
        """
        if start is None:
            return self._handle.get("GET_BYTES_NO_COPY")
        reply = self._handle.call("GET_BYTES_NO_COPY_AT", "iobmd_window", start=start, length=withLength)
        return int(reply["address"])

    @property
    def refusedLengths(self) -> int:
        """How many setLength() calls beyond the capacity were ignored (clause B05)."""
        return self.describe().refused_lengths
