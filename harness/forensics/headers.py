# SPDX-License-Identifier: MIT
"""The first lines of the kernel's reports, and what kind each begins.

Where the words come from: kernel/panic.c, lib/bug.c, arch/x86/kernel/{dumpstack,traps,nmi}.c,
arch/x86/mm/fault.c, mm/{kasan,kfence,kcsan,kmsan}/report.c, lib/ubsan.c, mm/slub.c, mm/oom_kill.c,
mm/page_alloc.c, kernel/{watchdog,watchdog_hld,hung_task,workqueue}.c, kernel/rcu/tree_{stall,exp}.h,
kernel/locking/lockdep.c, kernel/sched/core.c:sched_show_task, lib/nmi_backtrace.c.
"""

import re
from dataclasses import dataclass
from typing import Final

from harness.forensics.splat import SplatKind


@dataclass(frozen=True)
class Header:
    """The first line of a report.

    Attributes:
        kind: what the report is about.
        title: the line, without what changes with every report.
        cpu: the CPU it names, or None.
        pid: the task it names, or None.
        comm: that task's name, or ``""``.
        die: it is the line of die(), which may follow another header of the same report.
    """

    kind: SplatKind
    title: str
    cpu: int | None = None
    pid: int | None = None
    comm: str = ""
    die: bool = False


#: Somewhere in the first line of every report, and in what may come before it; to skip the rest of a log.
TELLTALE: Final = re.compile(
    r"BUG|WARNING: |Oops: |\[#\d+\]|general protection|Kernel panic|UBSAN: |hard LOCKUP|INFO: |PANIC: "
    r"|NMI (?:backtrace|received)|task:|oom-killer|page allocation failure|-\[ cut here|Unable to handle"
    r"|list_(?:add|del)|={20}"
)

# Named groups go into the header; the first that fits counts.
_HEADERS: Final = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (SplatKind.PANIC, r"Kernel panic - not syncing"),
        (SplatKind.KASAN, r"BUG: KASAN: "),
        (SplatKind.KFENCE, r"BUG: KFENCE: "),
        (SplatKind.KCSAN, r"BUG: KCSAN: "),
        (SplatKind.KMSAN, r"BUG: KMSAN: "),
        (SplatKind.UBSAN, r"UBSAN: "),
        (SplatKind.SLAB, r"BUG \S+ \(.{1,200}\): "),
        (
            SplatKind.SOFT_LOCKUP,
            r"(?:watchdog: )?BUG: soft lockup - CPU#(?P<cpu>\d+) stuck for \d+s!"
            r"(?: \[(?P<comm>.{1,40}):(?P<pid>\d+)\])?",
        ),
        (
            SplatKind.HARD_LOCKUP,
            r"(?:NMI )?(?:watchdog: )?(?:CPU\d+: )?Watchdog detected hard LOCKUP on cpu (?P<cpu>\d+)",
        ),
        (SplatKind.WORKQUEUE, r"BUG: workqueue lockup"),
        (
            SplatKind.HUNG_TASK,
            r"INFO: task (?P<comm>.{1,80}):(?P<pid>\d+) (?:<\w+> )?(?:is )?blocked .{0,30}for more than ",
        ),
        (SplatKind.RCU_STALL, r"(?:rcu: )?INFO: rcu\w* .{0,40}detected.{0,20} stall"),
        (
            SplatKind.LOCKDEP,
            r"WARNING: (?:possible |suspicious |inconsistent lock|bad (?:unlock|contention)|held lock|"
            r"lock held|[A-Z]+-safe -> |Nested lock|chain_key collision|.{1,40}/\d+ still has locks held)"
            r"|\[ BUG: |BUG: Invalid wait context|INFO: trying to register non-static key",
        ),
        (
            SplatKind.WARNING,
            # A kernel without CONFIG_DEBUG_BUGVERBOSE knows no file and no line.
            r"WARNING: CPU: (?P<cpu>\d+) PID: (?P<pid>\d+) at (?:(?P<at>[^\s+]+:\d+) )?(?P<in>[^\s+]+)",
        ),
        (
            SplatKind.WARNING,
            r"WARNING: (?P<at>\S+:\d+) at (?P<in>[^\s+,]+)[^,]*, CPU#(?P<cpu>\d+): (?P<comm>.+)/(?P<pid>\d+)",
        ),
        (SplatKind.BUG, r"kernel BUG at "),
        (
            SplatKind.OOPS,
            r"BUG: (?:kernel NULL pointer|unable to handle|[\w ]*stack guard page|IRQ stack|corrupted stack)"
            r"|Unable to handle kernel|(?:traps: )?PANIC: ",
        ),
        (SplatKind.BUG, r"BUG: "),
        (SplatKind.OUT_OF_MEMORY, r"(?P<comm>.{1,40}) invoked oom-killer: "),
        (SplatKind.ALLOCATION_FAILED, r"(?P<comm>.{1,40}): page allocation failure: order:"),
        (SplatKind.NMI, r"NMI backtrace for cpu (?P<cpu>\d+)|Uhhuh\. NMI received"),
        (SplatKind.TASK, r"task:(?P<comm>.{1,40}?)\s+state:(?P<in>\S)\s.*?\bpid:\s*(?P<pid>\d+)"),
    )
)
# arch/x86/kernel/dumpstack.c:__die: "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI", since 6.8 after "Oops: ".
_DIE: Final = re.compile(r"(?:Oops: )?.{0,120}?: [0-9a-f]{4} \[#\d+\]|Oops: |general protection fault")
_TITLE_MAX: Final = 300
#: UBSAN names a file by the path it was compiled at, whatever the compiler was told to call it.
_ABSOLUTE: Final = re.compile(r" in /\S*/(?=[^\s/]+:\d)")


def header_of(body: str) -> Header | None:
    """What a line of the kernel begins, or None for one that begins nothing.

    Args:
        body: the line without time stamp and caller.
    """
    if TELLTALE.search(body) is None:
        return None
    for kind, pattern in _HEADERS:
        found = pattern.match(body)
        if found is not None:
            return _header(kind, body, found.groupdict())
    if _DIE.match(body):
        return Header(SplatKind.OOPS, body[:_TITLE_MAX].strip(), die=True)
    return None


def _header(kind: SplatKind, body: str, named: dict[str, str | None]) -> Header:
    title = body[:_TITLE_MAX].strip()
    if kind is SplatKind.WARNING:
        place = f" at {named['at']}" if named["at"] else ""
        title = f"WARNING{place} in {named['in']}"
    elif kind is SplatKind.UBSAN:
        title = _ABSOLUTE.sub(" in ", title)
    elif kind is SplatKind.TASK:
        title = f"{named['comm']} in state {named['in']}"
    cpu, pid = named.get("cpu"), named.get("pid")
    return Header(
        kind,
        title,
        cpu=int(cpu) if cpu else None,
        pid=int(pid) if pid else None,
        comm=named.get("comm") or "",
    )
