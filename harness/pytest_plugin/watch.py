# SPDX-License-Identifier: MIT
"""Whose trouble it is: the kernel's log of one guest, cut into what was said during which test.

A mark is written into the log when a test begins and when it ends.  What lies between is that test's; what
comes after the end and before the next beginning is of the test that has ended, as the guest had nobody else
to work for.
"""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.errors import HarnessError
from harness.forensics import Splat, Taint, deduplicated, splats
from harness.forensics.marks import Marks, arrived
from harness.pytest_plugin.names import Names

if TYPE_CHECKING:
    from harness.link import Guest
    from harness.vm import Console

ALIVE_SECONDS: Final = 10.0
"""An idle guest answers in a fraction of a millisecond, one on a host out of breath in some hundred."""

#: A mark is in the log when the guest's answer is there, if its console shows marks at all.  Only the thread
#: that reads the console may be late; a guest whose console shows none costs this once in its life.
_ARRIVAL_SECONDS: Final = 2.0
#: A report that is still being printed has no pause as long as this, on a host that has more to do as well,
#: and ends within the second.
_QUIET_SECONDS: Final = 0.15
_REPORT_SECONDS: Final = 1.0
#: Of what a guest that floods its console says beyond this, only both ends are looked at.
_SEARCHED_MAX: Final = 16 << 20
_TEST_SHOWN: Final = 56
#: What loading a module sets, and what user space asks for (kernel/module/main.c: check_modinfo).
_NO_TROUBLE: Final = (
    Taint.OOT_MODULE | Taint.UNSIGNED_MODULE | Taint.USER | Taint.PROPRIETARY_MODULE | Taint.CRAP | Taint.TEST
)

_NONE: Final = Taint(0)
#: Marks may come in the middle of a report, of which they are no part.
_MARK_LINES: Final = re.compile(r"^.*iobmd-test: \d+ (?:begins|ends|goes on).*\n?", re.MULTILINE)
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Trouble:
    """What went wrong in a kernel in some span of time; false where nothing did.

    Attributes:
        splats: its reports about its own faults, in order; panics that only follow from one are not here.
        taint: taint flags that appeared.
        said: the console of that span.
        died: why the guest cannot be asked any more, if so.
    """

    splats: tuple[Splat, ...] = ()
    taint: Taint = _NONE
    said: str = ""
    died: HarnessError | None = None

    def __bool__(self) -> bool:
        return bool(self.splats or self.taint)

    @property
    def title(self) -> str:
        """The first trouble in a line."""
        if self.splats:
            first = self.splats[0]
            more = len(deduplicated(self.splats)) - 1
            return f"{first.kind.value}: {first.title}" + (f" (and {more} more)" if more else "")
        return f"new taint: {', '.join(self.taint.names)}"

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the different reports."""
        return tuple(splat.fingerprint for splat, _ in deduplicated(self.splats))

    def render(self, *, tail: int = 12) -> str:
        """Every different report once, decoded; and the new flags."""
        parts = []
        for splat, times in deduplicated(self.splats):
            often = f"({times} times) " if times > 1 else ""
            parts.append(f"{often}{splat.render(tail=tail)}\n  fingerprint {splat.fingerprint}")
        if self.taint:
            parts.append(f"new taint: {', '.join(self.taint.names)}")
        return "\n\n".join(parts)

    def __add__(self, other: Trouble) -> Trouble:
        return Trouble(
            self.splats + other.splats,
            self.taint | other.taint,
            self.said + other.said,
            self.died or other.died,
        )


class Watch:
    """The log of one guest over all of its lives.

    Args:
        guest: started; its agent answers.

    Attributes:
        names: for the guest's addresses.
    """

    def __init__(self, guest: Guest) -> None:
        self.names = Names(guest)
        self._guest = guest
        self._marks = Marks(guest)
        self._number = 0
        self._open = False
        self._generation = guest.generation
        self._console = guest.machine.console
        self._seen = self._began = self._console.mark()
        self._clean: Taint | None = None
        self._taint = _NONE
        self._shows_marks = True

    @property
    def open(self) -> bool:
        """Whether a test has begun and not ended."""
        return self._open

    def begin(self, test: str) -> Trouble:
        """A test begins: write its mark, which is a sign of life as well.

        Args:
            test: its id.

        Returns:
            What had come up since the last look; it is of the test before.

        Raises:
            HarnessError: the guest does not answer.
        """
        self._follow()
        self._number = next(_NUMBERS)
        before, since = self._put(f"iobmd-test: {self._number} begins {test[-_TEST_SHOWN:]}")
        if self._clean is None:
            self._clean = self._taint = before
        late = self._console.raw(self._seen, since - self._seen).decode("utf-8", "replace")
        fresh = before & ~self._taint
        self._taint, self._seen, self._began, self._open = before, since, since, True
        return self._trouble(late, fresh)

    def end(self, *, ask: bool = True) -> Trouble:
        """The test ends: what came up since `begin`, or since the last look.

        Args:
            ask: write the mark; else the guest is known to be beyond that.
        """
        self._open = False
        died: HarnessError | None = None
        after = self._taint
        if ask:
            try:
                after, _ = self._put(f"iobmd-test: {self._number} ends")
            except HarnessError as error:
                died = error
        return self._look(after, died)

    def look(self) -> Trouble:
        """What has come up since the last look, by what the console shows; asks the guest only then."""
        if self._console is self._guest.machine.console and self._console.mark() == self._seen:
            return Trouble()
        if not any(splat.kind.is_fault for splat in splats(self._unseen())):
            return self._look(self._taint, None)
        try:
            return self._look(self._put(f"iobmd-test: {self._number} goes on")[0], None)
        except HarnessError as error:
            return self._look(self._taint, error)

    def renew(self) -> None:
        """The guest was restored: what its console says from here on is new."""
        self._console = self._guest.machine.console
        self._seen = self._began = self._console.mark()
        self._generation = self._guest.generation
        self.names.renew()
        self._taint = self._clean or _NONE
        self._shows_marks = True

    def said(self) -> str:
        """The console since the test began; of a flood both ends."""
        now = self._guest.machine.console
        before = _searched(self._console, self._began)
        return before + (_searched(now, 0) if now is not self._console else "")

    def _put(self, text: str) -> tuple[Taint, int]:
        """Write a mark and wait until the console has it: everything before it is there then.

        Returns:
            The taint flags before it, and the byte of the log where it begins.
        """
        self._guest.machine.check()
        console = self._guest.machine.console
        since = console.mark()
        taint = self._marks.put(text, ALIVE_SECONDS * self._guest.deadlines.scale)
        at = arrived(console, text, since, _ARRIVAL_SECONDS) if self._shows_marks else None
        self._shows_marks = at is not None
        return taint, since if at is None else at

    def _look(self, after: Taint, died: HarnessError | None) -> Trouble:
        if died is None and self._generation != self._guest.generation:
            fresh = after & ~(self._clean or _NONE)  # restored meanwhile, to what it was at first
        else:
            fresh = after & ~self._taint
        text = self._unseen()
        if any(splat.kind.is_fault for splat in splats(text)):
            self._settle()
            text = self._unseen()
        self._follow()
        self._seen = self._console.mark()
        self._taint = after
        return self._trouble(text, fresh, died)

    def _settle(self) -> None:
        """Let a report that is being printed come to its end."""
        console = self._guest.machine.console
        end = time.monotonic() + _REPORT_SECONDS
        while time.monotonic() < end and not console.ended:
            if not console.wait_output(_QUIET_SECONDS, since=console.mark()):
                return

    def _unseen(self) -> str:
        now = self._guest.machine.console
        text = _searched(self._console, self._seen)
        return text if now is self._console else text + _searched(now, 0)

    def _follow(self) -> None:
        """Another QEMU may have taken the place of the one before."""
        now = self._guest.machine.console
        if now is not self._console:
            self._console, self._seen, self._began = now, 0, 0
        self._generation = self._guest.generation

    def _trouble(self, text: str, fresh: Taint, died: HarnessError | None = None) -> Trouble:
        text = _MARK_LINES.sub("", text)
        found = _faults(splats(text))
        if found:
            found = _faults(splats(text, lines=self.names.lines))
        return Trouble(found, fresh & ~_NO_TROUBLE, text, died)


def _faults(found: tuple[Splat, ...]) -> tuple[Splat, ...]:
    return tuple(splat for splat in found if splat.kind.is_fault and not splat.consequence)


def _searched(console: Console, since: int) -> str:
    size = console.mark() - since
    if size <= _SEARCHED_MAX:
        return console.text(since)
    half = _SEARCHED_MAX // 2
    head = console.raw(since, half).decode("utf-8", "replace")
    return f"{head}\n{console.text(console.mark() - half)}"
