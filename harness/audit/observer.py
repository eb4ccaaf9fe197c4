# SPDX-License-Identifier: MIT
"""What an audit sees beside the ledger: memory from outside, the kernel's own words, what hides from both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from harness.audit.book import Book, Violation
from harness.audit.outside import Outside
from harness.audit.sysfs import BoundDevice, past_the_dma_api
from harness.errors import HarnessError
from harness.forensics import KernelLog, Splat, deduplicated, splats
from harness.kconfig import options_on
from harness.link import Guest
from harness.oracle import Oracle, OracleError
from harness.vm import QmpRefused

_LOG_LINES = 100_000  # as many as the ring has


class Observations:
    """Collects them over an audit.

    Attributes:
        looks: how often the machine was looked at from outside.
        unseen: why it could not be looked at; ``""`` if it could.
        bypassing: virtio devices of the driver that do their DMA past the DMA API.
        zeroing: the kernel zeroes every page it hands out.
        violations: what was seen from outside, each once.
    """

    def __init__(self, guest: Guest, oracle: Oracle) -> None:
        """Name the guest and who looks at it from outside."""
        self._guest = guest
        self._outside = Outside(guest, oracle)
        self._seen: dict[tuple[str, int, int], Violation] = {}
        self._since = ""
        self._console = guest.machine.console.mark()
        self._log: tuple[str, ...] = ()
        self._heard = ""
        self.looks = 0
        self.unseen = ""
        self.bypassing: tuple[str, ...] = ()
        self.zeroing = False

    @property
    def violations(self) -> list[Violation]:
        """What is wrong as seen from outside."""
        return list(self._seen.values())

    def begin(self) -> None:
        """Remember how things are before the driver comes."""
        self._console = self._guest.machine.console.mark()
        # The last one there is: the newest may be one that is just being written, and is not read then.
        self._since = next(reversed(self.log(_LOG_LINES)), "")
        self.zeroing = _zeroing(self._guest)
        self._try(self._outside.begin)

    def look(self, book: Book, catch_up: Callable[[], None]) -> None:
        """Judge what is alive now.

        Args:
            book: brought up to date by *catch_up* while the machine stands still.
            catch_up: does that.

        Raises:
            GuestFailure: the guest is dead.
        """
        catch_up()
        self._outside.drain_by(catch_up)
        self._try(lambda: self._note(self._outside.look(book)))

    def leftovers(self, book: Book, catch_up: Callable[[], None], module: str) -> None:
        """Judge what a module has left behind; it is gone.

        Raises:
            GuestFailure: the guest is dead.
        """
        catch_up()
        self._outside.drain_by(catch_up)
        self._try(lambda: self._note(self._outside.leftovers(book, module)))

    def ask(self, devices: Iterable[BoundDevice]) -> None:
        """Ask what only a living driver's devices tell."""
        self.bypassing = tuple(dict.fromkeys((*self.bypassing, *past_the_dma_api(self._guest, devices))))

    def end(self) -> None:
        """Keep what the kernel has said; also one that is dead."""
        self._log = self.log(_LOG_LINES)
        self._heard = self._guest.machine.console.text(self._console)

    def log(self, count: int) -> tuple[str, ...]:
        """Return the last lines of the kernel's log that came since the audit began, out of guest RAM."""
        if self._log:
            return self._log[-count:]
        found = KernelLog.of(self._guest)
        lines = found.lines(_LOG_LINES) if found is not None else ()
        if self._since in lines:
            lines = lines[lines.index(self._since) + 1 :]
        return lines[-count:]

    def said(self) -> str:
        """Return all that the kernel has said since the audit began: its log, or else its console."""
        lines = self.log(_LOG_LINES)
        return "\n".join(lines) if lines else self._heard or self._guest.machine.console.text(self._console)

    def splats(self) -> tuple[Splat, ...]:
        """Return the kernel's reports about faults since the audit began."""
        found = splats(self.said())
        return tuple(splat for splat in found if splat.kind.is_fault and not splat.consequence)

    def complaints(self) -> tuple[str, ...]:
        """Return the same, a line for each that is different."""
        lines = []
        for splat, times in deduplicated(self.splats()):
            often = f" ({times} times)" if times > 1 else ""
            lines.append(f"{splat.kind.value}: {splat.title}{often}")
        return tuple(lines)

    def _note(self, seen: Sequence[Violation]) -> None:
        self.looks += 1
        for one in seen:
            made = -1 if one.entry is None else one.entry.made.number
            self._seen.setdefault((one.rule, one.event.number, made), one)

    def _try(self, act: Callable[[], object]) -> None:
        """Look; a machine whose state cannot be read costs the look, not the audit."""
        try:
            act()
        except (OracleError, QmpRefused) as error:
            self._guest.machine.check()
            self.unseen = ": ".join(part for part in (error.summary, error.observed) if part)


def _zeroing(guest: Guest) -> bool:
    on = options_on(guest.image.kernel.headers / ".config")
    default = "CONFIG_INIT_ON_ALLOC_DEFAULT_ON" in (on or ())
    try:
        words = guest.read_file("/proc/cmdline").decode().split()
    except HarnessError:
        words = []
    told = [word for word in words if word.startswith("init_on_alloc=")]
    return told[-1].endswith("=1") if told else default
