# SPDX-License-Identifier: MIT
"""From QEMU's start to the first answer, against virtme-ng; and where that time goes."""

import os
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import bench_vng
import pytest
from bench_board import Board, Series

from harness.errors import HarnessError
from harness.images import GuestImage, Kernel, RichProgress
from harness.images.run import run
from harness.link import Guest, GuestOptions, In, Link, Nr, Out, cstring
from harness.vm import Machine, MachineSpec

pytestmark = pytest.mark.bench

_ROUNDS = 5
_PART_ROUNDS = 3
_SECONDS = 120.0
_REPLY = "QEMU spawned to first RPC reply"
_SYSLOG, _SYSLOG_READ_ALL = 103, 3  # arch/x86/entry/syscalls/syscall_64.tbl; syslog(2)
_MARK = b"iobmd bench\n"  # without the end of the line the record stays open and unread
_LOG_BYTES = 256 << 10
# What a user of this project types instead of `vng -- uname -r`, as a program of its own.
_WHOLE = """
from harness.images import SilentProgress
from harness.link import Guest, GuestOptions
from harness.options import MachineOptions, prepare
from harness.vm import Accel
image = prepare(MachineOptions(kernel="{recipe}"), SilentProgress())
with Guest(image, GuestOptions(memory_mib=1024, accel=Accel.TCG)) as guest:
    print(guest.hello.release)
"""


def test_boot_against_virtme_ng(board: Board, bench_image: GuestImage, bench_options: GuestOptions) -> None:
    kernel = bench_image.kernel
    delivered, unpacked = kernel.vmlinuz.name, kernel.boot_image.name
    boot, same, whole, cpu = rows = (
        board.row(_REPLY, "s", against="vng, the distribution's vmlinuz", goal=0.30),
        board.row(_REPLY, "s", against="vng, the same ELF as ours", goal=0.50),
        board.row("whole command that says the release", "s", against="vng, the distribution's vmlinuz"),
        board.row("its CPU time, QEMU's included", "s", against="vng, the distribution's vmlinuz"),
    )
    peer = Peer(kernel)
    replies, commands = [], []
    for _ in range(_ROUNDS):
        with Guest(bench_image, bench_options) as guest:
            replies.append(guest.boot_seconds)
        peer.run(delivered)
        commands.append(cost(lambda: whole_command(bench_image)))
        peer.run(unpacked)
    boot.ours = same.ours = Series(tuple(replies))
    whole.ours, cpu.ours = (Series(values) for values in zip(*commands, strict=True))
    boot.peer, cpu.peer = peer.series(delivered)
    same.peer, _ = peer.series(unpacked)
    whole.peer = boot.peer
    for row, image in zip(rows, (delivered, unpacked, delivered, delivered), strict=True):
        row.problem = peer.problems.get(image, "")
        row.notes += peer.notes(image)


def test_parts_of_a_boot(board: Board, bench_guest: Guest) -> None:
    spec, parts = bench_guest.machine.spec, defaultdict[str, list[float]](list)
    for _ in range(_PART_ROUNDS):
        for part, milliseconds in _boot_in_parts(spec, bench_guest.image).items():
            parts[part].append(milliseconds)
    for part, values in parts.items():
        board.row(f"boot: {part}", "ms", Series(tuple(values)))


class Peer:
    """virtme-ng, and what its runs cost; that it cannot run is a finding and fails nothing."""

    def __init__(self, kernel: Kernel) -> None:
        self.problems: dict[str, str] = {}
        self._costs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._first: dict[str, list[float]] = defaultdict(list)
        self._vng: bench_vng.Vng | None = None
        try:
            self._vng = bench_vng.prepare(kernel, RichProgress())
        except HarnessError as error:
            reason = f"virtme-ng could not run: {error.summary}; {error.hint}"
            self.problems = dict.fromkeys((kernel.vmlinuz.name, kernel.boot_image.name), reason)

    def run(self, image: str) -> None:
        vng = self._vng
        if vng is None or image in self.problems:
            return
        try:
            self._costs[image].append(cost(lambda: self._first[image].append(vng.run(image))))
        except HarnessError as error:
            last = f": {error.evidence[-1].strip()}" if error.evidence else ""
            self.problems[image] = f"{error.summary}; {error.observed}{last}"

    def series(self, image: str) -> tuple[Series | None, Series | None]:
        """Wall time and CPU time of the whole command."""
        if not self._costs[image]:
            return None, None
        wall, cpu = (Series(values) for values in zip(*self._costs[image], strict=True))
        return wall, cpu

    def notes(self, image: str) -> list[str]:
        if self._vng is None or not self._first[image]:
            return []
        answered = median(self._first[image])
        return [self._vng.about, f"from {image} its line with the release came after {answered:.2f} s"]


def cost(command: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of CPU of all children."""
    before, started = _children_cpu(), time.perf_counter()
    command()
    return time.perf_counter() - started, _children_cpu() - before


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def whole_command(image: GuestImage) -> None:
    argv = [sys.executable, "-c", _WHOLE.format(recipe=image.kernel.label)]
    done = run(argv, doing="booting by a program of its own", timeout=_SECONDS, env=dict(os.environ))
    assert done.stdout.split() == [image.kernel.release]


def _boot_in_parts(spec: MachineSpec, image: GuestImage) -> dict[str, float]:
    """Milliseconds of each stretch of one boot, in order."""
    started = time.monotonic()
    with Machine(spec) as machine:
        marks = {"QEMU, to its greeting by QMP": time.monotonic() - started}
        link = Link(machine.port(spec.ports[0]), image.link_layouts, machine.check)
        link.hello(_SECONDS)
        replied = time.monotonic() - started
        device = link.syscall(Nr.OPEN, cstring("/dev/kmsg"), os.O_WRONLY).value
        said = time.monotonic() - started
        link.syscall(Nr.WRITE, device, In(_MARK), len(_MARK))
        result = link.syscall(_SYSLOG, _SYSLOG_READ_ALL, Out(_LOG_BYTES), _LOG_BYTES)
    log = result.outputs[0][: result.value].decode(errors="replace")
    # The log's own clock: what it shows for a line whose moment is known here.
    kernel_zero = said - _stamp(log, _MARK.decode().strip())
    marks["firmware and loading, to the kernel's first line"] = kernel_zero
    marks["kernel, to /init"] = kernel_zero + _stamp(log, "Run /init")
    marks["/init, to the first reply"] = replied
    stretches, previous = {}, 0.0
    for name, mark in marks.items():
        stretches[name], previous = (mark - previous) * 1000, mark
    return stretches


def _stamp(log: str, line: str) -> float:
    """Seconds that the kernel log shows for the first line that contains ``line``."""
    found = re.search(rf"^<\d+>\[ *([\d.]+)\].*{re.escape(line)}", log, re.MULTILINE)
    assert found, f"the kernel log has no line with {line!r}: {log[:200]}"
    return float(found[1])
