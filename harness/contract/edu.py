# SPDX-License-Identifier: MIT
"""QEMU's teaching device as a witness: it reads the addresses a driver would give to a device.

The host drives it. Whatever it is told goes through the machine's DMA remapping, so that bytes arrive only
where the I/O address really leads.
"""

from harness.contract.case import PAGE, Case
from harness.iokit import IOBufferMemoryDescriptor
from harness.iokit.constants import kIODirectionInOut
from harness.oracle import Edu


def expect_device_reaches(case: Case, buf: IOBufferMemoryDescriptor, offset: int, length: int) -> None:
    """Have the device copy from the buffer's I/O addresses into another buffer; compare it from outside.

    Raises:
        Broken: other bytes arrived.
        OracleError: the machine has no such device, or it does not finish.
    """
    into = case.make(kIODirectionInOut, length, PAGE)
    data = case.pattern(length)
    case.expect(buf.writeBytes(offset, data), equals=length, what=f"bytes written into {buf!r}")
    source, target = buf.getPhysicalSegment(offset).address, into.getPhysicalAddress()
    Edu(case.guest.machine).copy(source, target, length)
    with case.look() as look:
        found = look.read(into, 0, length)
        case.expect_bytes(found, equals=data, what=f"what a device read at offset {offset} of {buf!r}")
