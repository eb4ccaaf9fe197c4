# SPDX-License-Identifier: MIT
"""One driver in one guest: loaded under the ledger's eyes, worked with, unloaded, judged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from harness.audit.blind import blind_spots
from harness.audit.book import Book, Violation
from harness.audit.buffers import Buffer
from harness.audit.disk_traffic import PARAMETERS
from harness.audit.errors import DriverNotLoaded, DriverNotUnloaded
from harness.audit.events import Event
from harness.audit.findings import Finding, findings
from harness.audit.follow import Follower
from harness.audit.ledger import Ledger
from harness.audit.listing import Listing
from harness.audit.live import Entry, Live
from harness.audit.log import read_log
from harness.audit.observer import Observations
from harness.audit.result import AuditResult
from harness.audit.sites import DRIVER_BYTES, Sites
from harness.audit.sources import KernelModule, Origin, Subject
from harness.audit.summary import summed_up
from harness.audit.sysfs import BoundDevice, devices_of, drivers_of, loaded_modules
from harness.contract.engine import provenance_of
from harness.errors import BadInput, GuestFailure, HarnessError
from harness.images import ModuleBuild
from harness.link import Guest, GuestOSError
from harness.oracle import Oracle

_NAME_BYTES = 19
"""Of a device's name in a record, like `DRIVER_BYTES`."""

RECORDS = 131072
"""Of the ring, 256 bytes each: 32 MiB that a guest can spare, and nearly a second of the busiest driver."""
FRAMES = 10
"""Of the callers' stacks: a driver can be that deep behind virtio's own layers."""


class AuditRun:
    """A driver under audit: loaded on entering, unloaded on leaving.

    Attributes:
        guest: where it runs; nothing else does.
        subject: the driver.
        ledger: the ledger's module.
        oracle: looks at the guest from outside.
        book: all buffers of the guest, the driver's and everybody's, as far as the ledger was read.
        devices: what the driver was seen to drive.
        exercised: what was done with it, for the report.
        failure: what ended the audit before its time.
        loaded: modules that were loaded, in order.
        unloaded: the driver is gone, and what that shows was seen.
    """

    def __init__(
        self,
        guest: Guest,
        subject: Subject,
        ledger: ModuleBuild,
        *,
        params: str = "",
        oracle: Oracle | None = None,
        asked: str = "",
    ) -> None:
        """Name everything; nothing happens yet.

        Args:
            guest: it answers, and has neither the driver nor a ledger in it.
            subject: from `harness.audit.sources.resolve`, for the guest's kernel.
            ledger: from `build_ledger`, for the guest's kernel.
            params: the driver's module parameters, as after ``insmod FILE``; without any, a driver of the
                kernel's gets those that QEMU's model of its device needs, and the report says so (`tamed`).
            oracle: that of the guest, where there is one already.
            asked: machine and devices as they were asked for, for the report.
        """
        self.guest = guest
        self.subject = subject
        self.oracle = oracle or Oracle(guest.machine)
        self.book = Book()
        self.devices: dict[str, BoundDevice] = {}
        self.exercised = ""
        self.failure: HarnessError | None = None
        self.asked = asked
        self.listing = Listing()
        self.events = self.lost = self.missed = self.armed = 0
        self.seconds = 0.0
        self.loaded: list[str] = []
        self.unloaded = False
        self.observed = Observations(guest, self.oracle)
        self.ledger = ledger
        by_itself = subject.origin is Origin.TREE and not params
        self.tamed = PARAMETERS.get(subject.name, "") if by_itself else ""
        self._params = params or self.tamed
        self._drivers: set[tuple[str, str]] = set()
        self._stack = ExitStack()
        self._side = ExitStack()  # what reads beside the guest's work
        self._live = False
        self._final: AuditResult | None = None

    def __enter__(self) -> Self:
        """Load the ledger, what the driver needs, and the driver.

        Raises:
            BadInput: the driver is in the guest already.
            DriverNotLoaded: the kernel refused it, or its init code failed; `result` has what was seen.
            GuestFailure: the guest died of it, under its own name.
        """
        self._began = time.monotonic()
        before = loaded_modules(self.guest)
        if self.subject.name in before:
            raise BadInput(
                f"{self.subject.name} is in the guest already: nobody saw what it has allocated",
                hint="an audit begins with a guest that does not need this module to be reached",
            )
        files = {one.name: one.debug or one.ko for one in self.subject.modules}
        folder = self.subject.folder
        self.sites = Sites.of_guest(self.guest, files, {self.name: folder} if folder is not None else {})
        self.provenance = provenance_of(self.guest)
        try:
            ledger = Ledger(self.guest, self.ledger, RECORDS, frames=FRAMES)
            self._ledger = self._stack.enter_context(ledger)
            self.armed = self._ledger.info()["armed"]
            self._side.enter_context(self._ledger.keep_up())
            self._follower = self._side.enter_context(Follower(self._ledger, self._take))
            self.observed.begin()
            self._live = True
            for module in self.subject.needs:
                if module.name not in before:
                    self._load(module)
            self._load(self.subject.module, self._params)
            self.look()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look once more, unload the driver and what came with it, look at what is left.

        Raises:
            DriverNotUnloaded: somebody still uses it.
            GuestFailure: the guest died of it, under its own name.
        """
        self._leave(error)

    # -- for exercises and tests ----------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether it came as far as a ledger in the guest: there is something to report then."""
        return self.armed > 0

    @property
    def name(self) -> str:
        """The driver's module."""
        return self.subject.name

    @property
    def buffers(self) -> list[Buffer]:
        """The driver's allocations that are alive now, in the order they were made."""
        self._catch_up()
        return self._ours(self.book.buffers)

    @property
    def mappings(self) -> list[Buffer]:
        """The driver's streaming mappings that are alive now, in the order they were made."""
        self._catch_up()
        return self._ours(self.book.mappings)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong: inside the block so far, after a look; after it all of it."""
        if self._live:
            self.look()
        return self.found()

    @property
    def complaints(self) -> tuple[str, ...]:
        """What the kernel itself has warned of since the audit began, a line each."""
        return self.observed.complaints()

    def sh(self, command: str | Sequence[str], *, timeout: float = 60.0) -> str:
        """Run a command by the guest's shell (busybox) and return what it printed.

        Args:
            command: for ``/bin/sh``; a sequence is one program and its arguments.
            timeout: seconds.

        Raises:
            CommandFailed: its status is not 0.
            CommandTimedOut: it had not ended in time.
            GuestFailure: the guest died meanwhile, under its own name.
        """
        return self.guest.ssh.run(command, timeout=timeout, check=True).text

    def look(self) -> None:
        """Read the ledger and judge everything that is alive from outside.

        Raises:
            GuestFailure: the guest is dead.
        """
        self._find_devices()
        self.observed.look(self.book, self._catch_up)

    def result(self) -> AuditResult:
        """Return what came out so far; after the block, of the whole audit."""
        if self._final is not None and self._final.failure is self.failure:
            return self._final
        return summed_up(self, blind_spots(self))

    def found(self) -> list[Finding]:
        """Return the findings as of the last look."""
        violations: list[Violation] = [*self.book.violations, *self.observed.violations]
        violations += read_log(self.observed.said(), self.book, self.sites)
        names = {name for one in self.devices.values() for name in (one.name, *one.above)}
        return findings(violations, self.sites, modules={self.name, *self.loaded}, devices=names)

    def ours(self, event: Event) -> bool:
        """Whether a call is about this driver: its own code, its devices, or those it works on top of."""
        return (
            event.module in self.loaded
            or event.driver in {driver[:DRIVER_BYTES] for _, driver in self._drivers}
            or any(
                event.name == name[:_NAME_BYTES]
                for one in self.devices.values()
                for name in (one.name, *one.above)
            )
        )

    # -- how it goes ----------------------------------------------------------------------------------------

    def _take(self, events: list[Event]) -> None:
        self.sites.follow(events)
        self.book.replay(events)
        self.listing.replay(events)
        self.events += len(events)

    def _catch_up(self) -> None:
        if self._live:
            self._follower.catch_up()

    def _ours(self, live: Live) -> list[Buffer]:
        return [self._buffer(entry) for entry in live if self.ours(entry.made)]

    def _buffer(self, entry: Entry) -> Buffer:
        return Buffer(entry, self.oracle, lambda event: str(self.sites.of(event, {self.name, *self.loaded})))

    def _load(self, module: KernelModule, params: str = "") -> None:
        self.loaded.append(module.name)
        try:
            self.guest.load_module(module.read(), params)
        except GuestOSError as error:
            raise DriverNotLoaded(module.name, error, self.observed.log(8)) from error

    def _find_devices(self) -> None:
        """See what is bound by now: some drivers probe long after they were loaded."""
        self._drivers |= set(drivers_of(self.guest, self.loaded))
        self.devices |= {one.name: one for one in devices_of(self.guest, sorted(self._drivers))}

    def _leave(self, error: BaseException | None) -> None:
        """End the audit; whatever ends it, what was seen until then is kept."""
        gone = isinstance(error, GuestFailure) or not isinstance(error, Exception | None)
        try:
            if error is None:
                self._unload()
            elif not gone:
                with contextlib.suppress(HarnessError):  # the first error is the one to be told
                    self._unload()
        except HarnessError as failed:
            self.failure = failed
            gone = isinstance(failed, GuestFailure)
            raise
        finally:
            if isinstance(error, HarnessError):
                self.failure = error
            self._end(gone=gone)

    def _unload(self) -> None:
        if self._live:
            self.look()
        self.observed.ask(self.devices.values())
        self.missed = self._ledger.missed
        present = loaded_modules(self.guest)
        for name in reversed(self.loaded):
            if name not in present:
                continue
            try:
                self.guest.unload_module(name)
            except GuestOSError as error:
                if name == self.name:
                    raise DriverNotUnloaded(name, error) from error
        self.unloaded = True
        self.observed.leftovers(self.book, self._catch_up, self.name)
        self.missed = self._ledger.missed

    def _end(self, *, gone: bool) -> None:
        """Take what the ring still holds, out of RAM: also that of a guest that is dead.

        Args:
            gone: the guest is dead, or somebody wants to leave at once: it is not asked for anything.
        """
        if self._live:
            with contextlib.suppress(HarnessError, OSError, ValueError):
                self._follower.catch_up()
            with contextlib.suppress(HarnessError, OSError, ValueError):
                self.lost = self._ledger.lost
            self.observed.end()
        with contextlib.suppress(HarnessError):  # what was wrong has been raised by the last look
            self._side.close()
        self.seconds = time.monotonic() - self._began
        self._live = False
        try:
            if gone:
                self._stack.pop_all()  # a ledger goes with its guest
            self._stack.close()
        finally:
            self._final = summed_up(self, blind_spots(self))
