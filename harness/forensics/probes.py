# SPDX-License-Identifier: MIT
"""Questions to a guest in trouble, from the cheap and certain to those that disturb it.

Only the ping needs the agent.  QEMU's process is looked at in ``/proc``, the kernel's clock in the guest's
memory, the processors in QEMU; SysRq and NMI are asked for through devices.  None waits longer than it is
given, and none raises what merely means "no".
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from harness.deadlines import stalled
from harness.errors import BadInput, Probe, Sign
from harness.forensics import vcpus
from harness.forensics.kernel_log import KernelLog
from harness.vm import GuestSilent, QmpFailure, QmpSilent, process_stat

if TYPE_CHECKING:
    from harness.link import Guest

_PAGE: Final = 4096
_LOOKS: Final = 6
#: Between two looks at the processors: a tick of the slowest kernel (CONFIG_HZ=100), so that one who waits
#: for a tick has had it.
_BETWEEN_LOOKS: Final = 0.012
#: How long the clock is watched at least; the slowest tick comes every 10 ms.
_CLOCK_SECONDS: Final = 0.08
_CLOCK_LOOK_SECONDS: Final = 0.01
#: What the kernel says to an unknown SysRq key, and 'h' is none (drivers/tty/sysrq.c: __handle_sysrq).
_SYSRQ_KEY: Final = b"h"
_SYSRQ_ANSWER: Final = r"(?i)sysrq ?: HELP"
#: arch/x86/kernel/nmi.c: unknown_nmi_error, and what pci_serr_error and io_check_error say.
_NMI_ANSWER: Final = r"NMI received|NMI: |NMI watchdog|Dazed and confused"
_NMI_LOOK_SECONDS: Final = 0.05
_NO_ADDRESS: Final = "is not known: the guest never answered, or its kernel has no such thing"


@dataclass
class Probes:
    """The probes of one guest, and what they have found.

    Attributes:
        guest: who is asked.
        scale: what every wait is multiplied by.
        found: the answers so far, in order.
        process_state: the letter of ``/proc/PID/stat``; ``""`` before `process`.
        status: QEMU's run state; ``""`` when it did not say.
        looks: at the processors.
    """

    guest: "Guest"
    scale: float = 1.0
    found: list[Probe] = field(default_factory=list)
    process_state: str = ""
    status: str = ""
    looks: tuple[vcpus.Look, ...] = ()

    def __post_init__(self) -> None:
        self._cpu_time = 0.0
        self._first_clock = self._clock_page()
        self._first_mark = self.guest.machine.console.mark()

    def process(self) -> Sign:
        """Whether QEMU's process executes anything."""

        def ask() -> tuple[str, Sign]:
            self.process_state, self._cpu_time = process_stat(self.guest.machine.pid)
            if not self.process_state:
                return "no: there is no such process", Sign.SILENCE
            stopped = self.process_state in "Tt"
            word = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "in the host's kernel"}
            answer = word.get(self.process_state, "runs or waits")
            return f"{answer} (state {self.process_state})", Sign.SILENCE if stopped else Sign.LIFE

        return self._ask("QEMU's process", "Is QEMU allowed to run?", ask)

    def protocol(self, seconds: float) -> Sign:
        """Whether QEMU answers on its protocol, and whether it lets the guest run."""

        def ask() -> tuple[str, Sign]:
            try:
                told = self._status(seconds * self.scale)
            except QmpSilent:
                return "silence", Sign.SILENCE
            except QmpFailure as error:
                return f"cannot be asked: {error.summary}", Sign.UNKNOWN
            self.status = str(told.get("status", "unknown"))
            return self.status, Sign.LIFE if told.get("running") else Sign.SILENCE

        return self._ask("QMP query-status", "Does QEMU run the guest?", ask)

    def _status(self, wait: float) -> dict[str, Any]:
        """Ask QEMU for its run state, once more where the host was out of breath the first time."""
        since, qmp = time.monotonic(), self.guest.machine.qmp
        try:
            told: dict[str, Any] = qmp.ask("query-status", timeout=wait)
        except QmpSilent:
            if not stalled(since, wait):
                raise
            told = qmp.ask("query-status", timeout=wait)
        return told

    def agent(self, seconds: float) -> Sign:
        """Whether the agent echoes.

        Raises:
            GuestFailure: the machine turned out to be dead.
        """
        return self._echo("ping", "Does the agent answer?", self.guest.link.answers, seconds)

    def behind(self, seconds: float) -> Sign:
        """Whether the agent echoes once it has been sent as much as a frame can hold.

        Raises:
            GuestFailure: the machine turned out to be dead.
        """
        question = "Does the agent wait for the rest of a frame?"
        return self._echo("ping behind a megabyte", question, self.guest.link.answers_behind, seconds)

    def clock(self) -> Sign:
        """Whether the kernel's clock has gone on since the first probe, or does so now."""

        def ask() -> tuple[str, Sign]:
            if self._first_clock is None:
                return f"where it is {_NO_ADDRESS}", Sign.UNKNOWN
            end = time.monotonic() + _CLOCK_SECONDS * self.scale
            while True:
                if self._clock_page() not in (None, self._first_clock):
                    return "yes", Sign.LIFE
                if time.monotonic() >= end:
                    return "it stands still, as it also does while everything sleeps", Sign.SILENCE
                time.sleep(_CLOCK_LOOK_SECONDS)  # sampling: there is nothing to wait for

        return self._ask("kernel clock in RAM", "Does the kernel's clock tick?", ask)

    def processors(self, seconds: float) -> Sign:
        """What the processors do; LIFE when one idles or runs a process."""

        def ask() -> tuple[str, Sign]:
            looks: list[vcpus.Look] = []
            end = time.monotonic() + seconds * self.scale
            try:
                for turn in range(_LOOKS):
                    if turn:
                        time.sleep(_BETWEEN_LOOKS)  # sampling: there is nothing to wait for
                    command = {"command-line": "info registers -a"}
                    left = end - time.monotonic()
                    if left <= 0:
                        break
                    told = self.guest.machine.qmp.ask("human-monitor-command", command, timeout=left)
                    looks += vcpus.parse(str(told))
            except QmpFailure as error:
                if not looks:
                    return f"cannot be asked: {error.summary}", Sign.UNKNOWN
            self.looks = tuple(looks)
            if not looks:
                return "QEMU does not say", Sign.UNKNOWN
            lively = {vcpus.Activity.IDLE, vcpus.Activity.USER} & {*vcpus.activities(looks).values()}
            return vcpus.describe(looks), Sign.LIFE if lively else Sign.SILENCE

        return self._ask("vCPU registers", "What do the processors do?", ask)

    def sysrq(self, seconds: float) -> Sign:
        """Whether the kernel takes an interrupt of its serial port and answers a SysRq key.

        Raises:
            GuestFailure: the machine turned out to be dead.
        """

        def ask() -> tuple[str, Sign]:
            machine, wait = self.guest.machine, seconds * self.scale
            mark = machine.console.mark()
            try:
                machine.qmp.ask("chardev-send-break", {"id": "console"}, timeout=wait)
            except QmpFailure as error:
                return f"cannot be asked: {error.summary}", Sign.UNKNOWN
            try:
                machine.console.send(_SYSRQ_KEY, wait)
                machine.console.wait_for(_SYSRQ_ANSWER, wait, since=mark)
            except GuestSilent:
                return f"silence for {wait:.2g} s", Sign.SILENCE
            return "yes, on the console", Sign.LIFE

        return self._ask("SysRq by serial BREAK", "Does the kernel take interrupts?", ask)

    def nmi(self, seconds: float) -> Sign:
        """Whether the kernel takes a non-maskable interrupt; it says so in its log, if not on the console.

        Raises:
            GuestFailure: the machine turned out to be dead.
        """

        def ask() -> tuple[str, Sign]:
            machine, wait = self.guest.machine, seconds * self.scale
            mark, before = machine.console.mark(), self._said_of_nmi()
            try:
                machine.qmp.ask("inject-nmi", timeout=wait)
            except QmpFailure as error:
                return f"cannot be asked: {error.summary}", Sign.UNKNOWN
            end = time.monotonic() + wait
            while True:
                since = time.monotonic()
                try:
                    machine.console.wait_for(_NMI_ANSWER, _NMI_LOOK_SECONDS, since=mark)
                except GuestSilent:
                    end += stalled(since, _NMI_LOOK_SECONDS)
                else:
                    return "yes, on the console", Sign.LIFE
                # With interrupts off nothing said in an NMI reaches the console (printk_safe.c).
                if self._said_of_nmi() - before:
                    return "yes, in the kernel's log in RAM", Sign.LIFE
                if time.monotonic() >= end:
                    return f"silence for {wait:.2g} s", Sign.SILENCE

        return self._ask("NMI", "Does the kernel take a non-maskable interrupt?", ask)

    def console(self) -> Sign:
        """Whether the guest has printed since the first probe, our own questions aside."""

        def ask() -> tuple[str, Sign]:
            printed = self.guest.machine.console.mark() - self._first_mark
            return (f"{printed} bytes", Sign.LIFE) if printed else ("nothing", Sign.SILENCE)

        return self._ask("console", "What was printed meanwhile?", ask)

    def work(self) -> Sign:
        """How much processor time QEMU got since `process`."""

        def ask() -> tuple[str, Sign]:
            _, now = process_stat(self.guest.machine.pid)
            spent = max(0.0, now - self._cpu_time)
            return f"{spent:.2f} s", Sign.LIFE if spent else Sign.SILENCE

        return self._ask("QEMU's CPU time", "How much processor time did QEMU get meanwhile?", ask)

    def _echo(self, name: str, question: str, answers: Callable[[float], bool], seconds: float) -> Sign:
        wait = seconds * self.scale

        def ask() -> tuple[str, Sign]:
            return ("yes", Sign.LIFE) if answers(wait) else (f"silence for {wait:.2g} s", Sign.SILENCE)

        return self._ask(name, question, ask)

    def _ask(self, name: str, question: str, ask: Callable[[], tuple[str, Sign]]) -> Sign:
        before = time.monotonic()
        answer, verdict = ask()
        self.found.append(Probe(name, question, answer, verdict, time.monotonic() - before))
        return verdict

    def _clock_page(self) -> bytes | None:
        address = self.guest.vitals.clock
        if address is None:
            return None
        try:
            return self.guest.machine.ram.read(address, _PAGE)
        except BadInput:
            return None  # the machine is closed

    def _said_of_nmi(self) -> frozenset[str]:
        log = KernelLog.of(self.guest)
        return frozenset() if log is None else log.said("NMI")
