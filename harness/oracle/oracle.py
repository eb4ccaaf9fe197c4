# SPDX-License-Identifier: MIT
"""The oracle: stops a guest, reads it from outside, lets it go on."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from harness.errors import BadInput
from harness.oracle.aliases import PhysRange
from harness.oracle.memtype import MemoryType
from harness.oracle.pages import Buffer, Buffers, extents
from harness.oracle.recall import Ram, Recall
from harness.oracle.survey import Survey
from harness.oracle.timing import Clock, Timing
from harness.oracle.view import View
from harness.vm import Capture


class Target(Protocol):
    """What the oracle needs of a machine; `harness.vm.Machine` has it."""

    @property
    def ram(self) -> Ram:
        """Guest RAM."""

    def stopped(self) -> AbstractContextManager[object]:
        """Keep the guest stopped; may be nested."""

    def capture(self) -> Capture:
        """Return what is known of the CPUs; the guest is stopped."""


class Oracle:
    """Evidence about one machine, from outside. It asks the guest nothing but where to look.

    A capture compares what it reads with what the one before has read, byte by byte, and works out only what
    differs. The machine may be restored, and get other RAM, in between.

    The questions about buffers each freeze the guest for themselves; inside `frozen` they share its view.
    """

    def __init__(self, machine: Target) -> None:
        self._machine = machine
        self._clock = Clock()
        self._recall = Recall()
        self._view: View | None = None

    @property
    def timings(self) -> list[Timing]:
        """Wall time of every step so far."""
        return self._clock.timings

    @property
    def milliseconds(self) -> tuple[float, ...]:
        """Wall time of each capture so far, all its steps together."""
        return self._clock.per_capture()

    @contextmanager
    def frozen(self) -> Iterator[View]:
        """Stop the guest and show it; on leaving the guest goes on and the view expires.

        Nested calls get the view of the outermost one.

        Raises:
            StreamError: the machine's state cannot be read.
            TypesChanged: PAT or MTRRs are not those that earlier views had to take for granted.
            NotLongMode: no vCPU pages in 64-bit mode.
            OracleError: the vCPUs' registers make no sense together.
        """
        if self._view is not None:
            yield self._view
            return
        with ExitStack() as going_on:
            with self._clock.step("stop"):
                going_on.enter_context(self._timed_stop())
            with self._clock.step("capture"):
                capture = self._machine.capture()
            with self._clock.step("parse"):
                cpus = self._recall.cpus(capture, self._machine.ram)
                view = View(self._machine.ram, cpus, self._clock, self._recall, note=capture.why)
            self._view = view
            try:
                yield view
            finally:
                self._view = None
                view.close()

    def types_of(self, buf: Buffer) -> set[MemoryType]:
        """Return the effective types of every alias of every page of *buf* (see `View.types_of`)."""
        with self.frozen() as view:
            return view.types_of(buf)

    def types_of_many(self, bufs: Iterable[Buffer]) -> list[set[MemoryType]]:
        """Return `types_of` for each buffer, in one capture."""
        with self.frozen() as view:
            return view.types_of_many(bufs)

    def pat_types_of(self, buf: Buffer) -> set[MemoryType]:
        """Return the PAT types of every alias of every page of *buf* (see `View.pat_types_of`)."""
        with self.frozen() as view:
            return view.pat_types_of(buf)

    def survey(self, bufs: Buffers | Iterable[Buffer]) -> Survey:
        """Look at thousands of buffers in one capture (see `View.survey`).

        Args:
            bufs: something with arrays of addresses and sizes, or any number of buffers.

        Raises:
            BadInput: addresses or sizes that cannot be.
        """
        with self.frozen() as view:
            return view.survey(*extents(bufs))

    def physical_of(self, buf: Buffer) -> tuple[PhysRange, ...]:
        """Return where *buf* lies in guest physical memory (see `View.physical_of`)."""
        with self.frozen() as view:
            return view.physical_of(buf.address, buf.storage)

    def read(self, buf: Buffer, offset: int, n: int) -> bytes:
        """Return *n* bytes of *buf* from *offset*, out of physical memory.

        Raises:
            BadInput: they are not all inside the buffer's storage.
            Unmapped: the buffer is not mapped there.
        """
        _inside(buf, offset, n)
        with self.frozen() as view:
            parts = view.physical_of(buf.address + offset, n)
            return b"".join(view.read(part.start, part.length) for part in parts)

    def write(self, buf: Buffer, offset: int, data: bytes) -> None:
        """Store *data* in *buf* at *offset*, in physical memory, as a device would.

        Raises:
            BadInput: it does not fit into the buffer's storage.
            Unmapped: the buffer is not mapped there.
        """
        _inside(buf, offset, len(data))
        with self.frozen() as view:
            done = 0
            for part in view.physical_of(buf.address + offset, len(data)):
                view.write(part.start, data[done : done + part.length])
                done += part.length

    @contextmanager
    def _timed_stop(self) -> Iterator[None]:
        self._clock.capture += 1
        with ExitStack() as stopped:
            stopped.enter_context(self._machine.stopped())
            try:
                yield
            finally:
                with self._clock.step("continue"):
                    stopped.close()


def _inside(buf: Buffer, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > buf.storage:
        raise BadInput(
            f"{length} bytes at offset {offset} are not inside the buffer's {buf.storage} bytes of storage",
            hint="storage is what the descriptor really owns, never less than its capacity",
        )
