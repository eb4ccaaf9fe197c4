# SPDX-License-Identifier: MIT
"""A device that the host drives: QEMU's teaching device as a witness of where bus addresses lead.

Its registers are written through QEMU's test port. No driver is needed, and none is asked: the device is told
an address, and moves bytes to it or from it as any device would, through the machine's DMA remapping. What
then is in RAM is the proof; an address that only looks right has nothing there.

Registers as in QEMU's docs/specs/edu.txt; configuration space as in the PCI specification.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

from harness.errors import BadInput
from harness.oracle.errors import OracleError

MOST: Final = 2048
"""Bytes of one move: half of the device's own memory. QEMU 7.2 dies of all 4096 (hw/misc/edu.c, within)."""

_ID, _BRIDGE = 0x11E8_1234, 1
_CONFIG_ADDRESS, _CONFIG_DATA, _CONFIG_ENABLE = 0xCF8, 0xCFC, 1 << 31
_COMMAND, _HEADER, _BAR0, _BUSES = 0x04, 0x0C, 0x10, 0x18
_MEMORY_AND_MASTER = 6
_SOURCE, _TARGET, _COUNT, _START_REGISTER = 0x80, 0x88, 0x90, 0x98
_INSIDE: Final = 0x40000
_START, _TO_RAM = 1, 2
#: The device's timer fires 100 ms of the guest's time after the start.
_SECONDS: Final = 20.0
_BREATH_SECONDS: Final = 0.002


class Port(Protocol):
    """What is needed of QEMU's test port; `harness.vm.QTest` has it."""

    def inl(self, port: int) -> int:
        """Read an I/O port."""

    def outl(self, port: int, value: int) -> None:
        """Write an I/O port."""

    def readq(self, address: int) -> int:
        """Read a register."""

    def writeq(self, address: int, value: int) -> None:
        """Write a register."""


class Driven(Protocol):
    """What is needed of a machine; `harness.vm.Machine` has it."""

    @property
    def qtest(self) -> Port:
        """Its test port."""

    def stopped(self) -> AbstractContextManager[object]:
        """Keep the guest stopped."""


class Edu:
    """The machine's teaching device, told what to do by the host.

    The guest may have a driver for it; one of the two moves bytes at a time.
    """

    def __init__(self, machine: Driven) -> None:
        """Find the device and let it work.

        Args:
            machine: it runs.

        Raises:
            OracleError: there is none, or the firmware has given it no registers (after a restore: the device
                has no state that could be restored).
        """
        self._machine = machine
        with machine.stopped():  # the guest's own way to configuration space is the same two ports
            place = next(self._found(0), None)
            if place is None:
                raise OracleError(
                    "the machine has no edu device", hint="devices=('edu,dma_mask=0xffffffffffffffff',)"
                )
            self._registers = self._config(place, _BAR0) & ~0xF
            if not self._registers:
                raise OracleError(
                    "the edu device has no registers", hint="boot the machine: a restore forgets the device"
                )
            self._configure(place, _COMMAND, self._config(place, _COMMAND) & 0xFFFF | _MEMORY_AND_MASTER)
        bus, devfn = place >> 8, place & 0xFF
        self.name = f"0000:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}"
        """As the guest's kernel calls it."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Have it read *length* bytes at one bus address and write them to another, `MOST` at a time.

        Raises:
            OracleError: it does not finish. A move that the remapping stops does finish; nothing arrives.
        """
        for at in range(0, length, MOST):
            piece = min(MOST, length - at)
            self.take(source + at, piece)
            self.give(target + at, piece)

    def take(self, source: int, length: int) -> None:
        """Have it read *length* bytes at a bus address into its own memory.

        Raises:
            BadInput: more than `MOST` bytes.
            OracleError: as for `copy`.
        """
        self._move(source, _INSIDE, length, _START)

    def give(self, target: int, length: int) -> None:
        """Have it write the first *length* bytes of its own memory to a bus address; errors as `take`."""
        self._move(_INSIDE, target, length, _START | _TO_RAM)

    def _move(self, source: int, target: int, length: int, command: int) -> None:
        if not 0 < length <= MOST:
            raise BadInput(f"edu cannot move {length} bytes at once", observed=f"{MOST} at most")
        self._wait(length)
        port, at = self._machine.qtest, self._registers
        with self._machine.stopped():
            for register, value in (
                (_SOURCE, source), (_TARGET, target), (_COUNT, length), (_START_REGISTER, command)
            ):  # fmt: skip
                port.writeq(at + register, value)
        self._wait(length)

    def _wait(self, length: int) -> None:
        deadline = time.monotonic() + _SECONDS
        while self._machine.qtest.readq(self._registers + _START_REGISTER) & _START:
            if time.monotonic() > deadline:
                raise OracleError(
                    f"edu has not moved {length} bytes in {_SECONDS:g} s",
                    hint="its timer runs on the guest's clock: does the guest run?",
                )
            time.sleep(_BREATH_SECONDS)

    def _found(self, bus: int) -> Iterator[int]:
        """Yield where the device is, on a bus and behind its bridges."""
        for devfn in range(0, 256, 8):
            place = bus << 8 | devfn
            identity = self._config(place, 0)
            if identity == _ID:
                yield place
            elif identity != 0xFFFF_FFFF and self._config(place, _HEADER) >> 16 & 0x7F == _BRIDGE:
                behind = self._config(place, _BUSES) >> 8 & 0xFF
                if behind > bus:
                    yield from self._found(behind)

    def _config(self, place: int, register: int) -> int:
        self._machine.qtest.outl(_CONFIG_ADDRESS, _CONFIG_ENABLE | place << 8 | register)
        return self._machine.qtest.inl(_CONFIG_DATA)

    def _configure(self, place: int, register: int, value: int) -> None:
        self._machine.qtest.outl(_CONFIG_ADDRESS, _CONFIG_ENABLE | place << 8 | register)
        self._machine.qtest.outl(_CONFIG_DATA, value)
