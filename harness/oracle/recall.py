# SPDX-License-Identifier: MIT
"""What is remembered from one capture of a machine to the next.

Everything remembered is compared with the machine's bytes at every capture, or proved by counting. Nothing
is believed because it was true before: between two captures the guest ran, and may have been put back to
another state or into another process with other RAM. No memory of the guest is kept alive by it.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from harness.oracle.cpu import CpuState
from harness.oracle.errors import TypesChanged
from harness.oracle.migration import StreamReader
from harness.oracle.paging import PhysicalMemory
from harness.oracle.registers import same_types, updated
from harness.oracle.scan import Scanner
from harness.vm import Capture

T = TypeVar("T")

Stretches = Sequence[tuple[int, int]]
"""Guest physical start and length in bytes."""


class Ram(PhysicalMemory, Protocol):
    """Guest RAM that can be read and written by guest physical address."""

    def read(self, gpa: int, n: int, /) -> bytes:
        """Return *n* bytes from *gpa*."""

    def write(self, gpa: int, data: bytes, /) -> None:
        """Store *data* at *gpa*."""

    def populated(self) -> Stretches:
        """Return what was ever touched, ascending."""

    @property
    def allocated(self) -> int:
        """Bytes of what was ever touched."""


class Touched:
    """Which RAM was ever touched. Asking for it takes a millisecond for every 100 MiB, counting it none."""

    def __init__(self) -> None:
        self.asked = 0
        self._ram: weakref.ref[Ram] | None = None
        self._stretches: Stretches = ()

    def search(self, ram: Ram, look: Callable[[Stretches], T]) -> T:
        """Return what *look* finds in all RAM that was ever touched.

        If as many bytes are in use as at the last time, *look* goes over the same pages as then. Reading a
        page that is none any more makes it one, and it is counted from then on. So if there are still as many
        afterwards, there is no page beside those; otherwise it looks again at what there really is.

        Args:
            ram: the memory; its guest stands still.
            look: reads at least a byte of every page of the stretches it is given.
        """
        known = sum(length for _, length in self._stretches)
        if self._ram is not None and self._ram() is ram and ram.allocated == known:
            found = look(self._stretches)
            if ram.allocated == known:
                return found
        self.asked += 1
        self._stretches, self._ram = tuple(ram.populated()), weakref.ref(ram)
        return look(self._stretches)


class Recall:
    """All that an oracle remembers of its machine.

    Attributes:
        reader: the description of the device state.
        scanner: page tables and what they say.
        touched: RAM in use.
    """

    def __init__(self) -> None:
        self.reader = StreamReader()
        self.scanner = Scanner()
        self.touched = Touched()
        self._granted: tuple[CpuState, ...] = ()
        self._ram: weakref.ref[Ram] | None = None

    def cpus(self, capture: Capture, ram: Ram) -> tuple[CpuState, ...]:
        """Return every vCPU's registers, from a capture of this moment or from what stands in for one.

        Where PAT and MTRRs had to be taken for granted, the next capture of the same machine that has them
        is compared with what they were taken for.

        Args:
            capture: of the machine.
            ram: its memory; another one is another machine.

        Raises:
            StreamError: the capture cannot be read.
            TypesChanged: they were taken for something else.
        """
        cpus = self.reader.parse(capture.stream)
        if capture.registers:
            self._granted, self._ram = cpus, weakref.ref(ram)
            return updated(cpus, capture.registers)
        granted, self._granted = self._granted, ()
        if granted and self._ram is not None and self._ram() is ram and not same_types(granted, cpus):
            raise TypesChanged(
                "PAT or MTRRs have changed while QEMU could not tell them",
                observed=f"PAT {granted[0].pat:#018x} was taken for granted, it is {cpus[0].pat:#018x} now",
                hint="what was said of memory types since the last capture before that may be wrong",
            )
        return cpus
