# SPDX-License-Identifier: MIT
"""What a check is given: the guest's claims, a look from outside, and helpers that keep what they saw."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from harness.contract.facts import GIB, KIB, MIB, PAGE, MachineFacts
from harness.contract.look import Look, Place
from harness.contract.outcome import Broken, NotApplicable, Trail, Unproved
from harness.errors import HarnessError
from harness.iokit import IOBufferMemoryDescriptor, IOKit, IOMemoryMap, Null
from harness.iokit.constants import kIODirectionInOut, kIOMemoryMapperNone
from harness.link import Guest, Peer, Process
from harness.oracle import Oracle, Unmapped, View

__all__ = ["GIB", "KIB", "MIB", "PAGE", "Bench", "Case", "Place"]

_WINDOW = 64
"""Bytes planted at each probe."""
_SHOWN = 48
"""Characters of a value in a message."""
_FREE_PAGES = re.compile(r"^ +(?:pages free +|count: +)(\d+)$", re.MULTILINE)

Made = TypeVar("Made", bound=IOBufferMemoryDescriptor | IOMemoryMap)


@dataclass(frozen=True)
class Bench:
    """Where checks are run.

    Attributes:
        guest: the booted guest.
        iokit: the factories in it.
        oracle: the observer outside it.
        facts: the machine.
    """

    guest: Guest
    iokit: IOKit
    oracle: Oracle
    facts: MachineFacts


@dataclass(frozen=True)
class Planted:
    """Bytes that were written somewhere into a buffer.

    Attributes:
        offset: where, in bytes from the buffer's start.
        data: which.
    """

    offset: int
    data: bytes


class Case:
    """One check at work.

    Every descriptor it makes is released when the check ends, however it ends.

    Attributes:
        iokit: the factories, for calls whose result the check judges itself.
        facts: the machine.
        trail: what was seen so far.
        looked: the machine was looked at from outside.
    """

    def __init__(self, bench: Bench, seed: str) -> None:
        self.iokit = bench.iokit
        self.facts = bench.facts
        self.trail = Trail()
        self.looked = False
        self._bench = bench
        self._sessions: dict[int, IOKit] = {}
        # Seeded by the clause: another run writes the same bytes, another clause others.
        self._random = random.Random(seed)  # noqa: S311 - patterns, not secrets

    # -- who calls ------------------------------------------------------------------------------------------

    @property
    def guest(self) -> Guest:
        """The guest's agent, which makes the calls of `iokit`: Apple's current task."""
        return self._bench.guest

    @property
    def peer(self) -> Peer:
        """The guest's second process."""
        return self._bench.guest.peer

    def iokit_of(self, process: Process) -> IOKit:
        """Return the factories as *process* calls them; closed when the check ends."""
        if process is self._bench.guest:
            return self.iokit
        if id(process) not in self._sessions:
            self._sessions[id(process)] = IOKit(process)
        return self._sessions[id(process)]

    def release_all(self) -> None:
        """Release every mapping and descriptor the check has left over."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.close()
        self.iokit.release_all()

    @property
    def direct(self) -> int:
        """The option with which segments are the processor's addresses, which the page walk shows.

        Without an IOMMU they are so anyhow, and it is 0: nothing but the clause's own options is passed. What
        segments without it are, behind an IOMMU, is clause I07's business.
        """
        return kIOMemoryMapperNone if self.facts.iommu else 0

    # -- making buffers -------------------------------------------------------------------------------------

    def make(
        self, options: int = kIODirectionInOut, capacity: int = PAGE, alignment: int = 1
    ) -> IOBufferMemoryDescriptor:
        """Call withOptions, which must give a descriptor.

        Raises:
            Broken: it gave NULL.
        """
        return self.need(self.iokit.withOptions(options, capacity, alignment))

    def need(self, made: Made | Null) -> Made:
        """Return *made*, a descriptor or a mapping, which must be an object.

        Raises:
            Broken: it is NULL.
        """
        if isinstance(made, Null):
            raise Broken("an object", repr(made))
        return made

    def null(self, made: object) -> Null:
        """Return *made*, which must be NULL.

        Raises:
            Broken: it is an object.
        """
        self.trail.comparisons += 1
        if not isinstance(made, Null):
            raise Broken("NULL", repr(made))
        self.trail.expected, self.trail.observed = "NULL", repr(made)
        return made

    def maybe(self, made: Made | Null) -> Made | None:
        """Return *made*, or None with a note where the factory may give NULL and did."""
        if isinstance(made, Null):
            self.note(f"{made.call} gave NULL, as it may: {made.reason}")
            return None
        return made

    # -- comparing ------------------------------------------------------------------------------------------

    def expect(
        self, observed: object, *, equals: object, what: str, show: Callable[[int], str] | None = None
    ) -> None:
        """Compare one value.

        Args:
            observed: what was seen.
            equals: what the clause asks for.
            what: name of the value, as a driver's author would say it.
            show: how to write integers, for example ``hex``.

        Raises:
            Broken: they differ.
        """
        self._compare(
            observed == equals, f"{what} = {_text(equals, show)}", f"{what} = {_text(observed, show)}"
        )

    def expect_that(self, condition: bool, *, expected: str, observed: str) -> None:
        """Compare by a condition of the check's own; both sides are in its words.

        Raises:
            Broken: the condition does not hold.
        """
        self._compare(condition, expected, observed)

    def expect_bytes(self, observed: bytes, *, equals: bytes, what: str) -> None:
        """Compare contents and say where they part.

        Raises:
            Broken: they differ.
        """
        if len(observed) != len(equals):
            self._compare(False, f"{what}: {len(equals)} bytes", f"{what}: {len(observed)} bytes")
        if observed == equals:
            self._compare(True, f"{what}: {len(equals)} bytes alike", f"{what}: {len(equals)} bytes alike")
            return
        wrong = [index for index, pair in enumerate(zip(observed, equals, strict=True)) if pair[0] != pair[1]]
        at = wrong[0]
        self._compare(
            False,
            f"{what}: byte {at} is {equals[at]:#04x}",
            f"{what}: byte {at} is {observed[at]:#04x}; {len(wrong)} of {len(equals)} bytes differ",
        )

    def expect_zero(self, observed: bytes, *, what: str) -> None:
        """Compare contents with zeroes.

        Raises:
            Broken: a byte is not zero.
        """
        if observed.count(0) == len(observed):
            self._compare(True, f"{what}: {len(observed)} zero bytes", f"{what}: {len(observed)} zero bytes")
        else:
            self.expect_bytes(observed, equals=bytes(len(observed)), what=what)

    def expect_multiple(self, value: int, of: int, *, what: str) -> None:
        """Compare an address with a power of two it must be a multiple of.

        Raises:
            Broken: low bits are set.
        """
        self._compare(value % of == 0, f"{what} a multiple of {of:#x}", f"{what} {value:#x}")

    def _compare(self, agree: bool, expected: str, observed: str) -> None:
        self.trail.comparisons += 1
        if not agree:
            raise Broken(expected, observed)
        self.trail.expected, self.trail.observed = expected, observed

    # -- other ends -----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Keep one sentence as evidence."""
        self.trail.note(text)

    def not_applicable(self, reason: str) -> NoReturn:
        """End the check: the machine lacks what the clause speaks of."""
        raise NotApplicable(reason)

    def unproved(self, reason: str) -> NoReturn:
        """End the check undecided."""
        raise Unproved(reason)

    # -- the view from outside ------------------------------------------------------------------------------

    @contextmanager
    def look(self, process: Process | None = None) -> Iterator[Look]:
        """Stop the machine and look at it from outside; it goes on when the block is left.

        Nothing may be asked of the guest inside the block: it stands still and would not answer.

        Args:
            process: whose user addresses are to be looked up.  Its page tables are found by a page of random
                bytes it maps for the purpose, so that no other process can be taken for it.
        """
        with ExitStack() as stack:
            mark, address = os.urandom(32), 0
            if process is not None:
                address = stack.enter_context(process.memory(mark)).address
            with self._bench.oracle.frozen() as view:
                self.looked = True
                if view.note:
                    self.note(view.note)
                space = None if process is None else _space_with(view, address, mark)
                yield Look(view, self.trail, space)

    # -- contents -------------------------------------------------------------------------------------------

    def pattern(self, length: int) -> bytes:
        """Return *length* bytes that are different each time and the same in every run; none is zero."""
        return bytes(byte or 0xA5 for byte in self._random.randbytes(length))

    def plant(self, buf: IOBufferMemoryDescriptor) -> tuple[Planted, ...]:
        """Write patterns through writeBytes where layouts go wrong: ends, page and allocation boundaries.

        Raises:
            Broken: writeBytes moved fewer bytes than asked for.
        """
        planted = []
        for offset, length in probes(buf.getLength()):
            data = self.pattern(length)
            self.expect(
                buf.writeBytes(offset, data), equals=length, what=f"bytes written at {offset} of {buf!r}"
            )
            planted.append(Planted(offset, data))
        return tuple(planted)

    def expect_planted(self, look: Look, buf: IOBufferMemoryDescriptor, planted: tuple[Planted, ...]) -> None:
        """Compare guest RAM behind *buf* with what was planted.

        Raises:
            Broken: other bytes are there.
        """
        for one in planted:
            found = look.read(buf, one.offset, len(one.data))
            self.expect_bytes(found, equals=one.data, what=f"guest RAM behind offset {one.offset} of {buf!r}")

    # -- the guest around the buffers -----------------------------------------------------------------------

    def live(self) -> int:
        """Return how many descriptors the module says exist."""
        return self.iokit.info().live

    def free_memory(self) -> int:
        """Return the bytes of RAM the guest kernel has to give, by ``/proc/zoneinfo``.

        The pages on each processor's own lists are counted, which MemFree leaves out: from Linux 6.7 on they
        may be an eighth of all memory (mm/page_alloc.c:zone_highsize).
        """
        text = self._bench.guest.read_file("/proc/zoneinfo").decode()
        counts = [int(number) for number in _FREE_PAGES.findall(text)]
        if not counts:
            raise HarnessError(
                "the guest's /proc/zoneinfo counts no pages", hint="is /proc mounted by the agent?"
            )
        return sum(counts) * PAGE

    def kernel_log(self) -> str:
        """Return what the kernel has said on the console so far."""
        return self._bench.guest.machine.console.text()

    def complaints(self, since: int) -> list[str]:
        """Return what the kernel has complained of on the console since it had *since* characters."""
        words = ("WARNING:", "BUG:", "failure: order", "Bad page", "invoked oom-killer", "Call Trace:")
        return [line for line in self.kernel_log()[since:].splitlines() if any(one in line for one in words)]

    def press(self) -> None:
        """Make the kernel reclaim caches and move pages about, as a busy machine does."""
        self._bench.guest.write_file("/proc/sys/vm/drop_caches", b"3\n")
        self._bench.guest.write_file("/proc/sys/vm/compact_memory", b"1\n")


def _space_with(view: View, address: int, mark: bytes) -> int:
    """Return the top table of the process that has *mark* at *address*."""
    for space in view.address_spaces:
        try:
            ranges = view.physical_of(address, len(mark), space)
        except Unmapped:
            continue
        if b"".join(view.read(one.start, one.length) for one in ranges) == mark:
            return space
    raise HarnessError("no page tables of the guest's process were found", observed=f"none has {address:#x}")


def probes(length: int) -> list[tuple[int, int]]:
    """Return windows (offset, bytes) of a buffer of *length* bytes that do not overlap, in order.

    They lie at both ends, around the first page boundary, in the middle, and around every 4 MiB boundary,
    where a buffer made of several allocations changes from one to the next.
    """
    centres = [0, PAGE, length // 2, *range(4 * MIB, length, 4 * MIB), length]
    windows: list[tuple[int, int]] = []
    end = 0
    for centre in sorted(set(centres)):
        start = max(end, centre - _WINDOW // 2, 0)
        end = max(end, min(centre + _WINDOW // 2, length))
        if start < end:
            windows.append((start, end - start))
    return windows


def _text(value: object, show: Callable[[int], str] | None) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return show(value) if show else str(value)
    if isinstance(value, bytes) and len(value) > _SHOWN // 2:
        return f"{len(value)} bytes {value[: _SHOWN // 4].hex(' ')}..."
    return str(value)
