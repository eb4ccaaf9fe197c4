# SPDX-License-Identifier: MIT
"""The base of every error this project raises on purpose, and the kinds of failure they are.

An error says four things: what was tried, what came back, what to type next, and which evidence was kept.
The class decides the kind, and the kind the exit code of ``iobmd``; the fields decide what a person reads.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum


class FailureKind(Enum):
    """What went wrong, in the one word that every report uses.

    Attributes:
        word: the name in reports and in JUnit's ``failure-kind``.
        exit_code: what ``iobmd`` exits with.
        meaning: one sentence for ``iobmd --help``.
    """

    CLAUSE_BROKEN = ("clause-broken", 1, "a clause of the contract is broken")
    BAD_INPUT = ("bad-input", 2, "what was asked for does not exist or makes no sense")
    HOST_LACKS = ("host-lacks", 2, "this host misses a program, a package or a permission")
    NOT_DONE = ("not-done", 2, "something that had to be built, read or written could not be")
    GUEST_FAILED = ("guest-failed", 3, "the guest failed, and no probe could tell more")
    REFUSED = ("refused", 4, "an operation was carried out and answered with an error nobody expected")
    OPERATION_TIMED_OUT = ("operation-timed-out", 10, "the agent answers, the operation is stuck")
    AGENT_DEAD = ("agent-dead", 11, "the kernel lives, the agent in it does not answer")
    KERNEL_PANICKED = ("kernel-panicked", 12, "the kernel gave up")
    KERNEL_HUNG = ("kernel-hung", 13, "the kernel runs nothing any more, and has not said why")
    KERNEL_TAINTED = ("kernel-tainted", 14, "an oops, a warning or a checker's finding during the test")
    QEMU_DIED = ("qemu-died", 15, "QEMU is gone although nobody asked it to leave")
    QEMU_STUCK = ("qemu-stuck", 16, "QEMU lives, but does not run the guest")
    CHANNEL_BROKEN = (
        "channel-broken",
        17,
        "a channel into the guest was disturbed or closed, both ends live",
    )
    HOST_EXHAUSTED = (
        "host-exhausted",
        18,
        "no memory, disk space, descriptors or processes left on the host",
    )
    HARNESS_BUG = ("harness-bug", 19, "a mistake in the harness itself; its report is in a file")
    NOT_RESTORED = ("not-restored", 20, "a guest out of a snapshot is not the one that went in")
    INTERRUPTED = ("interrupted", 130, "somebody pressed Ctrl-C")

    def __init__(self, word: str, exit_code: int, meaning: str) -> None:
        self.word = word
        self.exit_code = exit_code
        self.meaning = meaning


class Sign(Enum):
    """What a probe says about what it asked."""

    #: It lives.
    LIFE = "life"
    #: It does not show that it lives.
    SILENCE = "silence"
    #: It could not be asked, or the answer means nothing.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Probe:
    """One question to a machine in trouble.

    Attributes:
        name: which probe, for example ``"kernel clock"``.
        question: what it asks.
        answer: what came back.
        verdict: what that says.
        seconds: how long it took.
    """

    name: str
    question: str
    answer: str
    verdict: Sign
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.question} {self.answer} [{self.name}, {self.seconds * 1000:.0f} ms]"


class HarnessError(Exception):
    """Something the harness can name.

    Attributes:
        kind: what kind of failure it is.
        exit_code: what ``iobmd`` exits with when this reaches the top; the kind's.
        summary: one sentence, what went wrong.
        tried: what was being done, or ``""``.
        observed: what came back instead, or ``""``.
        hint: what to type or change next, or ``""``.
        evidence: lines worth reading (console tail, QEMU's stderr, compiler output); may be empty.
        probes: what `harness.forensics.diagnose` asked to find the kind; may be empty.
    """

    kind: FailureKind = FailureKind.NOT_DONE
    exit_code: int = FailureKind.NOT_DONE.exit_code

    def __init_subclass__(cls) -> None:
        """Give every class the exit code of its kind."""
        super().__init_subclass__()
        cls.exit_code = cls.kind.exit_code

    def __init__(
        self,
        summary: str,
        *,
        tried: str = "",
        observed: str = "",
        hint: str = "",
        evidence: Sequence[str] = (),
    ) -> None:
        super().__init__(summary)
        self.summary = summary
        self.tried = tried
        self.observed = observed
        self.hint = hint
        self.evidence = tuple(evidence)
        self.probes: tuple[Probe, ...] = ()

    def call_it(self, kind: FailureKind) -> None:
        """Give this one error another kind than its class has."""
        self.kind, self.exit_code = kind, kind.exit_code

    def __str__(self) -> str:
        parts = [self.summary]
        parts += [f"  {label}: {text}" for label, text in self._labelled() if text]
        parts += [f"  ? {probe}" for probe in self.probes]
        parts += [f"  | {line}" for line in self.evidence]
        return "\n".join(parts)

    def _labelled(self) -> tuple[tuple[str, str], ...]:
        return (("tried", self.tried), ("observed", self.observed), ("hint", self.hint))


class BadInput(HarnessError):
    """The caller asked for something that does not exist or makes no sense."""

    kind = FailureKind.BAD_INPUT


class HostLacks(HarnessError):
    """This host misses a program, a package, space or a permission."""

    kind = FailureKind.HOST_LACKS


class HostExhausted(HostLacks):
    """The host has no memory, disk space, descriptors or processes left; see `named_exhaustion`."""

    kind = FailureKind.HOST_EXHAUSTED


class HarnessBug(HarnessError):
    """A mistake of the harness's own."""

    kind = FailureKind.HARNESS_BUG


class GuestFailure(HarnessError):
    """The guest or QEMU died, hung or stopped making sense."""

    kind = FailureKind.GUEST_FAILED


# What ran out, and what to do about it.  EAGAIN is none of these: only a fork means a lack by it.
_SPENT = {
    errno.ENOSPC: ("space on the disk", "free some space: df -h says where"),
    errno.EDQUOT: ("space in this user's quota", "free some space, or ask for a larger quota"),
    errno.ENOMEM: ("memory", "end other machines, or give the guest less memory (--memory)"),
    errno.EMFILE: ("file descriptors for this process", "ulimit -n shows the limit; raise it"),
    errno.ENFILE: ("file descriptors on this host", "sysctl fs.file-max shows the limit; end other programs"),
}
_FORK = ("processes or threads for this user", "ulimit -u and the control group's pids.max show the limits")


def exhaustion(error: BaseException, doing: str, *, forking: bool = False) -> HostExhausted | None:
    """Return *error* by its name when the host ran out of something; None when it means something else.

    Args:
        error: an OSError, a MemoryError, or what `threading` raises when it gets no thread.
        doing: what was being done, for people.
        forking: a process was being made, so that EAGAIN means that there may be no more (fork(2)).
    """
    lack: tuple[str, str] | None = None
    if isinstance(error, MemoryError):
        lack = _SPENT[errno.ENOMEM]
    elif isinstance(error, OSError) and error.errno is not None:
        lack = _SPENT.get(error.errno)
        if error.errno == errno.EAGAIN and forking:
            lack = _FORK
    elif isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        lack = _FORK
    if lack is None:
        return None
    what, hint = lack
    return HostExhausted(
        f"this host has no {what} left", tried=doing, observed=str(error) or type(error).__name__, hint=hint
    )


def interruption(error: BaseException) -> KeyboardInterrupt | SystemExit | None:
    """Return the Ctrl-C or the signal during whose handling *error* came up; None when there was none."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        if isinstance(at, KeyboardInterrupt | SystemExit):
            return at
        seen.add(id(at))
        at = at.__cause__ or at.__context__
    return None


#: What programs say of the same lacks, in the C locale (strerror(3)); EAGAIN's text, too, comes from forks.
_WORDS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Cannot allocate memory": errno.ENOMEM,
    "Too many open files in system": errno.ENFILE,
    "Too many open files": errno.EMFILE,
    "Resource temporarily unavailable": errno.EAGAIN,
}


def exhaustion_told(lines: Iterable[str], doing: str) -> HostExhausted | None:
    """Return what a program's own words say the host ran out of; None when they say something else.

    Args:
        lines: what it printed.
        doing: what it was to do, for people.
    """
    for line in lines:
        for words, number in _WORDS.items():
            if words in line:
                return exhaustion(OSError(number, line.strip()), doing, forking=True)
    return None


@contextmanager
def named_exhaustion(doing: str, *, forking: bool = False) -> Iterator[None]:
    """Run the block; where the host runs out of something in it, say so.

    Args:
        doing: what the block does, for people.
        forking: as for `exhaustion`.

    Raises:
        HostExhausted: instead of the OSError, MemoryError or RuntimeError that said so; others pass.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        named = exhaustion(error, doing, forking=forking)
        if named is None:
            raise
        raise named from error
