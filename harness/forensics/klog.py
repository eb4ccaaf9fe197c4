# SPDX-License-Identifier: MIT
"""Lines of a kernel log: whose they are, and what they say."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# kernel/printk/printk.c: print_syslog, print_time, print_caller.  The stamp may follow something a program
# wrote to the same terminal without ending its line.
STAMP: Final = re.compile(r"(?:<\d{1,3}>)?\[ *(?P<time>\d{1,9}\.\d{6})\](?:\[ *(?P<caller>[TC]\d{1,9})\])? ?")


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        raw: as it was sent.
        body: without time stamp and caller.
        stamped: it has a time stamp, so it is the kernel's; on a kernel with printk.time=0 none has one.
        caller: ``"T12"`` (a task) or ``"C1"`` (a CPU) on a kernel with CONFIG_PRINTK_CALLER, else ``""``.
        end: position in the text after it.
    """

    raw: str
    body: str
    stamped: bool
    caller: str
    end: int


def line_at(text: str, position: int) -> Line:
    """The line that begins at a position of a text."""
    stop = text.find("\n", position)
    raw = text[position:] if stop < 0 else text[position:stop]
    end = len(text) if stop < 0 else stop + 1
    raw = raw.rstrip("\r")
    found = STAMP.search(raw)
    if found is None:
        return Line(raw, raw, False, "", end)
    return Line(raw, raw[found.end() :], True, found["caller"] or "", end)


def lines_from(text: str, position: int) -> Iterator[Line]:
    """The lines from a position on, which is the beginning of one."""
    while position < len(text):
        line = line_at(text, position)
        yield line
        position = line.end
