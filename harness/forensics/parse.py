# SPDX-License-Identifier: MIT
"""Finding the kernel's reports about its own trouble in a console log."""

import re
from dataclasses import replace
from typing import Final, Protocol

from harness.forensics.headers import TELLTALE, Header, header_of
from harness.forensics.klog import STAMP, Line, lines_from
from harness.forensics.report import Report, introduced_as
from harness.forensics.splat import Frame, Splat, SplatKind, Stack

_CUT_HERE: Final = re.compile(r"-+\[ cut here \]-+")
_CORRUPTION: Final = re.compile(r"list_(?:add|del) (?:double add|corruption)")
_RULE: Final = re.compile(r"={20,}\s*$")
#: Lines of a warning's own message at most.
_MESSAGE_MAX: Final = 12
#: Bytes within which a line before a report can belong to it.
_NEAR: Final = 4096
_CUT_OFF: Final = "(the report is cut off)"


class Sources(Protocol):
    """Where frames get their source lines from; `LineTable` is one."""

    def source(self, frame: Frame, *, exact: bool) -> str:
        """``"file.c:123"`` of a frame, or ``""``.

        Args:
            frame: which.
            exact: its offset is the instruction itself, not the one a call returns to.
        """


def splats(text: str, *, lines: Sources | None = None, limit: int = 500) -> tuple[Splat, ...]:
    """The kernel's reports in a piece of console log, in the order in which they begin.

    Any text will do: what is no report is skipped, a cut report is given as far as it goes, and the reports
    of several CPUs are told apart by the callers' ids where the kernel prints them (CONFIG_PRINTK_CALLER).

    Args:
        text: the log, with or without time stamps.
        lines: gives frames of modules their source lines.
        limit: reports after which no further ones are looked for; one broken place can give thousands.
    """
    log = _Log(stamped=STAMP.search(text) is not None)
    position = 0
    while log.count < limit:
        found = TELLTALE.search(text, position)
        if found is None:
            break
        start = text.rfind("\n", 0, found.start()) + 1
        position = log.read(text, max(position, start), limit)
    reports = log.close()[:limit]
    return tuple(_with_sources(splat, lines) if lines is not None else splat for splat in reports)


class _Log:
    """Reads a log, with one stream of reports for every caller.

    Where the kernel puts time stamps, a line without one is a program's, whatever it says.
    """

    def __init__(self, *, stamped: bool) -> None:
        self._stamped = stamped
        self._streams: dict[str, _Stream] = {}
        self._begun: list[Report] = []

    @property
    def count(self) -> int:
        """Reports so far."""
        return len(self._begun)

    def read(self, text: str, position: int, limit: int) -> int:
        """Read lines from a position until no report is under way, or there are too many; where that is."""
        for line in lines_from(text, position):
            position = line.end
            if line.stamped or not self._stamped:
                self._streams.setdefault(line.caller, _Stream(self._begun)).read(line)
            if self.count > limit or not any(item.busy for item in self._streams.values()):
                break
        return position

    def close(self) -> tuple[Splat, ...]:
        """Everything that was found."""
        for stream in self._streams.values():
            stream.close()
        found: list[Splat] = []
        faulty = False
        for report in self._begun:
            found.append(report.finish(faulty))
            faulty = faulty or report.kind.is_fault
        return tuple(found)


class _Stream:
    """The lines of one caller; of all callers, where the kernel does not say who calls."""

    def __init__(self, begun: list[Report]) -> None:
        self._begun = begun
        self._current: Report | None = None
        self._waiting: list[Report] = []  # begun by other CPUs in the middle of the current one
        self._message: list[Line] | None = None  # what came since "cut here"
        self._cuts = 0
        self._before: Line | None = None

    @property
    def busy(self) -> bool:
        """Whether a report is under way."""
        return self._current is not None or self._message is not None

    def read(self, line: Line) -> None:
        """Take the next line of this caller."""
        before, self._before = self._before, line
        if before is not None and line.end - before.end > _NEAR:
            before = None
        if _CUT_HERE.match(line.body):
            self._cut_here(line, before)
            return
        header = header_of(line.body)
        if header is not None:
            self._begin(header, line, before)
        elif self._message is not None and not self._belongs(line):
            self._add_to_message(line)
        else:
            self._continue(line)

    def close(self) -> None:
        """The log ends here."""
        if self._message:
            words = [item.body.strip() for item in self._message if not _CUT_HERE.match(item.body)]
            title = " / ".join(word for word in words if word) or _CUT_OFF
            self._begun.append(
                Report(Header(SplatKind.WARNING, title), self._message[:-1], self._message[-1])
            )
        self._current, self._message = None, None

    def _cut_here(self, line: Line, before: Line | None) -> None:
        if self._current is not None and self._current.introduced:
            self._leave()
        if self._message is None:
            telling = before is not None and _CORRUPTION.match(before.body)
            self._message = [before, line] if telling and before is not None else [line]
            self._cuts = 0
        self._cuts += 1

    def _add_to_message(self, line: Line) -> None:
        assert self._message is not None  # noqa: S101  the caller has looked
        self._message.append(line)
        if len(self._message) > _MESSAGE_MAX + self._cuts:
            self._message = None

    def _belongs(self, line: Line) -> bool:
        """Whether a line after "cut here" goes on with a report of before, as CPUs that interleave do."""
        return self._current is not None and self._current.wants(line.body)

    def _begin(self, header: Header, line: Line, before: Line | None) -> None:
        current = self._current
        if current is not None and self._message is None and current.absorbs(header):
            current.take(line)
            return
        message: list[Line] = []
        if self._message is not None:
            self._cuts -= 1
            message, self._message = self._message, ([] if self._cuts > 0 else None)
        elif before is not None and header.kind is SplatKind.UBSAN and _RULE.match(before.body):
            message = [before]
        report = Report(_told(header, message), message, line)
        self._begun.append(report)
        if current is None:
            self._current = report
        elif report.is_remark(current):
            return
        elif current.introduced or current.cpu is None:
            self._current = report
        else:
            self._waiting.append(report)

    def _continue(self, line: Line) -> None:
        current = self._current
        if current is None:
            return
        named = introduced_as(line.body)
        if named is not None and self._waiting and (current.cpu, current.pid) != named:
            self._switch_to(*named)
            current = self._current
        if current is None or not current.wants(line.body):
            self._leave()
            return
        current.take(line)
        if current.done:
            self._leave()

    def _switch_to(self, cpu: int, pid: int) -> None:
        for report in self._waiting:
            if (report.cpu, report.pid) == (cpu, pid):
                self._waiting.remove(report)
                if self._current is not None:
                    self._waiting.insert(0, self._current)
                self._current = report
                return

    def _leave(self) -> None:
        self._current = self._waiting.pop(0) if self._waiting else None


def _told(header: Header, message: list[Line]) -> Header:
    """The header with the words that were said before it in its title."""
    words = [item.body.strip() for item in message]
    said = " / ".join(word for word in words if word and not _CUT_HERE.match(word) and not _RULE.match(word))
    if not said:
        return header
    kind = header.kind
    if kind is SplatKind.WARNING and said.startswith("DMA-API: "):
        kind = SplatKind.DMA_API  # kernel/dma/debug.c:err_printk is a WARN
    return replace(header, kind=kind, title=f"{header.title}: {said}")


def _with_sources(splat: Splat, lines: Sources) -> Splat:
    def known(frame: Frame, *, exact: bool) -> Frame:
        return replace(frame, source=lines.source(frame, exact=exact or frame.exact))

    def all_of(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
        return tuple(known(frame, exact=False) for frame in frames)

    return replace(
        splat,
        rip=known(splat.rip, exact=True) if splat.rip is not None else None,
        frames=all_of(splat.frames),
        stacks=tuple(Stack(stack.title, all_of(stack.frames)) for stack in splat.stacks),
    )
