# SPDX-License-Identifier: MIT
"""The guests of one pytest process: who used them last, whether they live, how they become clean again.

In the *session's* seat sits the guest all tests share; it is looked after before every test that uses it.  In
the *fresh* one sits a second guest, from the first test that asks for one on; it is restored before every
test that asks.  In that for *audits* sits one with a driver's devices, restored before every audit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

import pytest

from harness.errors import FailureKind, GuestFailure, HarnessError
from harness.forensics.evidence import hold_when_it_ends
from harness.forensics.gdb import module_sections
from harness.link import Guest, Start, StartKind
from harness.pytest_plugin.watch import Trouble, Watch
from harness.vm import Console

ATTEMPTS = 3
"""Restores in a row that may fail before the session is given up."""

_ANSWER_SECONDS = 0.4
_HANGING = (
    FailureKind.KERNEL_HUNG,
    FailureKind.AGENT_DEAD,
    FailureKind.QEMU_STUCK,
    FailureKind.GUEST_FAILED,
)

_WAYS = {
    StartKind.REWOUND: "in place",
    StartKind.RESTORED: "in a new QEMU",
    StartKind.BOOTED: "by a boot",
}


class Role(Enum):
    """What a guest is for."""

    SESSION = "session"
    FRESH = "fresh"
    AUDIT = "audit"


@dataclass(frozen=True)
class Ground:
    """What a guest runs on.

    Attributes:
        kernel: which of several kernels, as typed after ``--kernel``; None where there is only one.
        machine: the name of its machine.
    """

    kernel: str | None
    machine: str


class NoCleanGuest(GuestFailure):
    """Every attempt to restore a guest has failed: no test after this one can be believed."""


class Seat:
    """A guest over all of its lives.

    Args:
        role: what it is for.
        guest: started.
        ground: what it runs on.
        snapshots: whether it may start from a snapshot.
        looked_at: somebody wants to see it after a failure: QEMU is to stay when the guest ends itself.

    Attributes:
        role: as given.
        guest: as given.
        ground: as given.
        used_by: id of the last test that used it; ``""`` before the first.
        watch: whose trouble is whose.
        sections: addresses of its module's sections, where it is looked at.
        closed: its guest has ended with its fixture.
        qemu_log: what QEMU itself had said by then.
        late: what came up after a test had been looked at for the last time, with the test's id.
    """

    def __init__(
        self, role: Role, guest: Guest, ground: Ground, *, snapshots: bool, looked_at: bool = False
    ) -> None:
        self.role = role
        self.guest = guest
        self.ground = ground
        self.used_by = ""
        self.watch = Watch(guest)
        self.closed = False
        self.qemu_log = ""
        self.late: list[tuple[str, Trouble]] = []
        self._sick = ""
        self._found: HarnessError | None = None
        self._snapshots = snapshots
        self._looked_at = looked_at
        self._holding: Console | None = None
        self.sections = module_sections(guest) if looked_at else {}
        self._deaths: list[str] = []
        machine = guest.machine
        accelerator = machine.accelerator
        self._what = (
            f"{guest.hello.release} ({guest.image.kernel.label}) on {ground.machine}, "
            f"QEMU {machine.qemu_version}, {accelerator.name}: {accelerator.reason}"
        )

    def ready(self, test: str, *, clean: bool) -> None:
        """Make the guest fit for a test: alive, and with *clean* without a trace of the tests before.

        Args:
            test: its id.
            clean: restore it whatever its state; one nobody has used yet is clean.

        Raises:
            NoCleanGuest: it had to be restored, and that failed `ATTEMPTS` times in a row.
        """
        found: HarnessError | None = None
        if not self.used_by:
            self._hold()
            self.watch.begin(test)
        else:
            self.look_late()
            found = self._found or self._dead()
            if found is None and not (clean or self._sick):
                found = self._begun(test)
            if found is not None or clean or self._sick:
                self._restore(test)
        if self.role is Role.SESSION:  # to be killed is what a fresh one is for
            self._remember(found, test)
        self.used_by, self._sick, self._found = test, "", None

    def ended(self, *, ask: bool) -> Trouble:
        """The test that uses it has been carried out; what its kernel had to say about that.

        Args:
            ask: the guest is believed to answer.
        """
        trouble = self.watch.end(ask=ask)
        if trouble.died is not None:
            self.give_up(trouble.died)
        return trouble

    def give_up(self, found: HarnessError) -> None:
        """The guest is beyond answering: whoever goes on asking is to be told so at once.

        Args:
            found: what is wrong with it. Where it is one that merely hangs, its QEMU is ended: every further
                question would wait for its whole deadline.
        """
        self._found = self._found or found
        if found.kind in _HANGING and not self.closed and not self._answers():
            with contextlib.suppress(OSError):  # it has ended by itself
                os.kill(self.guest.machine.pid, signal.SIGKILL)

    def call_sick(self, why: str) -> None:
        """No test is to meet the guest as it is now."""
        self._sick = self._sick or why

    def close(self) -> None:
        """The guest is about to end: take a last look, and keep what ends with it."""
        self.look_late()
        with contextlib.suppress(OSError):
            self.qemu_log = (self.guest.machine.workdir / "qemu.log").read_text(errors="replace")
        self.closed = True

    def take_late(self) -> list[tuple[str, Trouble]]:
        """Hand over what came up late, and forget it."""
        late, self.late = self.late, []
        return late

    def look_late(self) -> None:
        """See whether something has come up since the last test was looked at."""
        self._note_late(self.watch.look())

    def summary(self) -> tuple[str, ...]:
        """Lines for the end of the session: what it was, how it started, the restores, the deaths."""
        first, *later = self.guest.starts
        who = "a second guest" if self.role is Role.FRESH else "a guest for audits"
        head = (
            self._what
            if self.role is Role.SESSION
            else f"{who}, {self.guest.hello.release} on {self.ground.machine}"
        )
        # A boot that was not the second choice is the first of its kind.
        new = self._snapshots and first.how is StartKind.BOOTED and not first.why
        parts = [head, f"{first} (its snapshot was made)" if new else str(first)]
        if later:
            parts.append(describe_restores(later))
        return ("; ".join(parts), *self._deaths)

    def _note_late(self, trouble: Trouble) -> None:
        if trouble:
            self.late.append((self.used_by, trouble))
            self.call_sick(trouble.title)

    def _answers(self) -> bool:
        try:
            return self.guest.link.answers(_ANSWER_SECONDS)
        except HarnessError:
            return True  # that was quick

    def _dead(self) -> HarnessError | None:
        try:
            self.guest.machine.check()
        except HarnessError as found:
            return found
        return None

    def _begun(self, test: str) -> HarnessError | None:
        """Begin a test, for which the guest has to answer by one of its workers; why it does not."""
        try:
            self._note_late(self.watch.begin(test))
        except HarnessError as found:
            return found
        return None

    def _hold(self) -> None:
        """A QEMU that is new is told to stay."""
        console = self.guest.machine.console
        if self._looked_at and self._holding is not console:
            hold_when_it_ends(self.guest)
            self._holding = console

    def _remember(self, found: HarnessError | None, test: str) -> None:
        start = self.guest.start
        if found is not None:
            self._deaths.append(
                f"the session guest died in {self.used_by}: {_told(found)}; {start} for {test}"
            )
        elif self._sick:
            self._deaths.append(
                f"the session guest was not left well by {self.used_by}: {self._sick}; {start} for {test}"
            )

    def _restore(self, test: str) -> None:
        failures: list[HarnessError] = []
        while len(failures) < ATTEMPTS:
            try:
                self.guest.restore()
                self.watch.renew()
                self._hold()
                self.watch.begin(test)
            except HarnessError as error:
                failures.append(error)
            else:
                return
        last = failures[-1]
        raise NoCleanGuest(
            f"the {self.role.value} guest could not be restored, {ATTEMPTS} times in a row; the session ends",
            tried=f"to make it clean after {self.used_by}",
            observed="; ".join(dict.fromkeys(failure.summary for failure in failures)),
            hint=last.hint or "iobmd doctor says what this host lacks; --no-snapshot boots guests instead",
            evidence=last.evidence,
        ) from last


_SEATS = pytest.StashKey[dict[Role, Seat]]()
_GONE = pytest.StashKey[list[Seat]]()
_LINES = pytest.StashKey[list[str]]()


@contextlib.contextmanager
def taken(config: pytest.Config, seat: Seat) -> Iterator[Seat]:
    """Keep a seat among the session's while the block runs; its summary stays."""
    seats = config.stash.setdefault(_SEATS, {})
    seats[seat.role] = seat
    try:
        yield seat
    finally:
        del seats[seat.role]
        seat.close()
        config.stash.setdefault(_GONE, []).append(seat)
        lines(config).extend(seat.summary())


def seat_of(config: pytest.Config, role: Role) -> Seat | None:
    """Return the seat of this process, if a guest sits there now."""
    return config.stash.get(_SEATS, {}).get(role)


def gone(item: pytest.Item) -> tuple[Seat, ...]:
    """Return the seats a test used whose guests have ended in its teardown."""
    return tuple(seat for seat in item.config.stash.get(_GONE, []) if seat.used_by == item.nodeid)


def take_late(config: pytest.Config) -> list[tuple[str, Trouble]]:
    """Return what came up late, in guests that are there and in those that have ended, and forget it."""
    ended = config.stash.get(_GONE, [])
    found = []
    for seat in (*config.stash.get(_SEATS, {}).values(), *ended):
        found += seat.take_late()
    ended.clear()
    return found


def lines(config: pytest.Config) -> list[str]:
    """Return what to say at the end of the session; add to it what should be said as well."""
    return config.stash.setdefault(_LINES, [])


def roles_of(item: pytest.Item) -> tuple[Role, ...]:
    """Return which guests a test uses by the names of its fixtures, the one it is about first."""
    names = set(getattr(item, "fixturenames", ()))
    fresh = "fresh_guest" in names
    found = [Role.FRESH] if fresh else []
    if "guest" in names or ("iobmd_subject" in names and not fresh):
        found.append(Role.SESSION)
    return (*found, *((Role.AUDIT,) if "audit" in names else ()))


def seats_of(item: pytest.Item) -> tuple[Seat, ...]:
    """Return the seats a test uses and that are taken, by guests of the test's kernel and machine."""
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec is not None else {}
    kernel, machine = params.get("guest_image"), params.get("named_machine")
    found = (seat_of(item.config, role) for role in roles_of(item))
    return tuple(
        seat
        for seat in found
        if seat is not None
        and seat.ground.kernel == kernel
        and machine in (None, seat.ground.machine)
        and (seat.role is not Role.AUDIT or seat.used_by == item.nodeid)  # not yet, or not in this test
    )


def _told(error: HarnessError) -> str:
    """One line of an error."""
    return error.summary + (f" ({error.observed})" if error.observed else "")


def describe_restores(starts: Iterable[Start]) -> str:
    """Say how often a guest became clean again, by which way, and how long that took in the middle."""
    starts = list(starts)
    parts = []
    for how, words in _WAYS.items():
        seconds = [start.seconds for start in starts if start.how is how]
        if seconds:
            parts.append(f"{len(seconds)} {words} ({1000 * statistics.median(seconds):.0f} ms)")
    times = "once" if len(starts) == 1 else f"{len(starts)} times"
    return f"restored {times}: {', '.join(parts)}"
