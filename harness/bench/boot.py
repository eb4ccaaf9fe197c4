# SPDX-License-Identifier: MIT
"""Where each millisecond of a start goes."""

import dataclasses
import os

from harness.bench import kernel_log
from harness.bench.board import Breakdown
from harness.bench.lab import Lab
from harness.bench.restore import bench_restore
from harness.bench.watched import SECONDS, Stopwatch, Watched, spec_of, watched
from harness.errors import GuestFailure
from harness.images import GuestImage
from harness.link import In, Link, Nr, Out, cstring
from harness.vm import MachineSpec

_ROUNDS = 5
_TRACED_ROUNDS = 3
_TOP = 12
_SYSLOG, _SYSLOG_READ_ALL = 103, 3  # arch/x86/entry/syscalls/syscall_64.tbl; syslog(2)
_MARK = b"iobmd bench\n"  # without the end of the line the record stays open and unread
_LOG_BYTES = 768 << 10
_TRACED = (
    "initcall_debug",  # two lines per initcall, in the log only: loglevel keeps them off the console
    "log_buf_len=1M",  # the usual buffer loses the first of them
    "loglevel=6",  # notices are shown, the very first line is one; what comes later is quieter again
    "earlyprintk=ttyS0,115200",  # shown when this word is read, nearly before anything else is done
)


def bench_boot(lab: Lab) -> None:
    """Take every kind of start apart."""
    bench_cold_boot(lab)
    bench_restore(lab)


def bench_cold_boot(lab: Lab) -> None:
    """Take a cold boot apart, and name the slowest initcalls by a second boot that traces them."""
    spec = spec_of(lab)
    parts = lab.board.breakdown(f"cold boot of {lab.image.kernel.release}, to the first reply")
    parts.notes.append(
        "host's clock to the greeting and at the reply; between them the log's clock, "
        "which starts within setup_arch() and is matched to the host's by a line written at a known moment"
    )
    rounds = lab.rounds(_ROUNDS)
    traced = min(rounds, _TRACED_ROUNDS)
    with lab.progress.task("Boots", rounds + traced) as task:
        for number in range(rounds):
            task.update(f"round {number + 1} of {rounds}")
            parts.add(_boot_in_parts(spec, lab.image))
            task.advance(1)
        seen: dict[str, list[float]] = {}
        for number in range(traced):
            task.update(f"traced round {number + 1} of {traced}")
            for name, value in _traced_boot(spec, lab.image).items():
                seen.setdefault(name, []).append(value)
            task.advance(1)
            _fill_details(parts, seen)
    parts.notes.append(
        "lines below the second rule come from boots of their own, with initcall_debug and earlyprintk; an "
        "initcall that slept is charged with what ran meanwhile"
    )


def _link(started: Watched, spec: MachineSpec, image: GuestImage) -> Link:
    it = started.launched
    link = Link(it.ports[spec.ports[0]], image.link_layouts, it.check)
    link.hello(SECONDS)
    return link


def _log_of(link: Link, watch: Stopwatch) -> tuple[tuple[kernel_log.Line, ...], float]:
    """The kernel's log, and the moment its clock was zero, in seconds since the start."""
    device = link.syscall(Nr.OPEN, cstring("/dev/kmsg"), os.O_WRONLY).value
    said = watch.now()
    link.syscall(Nr.WRITE, device, In(_MARK), len(_MARK))
    result = link.syscall(_SYSLOG, _SYSLOG_READ_ALL, Out(_LOG_BYTES), _LOG_BYTES)
    log = kernel_log.lines(result.outputs[0][: result.value].decode(errors="replace"))
    mark = kernel_log.first(log, _MARK.decode().strip())
    if mark is None:
        raise GuestFailure(
            "the kernel log lacks what was written to it",
            observed=f"{len(log)} records, {result.value} bytes",
        )
    return log, said - mark


def _boot_in_parts(spec: MachineSpec, image: GuestImage) -> dict[str, float]:
    """Milliseconds of each stretch of one boot, in order."""
    with watched(spec) as started:
        watch = started.watch
        link = _link(started, spec, image)
        replied = watch.now()
        log, zero = _log_of(link, watch)
    ends = watch.ends
    ends["firmware, loading, kernel's first steps to its clock"] = zero
    ends |= {name: zero + seconds for name, seconds in kernel_log.marks(log).items()}
    ends["agent: iobmd.ko, port, first reply"] = replied
    return watch.stretches()


def _traced_boot(spec: MachineSpec, image: GuestImage) -> dict[str, float]:
    """Milliseconds of what only a boot that is slowed down can show."""
    with watched(dataclasses.replace(spec, cmdline=(*_TRACED, *spec.cmdline))) as started:
        watch = started.watch
        started.launched.console.wait_output(SECONDS)
        first_byte = watch.now()
        link = _link(started, spec, image)
        whole = watch.now()
        log, zero = _log_of(link, watch)
    greeting = list(watch.ends.values())[-1]
    seen = {
        "whole boot with tracing": whole * 1000,
        "firmware and loading: greeting to the kernel's first byte": (first_byte - greeting) * 1000,
        "kernel's first steps: its first byte to its clock": (zero - first_byte) * 1000,
    }
    unpacking, unpacked = (
        kernel_log.first(log, text) for text in ("Trying to unpack rootfs", "Freeing initrd memory")
    )
    if unpacking is not None and unpacked is not None:
        seen["initramfs unpacked, initcalls going on beside it"] = (unpacked - unpacking) * 1000
    calls = kernel_log.initcalls(log)
    seen["all initcalls and modules' init functions"] = sum(calls.values())
    return seen | {f"initcall {name}": spent for name, spent in calls.items()}


def _fill_details(parts: Breakdown, seen: dict[str, list[float]]) -> None:
    """Show what is not an initcall, and the slowest of those that are."""
    parts.details.clear()
    calls = [name for name in seen if name.startswith("initcall ")]
    slowest = sorted(calls, key=lambda name: -sorted(seen[name])[len(seen[name]) // 2])[:_TOP]
    for name in (*(name for name in seen if name not in calls), *slowest):
        for value in seen[name]:
            parts.detail(name, value)
