# SPDX-License-Identifier: MIT
"""One report of the kernel about its own trouble, taken apart."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

#: Frames of the call trace that tell one splat from another; what is below is the way into the kernel.
_TELLING_FRAMES: Final = 8
_TAIL_LINES: Final = 12
#: Numbers that are different every time; a line number is not, and neither is a part of a name.
_NUMBER: Final = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-f]{8,}\b|(?<!\.[chS]:)(?<![\w.+-])\d+")


class SplatKind(Enum):
    """What the kernel complains about; the value is how people call it."""

    PANIC = "kernel panic"
    #: A fault in the kernel that killed the task: page fault, general protection, invalid opcode.
    OOPS = "oops"
    #: BUG(), and every "BUG: " that has no kind of its own: sleeping in atomic context, bad page state.
    BUG = "kernel bug"
    WARNING = "warning"
    KASAN = "KASAN finding"
    KFENCE = "KFENCE finding"
    KCSAN = "data race"
    KMSAN = "KMSAN finding"
    UBSAN = "undefined behaviour"
    #: SLUB's own consistency checks ("BUG kmalloc-64 (Not tainted): Redzone overwritten").
    SLAB = "corrupted slab"
    #: Lock dependencies, and RCU used where it may not be.
    LOCKDEP = "lock validator finding"
    HUNG_TASK = "hung task"
    RCU_STALL = "RCU stall"
    SOFT_LOCKUP = "soft lockup"
    HARD_LOCKUP = "hard lockup"
    DMA_API = "DMA API misuse"
    WORKQUEUE = "workqueue lockup"
    #: The out-of-memory killer ran.
    OUT_OF_MEMORY = "out of memory"
    ALLOCATION_FAILED = "failed allocation"
    #: A vCPU's backtrace, asked for by an NMI or sysrq-l; or an NMI nobody expected.
    NMI = "backtrace"
    #: A task's stack, asked for by sysrq-t or sysrq-w.
    TASK = "task"

    @property
    def is_fault(self) -> bool:
        """Whether the kernel or one of its modules did wrong; the others are answers and shortages."""
        return self not in _NO_FAULTS


_NO_FAULTS: Final = {
    SplatKind.OUT_OF_MEMORY,
    SplatKind.ALLOCATION_FAILED,
    SplatKind.NMI,
    SplatKind.TASK,
}


@dataclass(frozen=True)
class Frame:
    """One function on a stack.

    Attributes:
        symbol: the function; a bare address such as ``0x0`` where the kernel knew none.
        offset: bytes from its start; for a caller, of the instruction after the call.
        size: bytes of the function, as kallsyms counts them: up to the next symbol.
        module: whose it is, ``""`` for the kernel itself.
        sure: False for what the kernel marks with ``?``: found on the stack, but not by the unwinder.
        source: ``"iobmd_map.c:123"``, with what was inlined there; ``""`` where no line table knew it.
        exact: `offset` is that of an instruction that was interrupted, not of the one after a call.
    """

    symbol: str
    offset: int = 0
    size: int = 0
    module: str = ""
    sure: bool = True
    source: str = ""
    exact: bool = False

    @property
    def place(self) -> str:
        """As the kernel writes it: ``symbol+0x12/0x40 [module]``."""
        where = f"{self.symbol}+{self.offset:#x}/{self.size:#x}" if self.size else self.symbol
        return f"{where} [{self.module}]" if self.module else where

    def __str__(self) -> str:
        return f"{'' if self.sure else '? '}{self.place}{'  ' + self.source if self.source else ''}"


@dataclass(frozen=True)
class Stack:
    """One of the stacks in a splat.

    Attributes:
        title: the line before it: ``Call Trace``, ``Allocated by task 97``, ``stack backtrace``.
        frames: innermost first.
    """

    title: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Splat:
    """One report.

    Attributes:
        kind: what it is about.
        title: its first telling line, the kernel's words; a warning's own message is part of it.
        cpu: number of the CPU that reports, or None where the report does not say.
        pid: of the task that ran, or None.
        comm: that task's name, or ``""``.
        rip: the instruction it happened at, or None.
        frames: the call trace, innermost first, without `rip`; all of what there is of a cut one.
        registers: of the kernel where it happened, by lower-case name: ``rax``, ``rip`` is not among them.
        text: every line of it, as the kernel sent them.
        fingerprint: the same for the same trouble in the same build of the kernel and its modules.
        stacks: every stack in it; `frames` are those of one.
        consequence: a panic that only follows from the splat before it (``oops=panic``, ``panic_on_warn``).
    """

    kind: SplatKind
    title: str
    cpu: int | None = None
    pid: int | None = None
    comm: str = ""
    rip: Frame | None = None
    frames: tuple[Frame, ...] = ()
    registers: Mapping[str, int] = field(default_factory=dict)
    text: str = ""
    fingerprint: str = ""
    stacks: tuple[Stack, ...] = ()
    consequence: bool = False

    def matches(self, pattern: str | re.Pattern[str]) -> bool:
        """Whether a regular expression is found in the title or in a line of the text."""
        regex = re.compile(pattern)
        return any(regex.search(line) for line in (self.title, *self.text.splitlines()))

    def render(self, *, tail: int = _TAIL_LINES) -> str:
        """What a person needs: title, where, who, the decoded call trace, and the first raw lines.

        Args:
            tail: raw lines to show at most; 0: none.

        Returns:
            Lines, without a line break at the end.
        """
        lines = [f"{self.kind.value}: {self.title}"]
        who = [f"CPU {self.cpu}"] if self.cpu is not None else []
        who += [f"{self.comm or 'task'}[{self.pid}]"] if self.pid is not None else []
        if who:
            lines.append(f"  on  {', '.join(who)}")
        if self.rip is not None:
            lines.append(f"  at  {self.rip}")
        lines += [f"      {text}" for text in _shown(self.frames)]
        for stack in self.stacks:
            if stack.frames != self.frames:
                lines.append(f"  {stack.title}:")
                lines += [f"      {text}" for text in _shown(stack.frames)]
        raw = self.text.splitlines()
        if tail and raw:
            lines.append("  raw:")
            lines += [f"    | {line}" for line in raw[:tail]]
            if len(raw) > tail:
                lines.append(f"    | ... and {len(raw) - tail} more lines")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.render(tail=0)


def deduplicated(splats: Iterable[Splat]) -> tuple[tuple[Splat, int], ...]:
    """The different ones in order of their first appearance, each with how often it came."""
    first: dict[str, Splat] = {}
    counts: dict[str, int] = {}
    for splat in splats:
        first.setdefault(splat.fingerprint, splat)
        counts[splat.fingerprint] = counts.get(splat.fingerprint, 0) + 1
    return tuple((splat, counts[mark]) for mark, splat in first.items())


def fingerprint(kind: SplatKind, title: str, rip: Frame | None, frames: Iterable[Frame]) -> str:
    """What stays the same when the same thing happens again: no address, number, task or CPU."""
    certain = [frame for frame in frames if frame.sure]
    trace = [f"{frame.symbol} {frame.module}" for frame in certain[:_TELLING_FRAMES]]
    place = rip.place if rip is not None else ""
    parts = (kind.name, _NUMBER.sub("N", title), place, *trace)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _shown(frames: tuple[Frame, ...]) -> list[str]:
    """The frames the unwinder is sure of; all of them where it was sure of none.  Repeats are folded."""
    certain = [frame for frame in frames if frame.sure] or list(frames)
    shown: list[str] = []
    at = 0
    while at < len(certain):
        end = at + 1
        while end < len(certain) and certain[end] == certain[at]:
            end += 1
        shown.append(f"{certain[at]}{f'  ({end - at} times)' if end - at > 1 else ''}")
        at = end
    return shown
