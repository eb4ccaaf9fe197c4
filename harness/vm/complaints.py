# SPDX-License-Identifier: MIT
"""What the kernel prints when it is in trouble."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Complaint(Enum):
    """What kind of trouble a console line reports."""

    #: The kernel has given up.
    PANIC = "panic"
    #: A task was killed in the kernel, or a checker (KASAN, UBSAN, lockups, stalls) found a bug.
    OOPS = "oops"
    #: A WARN_ON() was hit, or lockdep complains.
    WARNING = "warning"


@dataclass(frozen=True)
class ConsoleEvent:
    """A line that reports trouble.

    Attributes:
        kind: what trouble.
        line: the line without control characters.
        offset: byte in the log at which the line ends; compare with ``Console.mark``.
    """

    kind: Complaint
    line: str
    offset: int


#: A message of the kernel starts a line or follows the kernel's own time stamp; the phrase inside of other
#: text, such as a test that prints a log, is not one.
_STAMP: Final = rb"(?:^|\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? )"

# The order counts: the first pattern that fits names the line.  Where the words come from: kernel/panic.c,
# arch/x86/kernel/dumpstack.c, arch/x86/mm/fault.c, lib/bug.c, mm/kasan/report.c, mm/slub.c,
# kernel/watchdog.c, kernel/hung_task.c, kernel/rcu/tree_stall.h, kernel/locking/lockdep.c.
_PATTERNS: Final = (
    (Complaint.PANIC, re.compile(_STAMP + rb"Kernel panic - not syncing")),
    (
        Complaint.OOPS,
        re.compile(
            _STAMP + rb"(?:BUG: |BUG \S+ \(|kernel BUG at |Oops: |general protection fault|UBSAN: "
            rb"|watchdog: BUG: |watchdog: Watchdog detected hard LOCKUP"
            rb"|INFO: task .{1,80} blocked for more than |(?:rcu: )?INFO: rcu\w* .*detected.*stall"
            rb"|.{1,120}: [0-9a-f]{4} \[#\d+\])"  # die(): "invalid opcode: 0000 [#1] PREEMPT SMP"
        ),
    ),
    (
        Complaint.WARNING,
        re.compile(
            _STAMP + rb"(?:WARNING: (?:CPU: \d+ PID: \d+ at |\S+:\d+ at [^,]{1,160}, CPU#\d+: "
            # lockdep's headings
            rb"|possible |suspicious |bad (?:unlock balance|contention) |inconsistent lock state"
            rb"|held lock freed!|lock held when |Nested lock |chain_key |[A-Z]+-safe -> "
            rb"|.{1,40}/\d+ still has locks held!)"
            rb"|\[ BUG: |INFO: trying to register non-static key)"
        ),
    ),
)


def classify(line: bytes) -> Complaint | None:
    """What a console line reports.

    Args:
        line: one line as the guest sent it.

    Returns:
        The kind of trouble, or None for an ordinary line.
    """
    for kind, pattern in _PATTERNS:
        if pattern.search(line):
            return kind
    return None
