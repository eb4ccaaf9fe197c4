# SPDX-License-Identifier: MIT
"""DriverKit's face of the same object: codes instead of NULL, out-arguments instead of results."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from harness.iokit.handle import Handle, null_from
from harness.iokit.mapping import IOMemoryMap
from harness.iokit.memory import IOGeneralMemoryDescriptor
from harness.iokit.null import Null
from harness.iokit.returns import IOReturn
from harness.iokit.task import Task

if TYPE_CHECKING:
    from harness.iokit.descriptor import IOBufferMemoryDescriptor


class IOAddressSegment(NamedTuple):
    """DriverKit's ``IOAddressSegment``.

    Attributes:
        address: of the first byte, in the calling process.
        length: bytes.
    """

    address: int
    length: int


class Created(NamedTuple):
    """What Create returned.

    Attributes:
        code: an `IOReturn` (clauses K01 to K03).
        memory: the ``*memory`` it stored; `Null` beside a failure.
    """

    code: IOReturn | int
    memory: IOBufferMemoryDescriptor | Null


class MappingCreated(NamedTuple):
    """What CreateMapping returned.

    Attributes:
        code: an `IOReturn` (clause K13).
        map: the mapping; `Null` beside a failure.
    """

    code: IOReturn | int
    map: IOMemoryMap | Null


class LengthGot(NamedTuple):
    """What GetLength returned.

    Attributes:
        code: an `IOReturn`.
        length: bytes.
    """

    code: IOReturn | int
    length: int


class RangeGot(NamedTuple):
    """What GetAddressRange returned.

    Attributes:
        code: an `IOReturn` (clause K11).
        range: where the buffer lies in the calling process.
    """

    code: IOReturn | int
    range: IOAddressSegment


class DriverKitDescriptor(IOGeneralMemoryDescriptor):
    """The methods DriverKit gives a descriptor, beside the kernel's."""

    def SetLength(self, length: int) -> IOReturn | int:
        """Set the length in bytes (clause K09).

        Returns:
            kIOReturnSuccess; kIOReturnBadArgument beyond the capacity, and the length stays (clause K10).
        """
        reply = self._handle.call("DRIVERKIT_SET_LENGTH", "iobmd_driverkit_length", length=length)
        return IOReturn.of(reply["code"])

    def GetLength(self) -> LengthGot:
        """Return the length in bytes (clause K08)."""
        reply = self._handle.call("DRIVERKIT_GET_LENGTH", "iobmd_driverkit_length")
        return LengthGot(IOReturn.of(reply["code"]), reply["length"])

    def GetAddressRange(self) -> RangeGot:
        """Return where the buffer lies in the calling process, and its length (clause K11)."""
        reply = self._handle.call("DRIVERKIT_GET_ADDRESS_RANGE", "iobmd_driverkit_range")
        return RangeGot(IOReturn.of(reply["code"]), IOAddressSegment(reply["address"], reply["length"]))

    def CreateMapping(
        self, options: int = 0, address: int = 0, offset: int = 0, length: int = 0, alignment: int = 0
    ) -> MappingCreated:
        """Map the buffer into the calling process (clauses K13 to K15).

        Args:
            options: DriverKit's ``kIOMemoryMap*`` bits, which are not the kernel's ``kIOMap*``.
            address: where to, with kIOMemoryMapFixedAddress.
            offset: bytes into the buffer.
            length: bytes; 0 is all.
            alignment: ignored.
        """
        reply = self._handle.call(
            "DRIVERKIT_CREATE_MAPPING", "iobmd_driverkit_mapping",
            options=options, address=address, offset=offset, length=length, alignment=alignment,
        )  # fmt: skip
        code = IOReturn.of(reply["code"])
        label = f"CreateMapping({options:#x}, {address:#x}, {offset}, {length}, {alignment})"
        if reply["fd"] < 0:
            return MappingCreated(code, null_from(label, reply))
        handle = Handle(self._handle.process, reply["fd"], self._handle.layouts, label)
        return MappingCreated(code, self._session.adopt_mapping(self, handle, Task.CURRENT))
