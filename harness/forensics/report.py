# SPDX-License-Identifier: MIT
"""A report of the kernel while its lines come in, and what is read out of them."""

import re
from dataclasses import dataclass, field, replace
from typing import Final

from harness.forensics.headers import Header
from harness.forensics.klog import Line
from harness.forensics.splat import Frame, Splat, SplatKind, Stack, fingerprint

_LINES_MAX: Final = 2000
#: Lines of description before the first stack: more than any report has, few enough to lose interest in time.
_CHATTER_MAX: Final = 12

_SYMBOL: Final = r"[A-Za-z_.$][\w.$]*"
_PLACE: Final = rf"(?P<symbol>{_SYMBOL})\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)"
_MODULE: Final = r"(?: \[(?P<module>[\w-]+)(?: [0-9a-f]{8,})?\])?"
_ADDRESS: Final = r"(?P<address>0x[0-9a-f]{1,16})"
_FRAME: Final = re.compile(rf"\s+(?:\[<[0-9a-f]+>\] )?(?P<doubt>\? )?(?:{_PLACE}{_MODULE}|{_ADDRESS})\s*$")
_RIP: Final = re.compile(rf"RIP: (?P<segment>[0-9a-f]{{4}}):(?:{_PLACE}{_MODULE}|{_ADDRESS}|\S*)")
_CPU: Final = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{1,40}?) "
    r"(?:Tainted|Not tainted|Kdump: |$)"
)
_REGISTERS: Final = re.compile(r"(?:R[A-D]X|R[BS]P|R\d\d|FS|CS|CR2|PKRU|DR\d): ")
_REGISTER: Final = re.compile(r"\b([A-Z][A-Z0-9_]{1,7}):\s*(?:[0-9a-f]{4}:)?([0-9a-f]{8,16})\b")
_MARKER: Final = re.compile(r"\s*</?[A-Z#_]+>\s*$")
_RULE: Final = re.compile(r"\s*[=-]{20,}\s*$")
_END: Final = re.compile(r"---\[ end (?:trace|Kernel panic)")
#: mm/kasan/report.c: kasan_non_canonical_hook, about a fault at the address of a shadow.
_SHADOW: Final = re.compile(r"KASAN: [\w-]+ in range ")
#: kernel/dma/debug.c: dump_entry_trace, behind the end of the warning about that mapping.
_MAPPED_AT: Final = re.compile(r"DMA-API: Mapped at:$")
_CALL_TRACE: Final = re.compile(r"\s*Call Trace:")
_USER_SEGMENT: Final = 3

#: Lines that only reports have; once the first stack is through, what is none of them ends the report.
_TYPICAL: Final = re.compile(
    r"RIP: |Code: |(?:R[A-D]X|R[BS]P|R\d\d|FS|CS|CR2|PKRU|DR\d|ORIG_RAX): |\s*Call Trace:|CPU: \d|Tainted: "
    r"|Hardware name: |Workqueue: |Stopper: |Modules linked in:|Last unloaded|PGD |#PF: |Oops: |irq event "
    r"|(?:hard|soft)irqs last|---\[ end |note: .* exited with|Kernel Offset: |Rebooting in|Sending NMI "
    r'|\s+(?:Not tainted|Tainted:) |"echo 0 > /proc/sys/kernel/hung_task|FIX \S+: |Dumping ftrace'
    r"|Shutting down cpus|Dazed and confused|Memory limit|\s*$"
)
_STALLS: Final = {
    SplatKind.RCU_STALL,
    SplatKind.SOFT_LOCKUP,
    SplatKind.HARD_LOCKUP,
    SplatKind.WORKQUEUE,
}
_STALL_LINES: Final = re.compile(
    r"rcu: |\t|NMI backtrace|task:|INFO: NMI handler|Stack:|Showing b\w+ work|workqueue |pool |\s+pwq "
)
#: Kinds that say more after their call trace, and what ends that.
_UNTIL: Final = {
    SplatKind.KASAN: re.compile(r"={20,}"),
    SplatKind.KFENCE: re.compile(r"={20,}"),
    SplatKind.KCSAN: re.compile(r"={20,}"),
    SplatKind.KMSAN: re.compile(r"={20,}"),
    SplatKind.OUT_OF_MEMORY: re.compile(r"(?i)(?:memory cgroup )?out of memory: Killed process"),
}
#: Kinds that describe nothing: all they say has a typical form.
_TERSE: Final = {SplatKind.PANIC, SplatKind.WORKQUEUE, SplatKind.NMI, SplatKind.TASK}
_TALKATIVE: Final = {*_UNTIL, SplatKind.LOCKDEP, SplatKind.SLAB, SplatKind.RCU_STALL}
#: A panic for the sake of the report before it (kernel/panic.c, arch/x86/kernel/dumpstack.c:oops_end).
_CONSEQUENCE: Final = re.compile(
    r"Kernel panic - not syncing: (?:Fatal exception|Attempted to kill init|.*panic_on_\w+ set"
    r"|hung_task: blocked tasks|softlockup: hung tasks|Hard LOCKUP|RCU Stall|kernel: panic_on_warn)"
)
#: The panic of another CPU's oops, without a trace of its own: that CPU's report is complete by then.
_FATAL: Final = re.compile(r"Kernel panic - not syncing: Fatal exception")


@dataclass
class _Growing:
    title: str
    frames: list[Frame] = field(default_factory=list)


class Report:
    """A report under way.

    Attributes:
        kind: what it is about.
        cpu: of its header or its ``CPU:`` line, or None so far.
        pid: likewise.
    """

    def __init__(self, header: Header, before: list[Line], line: Line) -> None:
        """Begin one.

        Args:
            header: its first telling line, taken apart.
            before: lines before that, which belong to it (a warning's message).
            line: that line.
        """
        self.kind = header.kind
        self.cpu, self.pid, self.comm = header.cpu, header.pid, header.comm
        self._title = header.title
        self._lines = [*(item.raw for item in before), line.raw]
        self._stacks: list[_Growing] = []
        self._heading = ""
        self._in_stack = False
        self._rip: Frame | None = None
        self._registers: dict[str, int] = {}
        self._registers_known = False
        self._introduced = False  # the "CPU:" line was seen
        self._traced = False  # "Call Trace:" was seen
        self._ended = False
        self._done = False
        self._chatter = 0

    @property
    def introduced(self) -> bool:
        """Whether it already said which task and CPU it is about."""
        return self._introduced

    @property
    def done(self) -> bool:
        """Whether its last line was read."""
        return self._done

    def absorbs(self, header: Header) -> bool:
        """Whether a line that could begin a report is a part of this one."""
        if header.die:
            return self.kind in (SplatKind.OOPS, SplatKind.BUG) and not self._introduced
        if header.kind is SplatKind.TASK and self.kind is SplatKind.HUNG_TASK:
            return header.pid == self.pid and not self._stacks
        return header.kind in (SplatKind.NMI, SplatKind.TASK) and self.kind in _STALLS

    def is_remark(self, current: "Report") -> bool:
        """Whether it is a panic of few words for the sake of a report that still goes on."""
        return bool(_FATAL.match(self._title)) and current.kind.is_fault and not current.ended

    @property
    def ended(self) -> bool:
        """Whether the line that ends it was read."""
        return self._ended

    def wants(self, body: str) -> bool:
        """Whether a line that begins nothing is a part of this report."""
        if self._done or len(self._lines) >= _LINES_MAX:
            return False
        typical = bool(_TYPICAL.match(body) or _FRAME.match(body) or _MARKER.match(body))
        if typical or (self.kind is SplatKind.DMA_API and _MAPPED_AT.match(body)):
            self._chatter = 0
            return True
        if self.kind in _STALLS and _STALL_LINES.match(body):
            return True
        return self.kind in _UNTIL or self._still_describes()

    def _still_describes(self) -> bool:
        """Whether a line in no typical form may be a part of the description before the first stack."""
        if self.kind in _TALKATIVE:
            return not self._traced
        self._chatter += 1
        known = self._stacks or self._introduced or self.kind in _TERSE
        return not known and self._chatter <= _CHATTER_MAX

    def take(self, line: Line) -> None:
        """Add a line."""
        body = line.body
        self._lines.append(line.raw)
        if self.kind is SplatKind.OOPS and not self._introduced and _SHADOW.match(body):
            self._title = f"{self._title}: {body.strip()}"
        until = _UNTIL.get(self.kind)
        if until is not None and until.match(body) and self._stacks:
            self._done = True
        if _END.match(body):
            self._ended = True
        elif self.kind is SplatKind.DMA_API and _MAPPED_AT.match(body):
            self._ended, self._in_stack, self._heading = False, False, "Mapped at"
        elif not self._ended:
            self._read(body)

    def finish(self, faults_before: bool) -> Splat:
        """What it says, all of it or the part that came.

        Args:
            faults_before: another report of trouble came before this one.
        """
        stacks = tuple(Stack(item.title, tuple(item.frames)) for item in self._stacks if item.frames)
        frames: tuple[Frame, ...] = ()
        if stacks:
            called = [stack for stack in stacks if stack.title == "Call Trace"]
            frames = (called or list(stacks))[0].frames
        title = self._title
        return Splat(
            kind=self.kind,
            title=title,
            cpu=self.cpu,
            pid=self.pid,
            comm=self.comm,
            rip=self._rip,
            frames=frames,
            registers=dict(self._registers),
            text="\n".join(self._lines),
            fingerprint=fingerprint(self.kind, title, self._rip, frames),
            stacks=stacks,
            consequence=faults_before and bool(_CONSEQUENCE.match(title)),
        )

    def _read(self, body: str) -> None:
        found = _FRAME.match(body)
        if found is not None:
            self._take_frame(frame_of(found))
        elif (rip := _RIP.match(body)) is not None:
            self._take_rip(rip)
        elif (cpu := _CPU.match(body)) is not None:
            self._introduce(cpu)
        elif _CALL_TRACE.match(body):
            self._heading, self._in_stack, self._traced = "Call Trace", False, True
        elif not (_MARKER.match(body) or body.startswith("Code: ")):
            self._in_stack = False
            if _REGISTERS.match(body):
                self._take_registers(body)
            elif body.strip() and not _RULE.match(body):
                self._heading = body.strip().rstrip(":")

    def _take_frame(self, frame: Frame) -> None:
        if not self._in_stack:
            self._stacks.append(_Growing(self._heading or "stack"))
            self._in_stack = True
        self._stacks[-1].frames.append(frame)

    def _take_rip(self, found: re.Match[str]) -> None:
        if int(found["segment"], 16) & _USER_SEGMENT:
            self._registers_known, self._in_stack = True, False
            return
        frame = frame_of(found)
        if self._rip is None and not self._stacks:
            self._rip = frame
        elif self._stacks:  # what an interrupt or an exception broke into
            self._in_stack = True
            self._stacks[-1].frames.append(replace(frame, exact=True))
            self._registers_known = True

    def _take_registers(self, body: str) -> None:
        if self._stacks:
            self._in_stack = True  # those of what was broken into; its callers come next
        if not self._registers_known:
            for name, value in _REGISTER.findall(body):
                self._registers.setdefault(name.lower(), int(value, 16))

    def _introduce(self, found: re.Match[str]) -> None:
        if not self._introduced:
            self._introduced = True
            self.cpu, self.pid, self.comm = int(found["cpu"]), int(found["pid"]), found["comm"]


def frame_of(found: re.Match[str]) -> Frame:
    """The frame a match of one of this module's patterns names."""
    named = found.groupdict()
    sure = not named.get("doubt")
    if named["symbol"] is None:
        return Frame(symbol=named["address"] or "?", sure=sure)
    return Frame(
        symbol=named["symbol"],
        offset=int(named["offset"], 16),
        size=int(named["size"], 16),
        module=named["module"] or "",
        sure=sure,
    )


def introduced_as(body: str) -> tuple[int, int] | None:
    """CPU and process id of a line ``CPU: 0 PID: 97 Comm: ...``, or None for another line."""
    found = _CPU.match(body)
    return (int(found["cpu"]), int(found["pid"])) if found else None
