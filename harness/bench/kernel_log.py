# SPDX-License-Identifier: MIT
"""A boot as the kernel's own log tells it: stretches between well-known lines, and the calls in between."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_STAMP: Final = re.compile(r"^<\d+>\[ *(\d+\.\d+)\] (.*)$", re.MULTILINE)
_CALLING: Final = re.compile(r"calling  (\w+)\+0x")
_RETURNED: Final = re.compile(r"initcall (\w+)\+0x.* returned ")

MILESTONES: Final = (
    (r"Memory: \d", "kernel: memory map, page tables, ACPI tables"),
    (r"ftrace: allocated", "kernel: slab, nops over ftrace's call sites"),
    (r"Calibrating delay loop", "kernel: RCU, interrupts, timers, console"),
    (r"pid_max: ", "kernel: CPU features, alternatives patched in"),
    (r"smpboot: CPU0: ", "kernel: security modules, local APIC timer"),
    (r"devtmpfs: initialized", "kernel: other CPUs, first threads"),
    (r"PCI host bridge to bus", "kernel: initcalls up to PCI"),
    (r"Trying to unpack rootfs", "kernel: initcalls: PCI, tracing, network"),
    (r"Freeing unused (?:decrypted|kernel image)", "kernel: initcalls: the rest, initramfs unpacked"),
    (r"Write protecting the kernel", "kernel: init memory given back"),
    (r"Run /init as init", "kernel: write-protects itself, W+X check"),
    (r"iobmd: loading out-of-tree|iobmd: module verif", "agent: exec, mounts, virtio modules"),
)
"""A line of the log and the stretch it ends; a kernel that lacks the line gives it to the next stretch.

Their sources: init/main.c, mm/page_alloc.c (mm/mm_init.c later), kernel/trace/ftrace.c, init/calibrate.c,
kernel/pid.c, arch/x86/kernel/smpboot.c, drivers/base/devtmpfs.c, drivers/pci/probe.c, init/initramfs.c,
mm/page_alloc.c, arch/x86/mm/init_64.c, kernel/module/main.c.
"""


@dataclass(frozen=True)
class Line:
    """One record of the kernel log.

    Attributes:
        seconds: on the log's clock.
        text: the rest of the line.
    """

    seconds: float
    text: str


def lines(log: str) -> tuple[Line, ...]:
    """Read what syslog(2) gives: ``<level>[seconds] text``; anything else is left out."""
    return tuple(Line(float(seconds), text) for seconds, text in _STAMP.findall(log))


def first(log: Sequence[Line], pattern: str) -> float | None:
    """Seconds of the first record that shows ``pattern``, None without one."""
    regex = re.compile(pattern)
    return next((line.seconds for line in log if regex.search(line.text)), None)


def marks(log: Sequence[Line]) -> dict[str, float]:
    """When each stretch of `MILESTONES` ended, by the log's clock; in order, without missing or late ones."""
    found: dict[str, float] = {}
    latest = 0.0
    for pattern, stretch in MILESTONES:
        seconds = first(log, pattern)
        if seconds is not None and seconds >= latest:
            found[stretch] = latest = seconds
    return found


def stretches(ends: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Milliseconds of each stretch, from the moments, in seconds from the start, at which they end."""
    lengths, previous = {}, 0.0
    for name, end in ends:
        lengths[name], previous = (end - previous) * 1000, end
    return lengths


def initcalls(log: Sequence[Line]) -> dict[str, float]:
    """Milliseconds between entering and leaving each initcall, longest first; what slept is in it.

    From what ``initcall_debug`` prints (init/main.c:trace_initcall_start_cb, _finish_cb), by the stamps of
    the lines: the figure in the text counts in ticks until the clock source is settled.
    """
    entered: dict[str, float] = {}
    spent: dict[str, float] = {}
    for line in log:
        if call := _CALLING.match(line.text):
            entered[call[1]] = line.seconds
        elif (done := _RETURNED.match(line.text)) and done[1] in entered:
            spent[done[1]] = (line.seconds - entered.pop(done[1])) * 1000
    return dict(sorted(spent.items(), key=lambda item: -item[1]))
