# SPDX-License-Identifier: MIT
"""From "no answer" to the party that does not answer.

The probes go from outside to inside, QEMU's process first and the agent last, and stop where the case is
clear.  What each was asked and said stands in the error, so that a reader can disagree.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from harness.errors import (
    FailureKind,
    GuestFailure,
    HarnessBug,
    HarnessError,
    HostExhausted,
    Probe,
    Sign,
    exhaustion,
    named_exhaustion,
)
from harness.forensics.kernel_log import KernelLog
from harness.forensics.probes import Probes
from harness.forensics.vcpus import Activity, activities
from harness.link import AgentDead, ChannelBroken, KernelHung, OperationTimedOut, RequestTimedOut
from harness.vm import GuestSilent, MachineFailure, QemuDied, QemuStuck, QmpLost, QmpSilent, Scene

if TYPE_CHECKING:
    from harness.link import Guest

# Seconds of each probe; with the clock's and the link's own ping before they stay below two.
_PROTOCOL_SECONDS: Final = 0.25
_AGENT_SECONDS: Final = 0.2
_PROCESSORS_SECONDS: Final = 0.3
_PROCESSORS_AGAIN_SECONDS: Final = 0.35
_SYSRQ_SECONDS: Final = 0.4
_NMI_SECONDS: Final = 0.35
_BEHIND_SECONDS: Final = 0.4
#: A finding is good for others who wait for the same guest; a guest does not get well by itself that soon.
_FRESH_SECONDS: Final = 2.0
_LOG_LINES: Final = 10
_LOG_WIDTH: Final = 160
#: What says "no answer" and not why.
_OPEN: Final = (RequestTimedOut, GuestSilent, QmpSilent, QmpLost, ChannelBroken)
_CLEAR: Final = (OperationTimedOut, AgentDead, KernelHung)
#: What the kernel's own log may explain.
_LOGGED: Final = (FailureKind.KERNEL_HUNG, FailureKind.AGENT_DEAD)
_VICTIMS: Final = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


@dataclass(frozen=True)
class Finding:
    """What the probes have shown together.

    Attributes:
        kind: what is wrong; None: they do not tell.
        observed: why that is what it is.
        hint: what to do next.
    """

    kind: FailureKind | None
    observed: str
    hint: str = ""


@dataclass
class Signs:
    """What `conclude` goes by: each probe's verdict, UNKNOWN where it was not asked.

    Attributes:
        process: QEMU's process is allowed to run.
        protocol: QEMU answers, and its guest runs.
        status: QEMU's run state; ``""`` when it did not say.
        agent: the agent answers.
        clock: the kernel's clock ticks.
        sysrq: the kernel answers a SysRq key.
        nmi: the kernel answers an NMI.
        prints: the console has grown by itself.
        processors: what each does.
        behind: the agent answers behind a megabyte of nothing.
    """

    process: Sign = Sign.UNKNOWN
    protocol: Sign = Sign.UNKNOWN
    status: str = ""
    agent: Sign = Sign.UNKNOWN
    clock: Sign = Sign.UNKNOWN
    sysrq: Sign = Sign.UNKNOWN
    nmi: Sign = Sign.UNKNOWN
    prints: Sign = Sign.UNKNOWN
    processors: tuple[Activity, ...] = ()
    behind: Sign = Sign.UNKNOWN

    @property
    def kernel_lives(self) -> bool:
        """Whether the kernel takes interrupts."""
        return Sign.LIFE in (self.clock, self.sysrq)


def conclude(signs: Signs) -> Finding:
    """Return what the signs mean; they are looked at from the outside to the inside."""
    if signs.process is Sign.SILENCE:
        return Finding(
            FailureKind.QEMU_STUCK,
            "QEMU's process was stopped from outside",
            "kill -CONT lets it go on; a debugger that is attached stops it as well",
        )
    if signs.protocol is Sign.SILENCE and signs.status:
        return Finding(
            FailureKind.QEMU_STUCK,
            f"QEMU holds the guest still: its run state is {signs.status!r}",
            "QMP 'cont' lets a paused guest go on; 'internal-error' means that QEMU could not emulate it",
        )
    if signs.agent is Sign.LIFE:
        return Finding(
            FailureKind.OPERATION_TIMED_OUT,
            "the agent answers, the operation is stuck in the kernel",
            "on a slow machine give it a longer deadline; otherwise the console may say more",
        )
    if signs.protocol is Sign.SILENCE and not signs.kernel_lives:
        return Finding(
            FailureKind.QEMU_STUCK,
            "QEMU's process runs, and neither its protocol nor its guest answers",
            "look at QEMU's CPU time and at qemu.log; the host may be overloaded",
        )
    return _living(signs) if signs.kernel_lives else _silent(signs)


def _living(signs: Signs) -> Finding:
    """The agent is silent, QEMU is not to blame, and the kernel takes interrupts."""
    if signs.behind is Sign.LIFE:
        return Finding(
            FailureKind.CHANNEL_BROKEN,
            "the agent waited for the rest of a frame that nobody sent, and took requests for it",
            "something else wrote to the port; the link goes on from here",
        )
    quiet = signs.prints is not Sign.LIFE  # a kernel that prints without end gets on, slowly
    if quiet and {*signs.processors} & {Activity.DEAF, Activity.HALTED}:
        return Finding(
            FailureKind.KERNEL_HUNG,
            "a processor hangs with interrupts off, and what waits for it hangs with it",
            "the vCPU registers say where",
        )
    if quiet and signs.processors and {*signs.processors} <= {Activity.SPINNING, Activity.KERNEL}:
        return Finding(
            FailureKind.KERNEL_HUNG,
            "the kernel takes interrupts, but every processor stays in it: no process gets to run",
            "the vCPU registers say where it loops",
        )
    return Finding(
        FailureKind.AGENT_DEAD,
        "the kernel lives, the agent does not answer",
        "the agent loops or is blocked; if the guest prints without end, that is what it is busy with",
    )


def _silent(signs: Signs) -> Finding:
    """The agent is silent, QEMU is not to blame, and the kernel shows no life."""
    if Sign.SILENCE not in (signs.clock, signs.sysrq) or Activity.USER in signs.processors:
        return Finding(None, "the agent is silent, and the kernel could not be asked")
    if signs.nmi is Sign.LIFE:
        observed = "the kernel's clock stands still and only an NMI reaches it: it hangs with interrupts off"
    elif Sign.UNKNOWN in (signs.sysrq, signs.nmi):
        observed = "the kernel shows no life; not every probe could ask it"
    else:
        observed = "the kernel answers nothing: its clock stands still, and neither SysRq nor NMI is answered"
    return Finding(FailureKind.KERNEL_HUNG, observed, "the vCPU registers say where the processors are")


@dataclass
class _Case:
    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = 0.0
    generation: int = -1
    finding: Finding | None = None
    probes: tuple[Probe, ...] = ()
    log: tuple[str, ...] = ()


_CASES: Final[WeakKeyDictionary[Any, _Case]] = WeakKeyDictionary()
_CASES_LOCK: Final = threading.Lock()


def diagnose(guest: "Guest", error: Exception) -> HarnessError:
    """Find out what is wrong with *guest*, now, and return the error that says so.

    Takes two seconds at most, times the guest's ``--timeout-scale``, and much less where the case is clear.
    The guest is left as it was found, but for a help line of SysRq and an NMI's complaint on its console.

    Args:
        guest: as it was left by what failed.
        error: what failed.

    Returns:
        *error* itself where it says all; otherwise one of the right class, with the answers of the probes in
        ``probes`` and *error* as its cause.
    """
    if not isinstance(error, HarnessError):
        return _foreign(error)
    if error.probes or isinstance(error, _CLEAR):
        return error
    if isinstance(error, QemuDied):
        return _killed_for_memory(error) or error
    if not isinstance(error, _OPEN):
        return error
    try:
        case = _examined(guest, error)
    except GuestFailure as worse:  # the machine is dead: that explains everything
        return _caused(_killed_for_memory(worse) if isinstance(worse, QemuDied) else None, worse, error)
    return _named(guest, error, case)


@contextmanager
def diagnosed(guest: "Guest") -> Iterator[None]:
    """Run the block; a failure of the guest in it leaves the block by its right name.

    Raises:
        HarnessError: what `diagnose` makes of a GuestFailure; HostExhausted where the host ran out of
            something; everything else passes.
    """
    try:
        with named_exhaustion("working with a guest"):
            yield
    except GuestFailure as error:
        better = diagnose(guest, error)
        if better is error:
            raise
        raise better from error


def _foreign(error: Exception) -> HarnessError:
    named: HarnessError | None = exhaustion(error, "working with the guest")
    if named is None:
        named = HarnessBug(f"{type(error).__name__}: {error}")
    named.__cause__ = error
    return named


def _examined(guest: "Guest", error: HarnessError) -> _Case:
    """Ask the probes, or take what they said to another thread a moment ago."""
    with _CASES_LOCK:
        case = _CASES.setdefault(guest, _Case())
    with case.lock:
        known = isinstance(error, RequestTimedOut) and case.generation == guest.generation
        if not known or time.monotonic() > case.until:
            guest.machine.check()
            probes = Probes(guest, guest.deadlines.scale)
            case.finding = conclude(_signs(probes))
            probes.work()
            guest.machine.check()
            case.probes = tuple(probes.found)
            log = KernelLog.of(guest) if case.finding.kind in _LOGGED else None
            case.log = log.lines(_LOG_LINES) if log is not None else ()
            case.generation = guest.generation
            case.until = time.monotonic() + _FRESH_SECONDS
        return case


def _signs(probes: Probes) -> Signs:
    """Ask until the case is clear."""
    signs = Signs(process=probes.process())
    if signs.process is Sign.SILENCE:
        return signs
    signs.protocol, signs.status = probes.protocol(_PROTOCOL_SECONDS), probes.status
    if signs.protocol is Sign.SILENCE and signs.status:
        return signs
    # Also when the link has asked before: the interrupt of this ping sets the clock of a kernel that sleeps.
    signs.agent = probes.agent(_AGENT_SECONDS)
    if signs.agent is Sign.LIFE:
        return signs
    # What a protocol that answers has left of its time, the slower question may take: QEMU's own thread waits
    # for a processor like others.
    spare = _PROTOCOL_SECONDS if signs.protocol is Sign.LIFE else 0.0
    probes.processors(_PROCESSORS_SECONDS + spare)
    signs.processors = tuple(activities(probes.looks).values())
    signs.prints = probes.console()
    signs.sysrq = probes.sysrq(_SYSRQ_SECONDS)
    # After SysRq: a kernel in which everything slept was woken by it, and its clock was set.
    signs.clock = probes.clock()
    if signs.kernel_lives:
        if not signs.processors:  # one that spins has to stop for the question; a busy host lets it wait
            probes.processors(_PROCESSORS_AGAIN_SECONDS)
            signs.processors = tuple(activities(probes.looks).values())
        signs.behind = probes.behind(_BEHIND_SECONDS)
    else:
        signs.nmi = probes.nmi(_NMI_SECONDS)
    return signs


def _named(guest: "Guest", error: HarnessError, case: _Case) -> HarnessError:
    finding = case.finding
    if finding is None or finding.kind is None or isinstance(error, ChannelBroken | QmpLost):
        error.probes = case.probes
        return error
    if isinstance(error, QmpSilent) and finding.kind is not FailureKind.QEMU_STUCK:
        error.probes = case.probes
        return error
    result = _of_kind(guest, error, finding)
    result.tried = error.tried
    result.probes = case.probes
    result.evidence += tuple(f"kernel log: {line[:_LOG_WIDTH]}" for line in case.log)
    result.__cause__ = error
    return result


def _of_kind(guest: "Guest", error: HarnessError, finding: Finding) -> HarnessError:
    if finding.kind is FailureKind.QEMU_STUCK:
        scene = error.scene if isinstance(error, MachineFailure) else _scene(guest)
        return QemuStuck(error.summary, scene=scene, observed=finding.observed, hint=finding.hint)
    if finding.kind is FailureKind.CHANNEL_BROKEN:
        return ChannelBroken(
            error.summary, observed=finding.observed, hint=finding.hint, evidence=error.evidence
        )
    classes: dict[FailureKind | None, type[RequestTimedOut]] = {
        FailureKind.OPERATION_TIMED_OUT: OperationTimedOut,
        FailureKind.AGENT_DEAD: AgentDead,
        FailureKind.KERNEL_HUNG: KernelHung,
    }
    return classes[finding.kind](
        error.summary,
        agent_answers=finding.kind is FailureKind.OPERATION_TIMED_OUT,
        observed=finding.observed,
        hint=finding.hint,
        evidence=error.evidence,
    )


def _scene(guest: "Guest") -> Scene:
    machine = guest.machine
    return Scene(
        console=machine.console.tail(),
        argv=machine.argv,
        repro=machine.repro_command(),
        workdir=machine.workdir,
    )


def _caused(better: HarnessError | None, worse: HarnessError, cause: Exception) -> HarnessError:
    result = better or worse
    if result is not cause and result.__cause__ is None:
        result.__cause__ = cause
    return result


def _killed_for_memory(error: QemuDied) -> HostExhausted | None:
    """The host's answer to a lack of memory is a SIGKILL for the largest process: QEMU."""
    if error.signal_name != "SIGKILL" or _victims() <= _VICTIMS_BEFORE:
        return None
    named = HostExhausted(
        "this host ran out of memory and killed QEMU for it",
        tried=error.tried,
        observed=error.observed,
        hint="give the guest less memory (--memory), run fewer at a time, or raise the control group's limit",
        evidence=error.evidence,
    )
    named.__cause__ = error
    return named


def _victims() -> int:
    """How many processes were killed for lack of memory in this control group, and on this host."""
    total = 0
    for file in _VICTIMS:
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total


_VICTIMS_BEFORE: Final = _victims()
