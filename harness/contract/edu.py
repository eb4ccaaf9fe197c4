# SPDX-License-Identifier: MIT
"""QEMU's teaching device as a witness: it reads and writes the addresses a driver would give to a device.

Registers as in QEMU's docs/specs/edu.txt.  Whatever it is told goes through the machine's DMA remapping, so
that bytes arrive only where the I/O address really leads.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness.contract.case import PAGE, Case
from harness.errors import HarnessError
from harness.iokit import IOBufferMemoryDescriptor
from harness.iokit.constants import kIODirectionInOut
from harness.link import GuestOSError, In, Nr

_ID = "123411e8"
_SOURCE, _TARGET, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
_BUFFER = 0x40000
_START, _TO_RAM = 1, 2
# PCI command register: answer to memory addresses, and master the bus.
_COMMAND_OFFSET, _MEMORY_AND_MASTER = 4, 6
# The device's timer fires 100 ms of the guest's time after the start.
_SECONDS = 20.0


class Edu:
    """The device, its registers mapped in the agent.

    Args:
        case: the check.
        registers: address of the first register in the agent.
    """

    def __init__(self, case: Case, registers: int) -> None:
        self._case = case
        self._registers = registers

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy *length* bytes, a page at most, between two I/O addresses.

        Raises:
            HarnessError: the device does not finish.
        """
        self._move(source, _BUFFER, length, _START)
        self._move(_BUFFER, target, length, _START | _TO_RAM)

    def _move(self, source: int, target: int, length: int, command: int) -> None:
        for register, value in ((_SOURCE, source), (_TARGET, target), (_COUNT, length), (_COMMAND, command)):
            self._case.guest.poke(self._registers + register, struct.pack("<Q", value))
        deadline = time.monotonic() + _SECONDS
        while self._busy():
            if time.monotonic() > deadline:
                raise HarnessError(f"edu has not moved {length} bytes in {_SECONDS:g} s")

    def _busy(self) -> bool:
        (command,) = struct.unpack("<Q", self._case.guest.peek(self._registers + _COMMAND, 8))
        return bool(command & _START)


@contextmanager
def edu(case: Case) -> Iterator[Edu]:
    """Map the device's registers while the block runs.

    Raises:
        HarnessError: the machine has none.
    """
    guest = case.guest
    folder = f"/sys/bus/pci/devices/{_slot(case)}"
    guest.write_file(f"{folder}/enable", b"1")
    config = guest.open(f"{folder}/config", os.O_RDWR)
    registers = guest.open(f"{folder}/resource0", os.O_RDWR | os.O_SYNC)
    try:
        word = In(struct.pack("<H", _MEMORY_AND_MASTER))
        guest.syscall(Nr.PWRITE64, config, word, 2, _COMMAND_OFFSET, what="enable bus mastering")
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        what = "map edu's registers"
        address = guest.syscall(Nr.MMAP, 0, PAGE, protection, mmap.MAP_SHARED, registers, 0, what=what).value
        try:
            yield Edu(case, address)
        finally:
            guest.syscall(Nr.MUNMAP, address, PAGE, what="munmap")
    finally:
        guest.close(registers)
        guest.close(config)


def expect_device_reaches(case: Case, buf: IOBufferMemoryDescriptor, offset: int, length: int) -> None:
    """Have the device copy from the buffer's I/O addresses into another buffer; compare it from outside.

    Raises:
        Broken: other bytes arrived.
    """
    into = case.make(kIODirectionInOut, length, PAGE)
    data = case.pattern(length)
    case.expect(buf.writeBytes(offset, data), equals=length, what=f"bytes written into {buf!r}")
    with edu(case) as device:
        device.copy(buf.getPhysicalSegment(offset).address, into.getPhysicalAddress(), length)
    with case.look() as look:
        found = look.read(into, 0, length)
        case.expect_bytes(found, equals=data, what=f"what a device read at offset {offset} of {buf!r}")


def _slot(case: Case) -> str:
    """Return the device's place, as sysfs writes it (``/proc/bus/pci/devices`` has it as one number)."""
    try:
        lines = case.guest.read_file("/proc/bus/pci/devices").decode().splitlines()
    except GuestOSError as error:
        raise HarnessError("the guest does not list its PCI devices", observed=error.summary) from error
    for line in lines:
        place, name = line.split()[:2]
        if name == _ID:
            number = int(place, 16)
            return f"0000:{number >> 8:02x}:{number >> 3 & 0x1F:02x}.{number & 7}"
    raise HarnessError("the machine has no edu device", hint="devices=('edu,dma_mask=0xffffffffffffffff',)")
