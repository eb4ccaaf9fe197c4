# SPDX-License-Identifier: MIT
"""Every live buffer and mapping of a book, judged by evidence from outside of the guest.

The ledger says where to look; what is there is read from page tables, from the tables of the DMA remapping
unit and from RAM, in one stopped moment for all entries together.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np

from harness.audit.book import Book, Violation
from harness.audit.events import Event, Kind
from harness.audit.live import Entry
from harness.audit.places import Stretch, places_of
from harness.audit.reach import Bus, Machinery
from harness.audit.types import Types
from harness.link import Guest, GuestOSError, In, Nr
from harness.oracle import NOWHERE, Oracle, PhysRange, View

PAGE = 4096
_LOOKS = 3
_PAUSE = struct.pack("<qq", 0, 2_000_000)
"""struct timespec: 2 ms of the guest's time."""
_MEMBARRIER, _GLOBAL = 324, 1  # arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/membarrier.h


class Drain(Protocol):
    """What brings a book up to date: `Ledger.drain`, which reads RAM and asks the guest nothing."""

    def __call__(self) -> Iterable[Event]:
        """Return the events since the last time."""


class Outside:
    """Looks at what a book says is alive.

    A book is of one moment, and so is a look: events are drained while the machine stands still. A processor
    may be stopped in the middle of a call, though, between what it did and what is written down of it. So
    what is wrong is looked at again after the guest has gone on, and told only if it is still so.

    Behind an Intel unit `look` reads its tables (see `harness.oracle.vtd` for what those do not show). A
    virtio-iommu keeps its tables inside QEMU: there the device's own DMA is the proof, and `look` says
    nothing about bus addresses of PCI devices.
    """

    def __init__(self, guest: Guest, oracle: Oracle | None = None, drain: Drain | None = None) -> None:
        """Name what is looked at.

        Args:
            guest: it runs. Its agent only waits for the others between two looks.
            oracle: the observer of its machine, if there is one already.
            drain: brings books up to date; None: the caller has done so, and the guest does nothing with DMA
                meanwhile.
        """
        self._guest = guest
        self._oracle = oracle or Oracle(guest.machine)
        self._drain = drain
        self._catch_up: Callable[[], object] | None = None
        self._before: frozenset[int] = frozenset()

    def drain_by(self, catch_up: Callable[[], object]) -> None:
        """Leave it to somebody else to bring books up to date from now on.

        Args:
            catch_up: does that; called while the machine stands still.
        """
        self._catch_up = catch_up

    def begin(self) -> None:
        """Remember the pages that have another type than write-back now: whose they are is not asked later.

        Raises:
            OracleError: as `harness.oracle.Oracle.frozen`.
        """
        with self._oracle.frozen() as view:
            self._before = _odd_frames(view)

    def look(self, book: Book) -> list[Violation]:
        """Judge everything that is alive.

        Args:
            book: it is brought up to date first; its own violations are not repeated.

        Returns:
            What is wrong, by rule: ``not-where-claimed``, ``mixed-types``, ``alias-conflict``,
            ``user-mapping-type``, ``unreachable-bus-address``, ``wrong-iommu-permission``.

        Raises:
            OracleError: as `harness.oracle.Oracle.frozen`; or the unit's registers or tables cannot be read.
        """
        return self._confirmed(book, self._judged)

    def leftovers(self, book: Book, module: str = "") -> list[Violation]:
        """Judge what is left when drivers have gone: memory of another type that nobody owns any more.

        Args:
            book: as for `look`. What lives in it, and what it has seen freed with another type, is left out:
                that is told already.
            module: who is named for what the ledger has seen nobody change.

        Returns:
            ``type-not-restored``, once for each call that changed a type.

        Raises:
            OracleError: as `harness.oracle.Oracle.frozen`.
        """
        return self._confirmed(book, lambda view, book: _left(view, book, self._before, module))

    def _confirmed(self, book: Book, judge: Callable[[View, Book], Iterable[Violation]]) -> list[Violation]:
        """Return what several looks agree on; if the first sees nothing, there is no second one."""
        found: dict[tuple[str, int, int], Violation] = {}
        for number in range(_LOOKS):
            if number:
                self._go_on()
            with self._oracle.frozen() as view:
                if self._catch_up is not None:
                    self._catch_up()
                elif self._drain is not None:
                    book.replay(self._drain())
                seen = {_key(one): one for one in judge(view, book)}
            found = seen if not number else {key: one for key, one in seen.items() if key in found}
            if not found:
                break
        return list(found.values())

    def _go_on(self) -> None:
        """Let the guest go on until every processor has left what it was doing.

        An answer of the agent's shows that of its own processor alone. A busy host may not have run another
        one for an instant meanwhile: the kernel waits for each of them to switch tasks
        (kernel/sched/membarrier.c). A task that was put aside in the middle of a call needs a processor
        first, which the agent leaves to it.
        """
        self._guest.syscall(Nr.NANOSLEEP, In(_PAUSE), 0, what="wait for others")
        with suppress(GuestOSError):  # CONFIG_MEMBARRIER=n, or nohz_full=
            self._guest.syscall(_MEMBARRIER, _GLOBAL, 0, 0, what="wait for every processor")

    def _judged(self, view: View, book: Book) -> Iterator[Violation]:
        places = places_of(book)
        bus = Bus(view, self._machinery())
        yield from _misplaced(view, places.kernel)
        yield from Types(view, book).judge(places.memory)
        yield from bus.judge(places.bus)
        yield from bus.judge_gone((*book.buffers.gone(), *book.mappings.gone()), places.bus)

    def _machinery(self) -> Machinery:
        machine = self._guest.machine
        return Machinery(machine.qmp.hmp, machine.spec.devices, machine.spec.cmdline)


def _left(view: View, book: Book, before: frozenset[int], module: str) -> Iterator[Violation]:
    """Yield pages that are not write-back and no live entry's, by the calls that changed them."""
    owned = _frames((one.physical, one.length) for one in places_of(book).memory)
    freed = (one.entry for one in book.violations if one.rule == "type-not-restored")
    told = _frames(run for entry in freed if entry is not None for run in _runs(entry))
    unseen = Event(number=-1, kind=Kind.NOTHING, module=module, driver=module)
    by_call: dict[int, tuple[Event, list[int]]] = {}
    for frame in sorted(_odd_frames(view) - before - owned - told):
        call = book.types.get(frame, unseen)
        by_call.setdefault(call.number, (call, []))[1].append(frame)
    for call, frames in by_call.values():
        leaves = view.aliases([PhysRange(frames[0] * PAGE, PAGE)])
        kinds = "+".join(sorted({leaf.pat_type.value for leaf in leaves}))
        how = f"{len(frames)} pages are left as {kinds}, the first at {frames[0] * PAGE:#x}"
        yield Violation("type-not-restored", call, None, how)


def _misplaced(view: View, stretches: Sequence[Stretch]) -> Iterator[Violation]:
    """Yield entries whose kernel address leads elsewhere than the ledger says, once each."""
    if not stretches:
        return
    rows = view.survey([one.address for one in stretches], [one.length for one in stretches]).rows
    claimed = np.array([one.physical for one in stretches], dtype=np.uint64)
    wrong = (rows["physical"] != claimed) | (rows["pieces"] != 1) | ~rows["mapped"]
    told: set[int] = set()
    for number in np.flatnonzero(wrong).tolist():
        one, row = stretches[number], rows[number]
        if id(one.entry) in told:
            continue
        told.add(id(one.entry))
        there = int(row["physical"])
        where = "nowhere" if there == NOWHERE else f"to {there:#x}"
        whole = (
            "" if row["mapped"] and row["pieces"] == 1 else f", in {row['pieces']} pieces or not all of it"
        )
        how = f"{one.address:#x} leads {where}{whole}; the ledger says {one.physical:#x}, {one.length} bytes"
        yield Violation("not-where-claimed", one.entry.made, one.entry, how)


def _odd_frames(view: View) -> frozenset[int]:
    return _frames((leaf.pa, leaf.size) for leaf in view.direct_map_anomalies())


def _frames(runs: Iterable[tuple[int, int]]) -> frozenset[int]:
    return frozenset(
        frame for start, length in runs for frame in range(start // PAGE, -(-(start + length) // PAGE))
    )


def _runs(entry: Entry) -> Iterator[tuple[int, int]]:
    return ((run.physical, run.length) for run in entry.made.runs)


def _key(violation: Violation) -> tuple[str, int, int]:
    entry = violation.entry
    return violation.rule, violation.event.number, -1 if entry is None else entry.made.number
