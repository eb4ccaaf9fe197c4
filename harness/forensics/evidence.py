# SPDX-License-Identifier: MIT
"""What a guest in trouble can still tell before it is ended: asked in a few seconds, written down as text."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.errors import FailureKind, HarnessError
from harness.forensics.backtraces import backtraces
from harness.forensics.kernel_log import KernelLog
from harness.forensics.lines import LineTable
from harness.forensics.parse import splats
from harness.forensics.splat import SplatKind
from harness.forensics.symbols import Symbols

if TYPE_CHECKING:
    from harness.link import Guest

SILENT: Final = frozenset(
    {
        FailureKind.OPERATION_TIMED_OUT,
        FailureKind.AGENT_DEAD,
        FailureKind.KERNEL_HUNG,
        FailureKind.QEMU_STUCK,
        FailureKind.GUEST_FAILED,
        FailureKind.CHANNEL_BROKEN,
    }
)
"""Kinds of failure after which the guest may still be there and does not say why it failed."""

_QMP_SECONDS: Final = 1.0
#: All keys together; a kernel that answers does so within a fraction of it.
_SYSRQ_SECONDS: Final = 2.5
_FIRST_WORD_SECONDS: Final = 0.4
_QUIET_SECONDS: Final = 0.15
#: drivers/tty/sysrq.c: '8' lets the console show everything, 'l' are backtraces of the processors, 'w' those
#: of the tasks that wait uninterruptibly, 't' all tasks, '5' the console as it was.
_KEYS: Final = (b"8", b"l", b"w", b"t", b"5")
_NMI_SECONDS: Final = 0.4
_LOG_LINES: Final = 60
#: Of a dump, seconds per GiB of the guest's memory; a slow disk writes 50 MiB in one.
_DUMP_SECONDS_PER_GIB: Final = 30.0
_DUMP_SECONDS: Final = 10.0


def hang_report(guest: Guest, lines: LineTable | None = None) -> str:
    """Everything a guest that fell silent can be asked: QEMU, its vCPUs, the kernel by SysRq or NMI.

    The kernel is disturbed by that; it is to be restored afterwards.  Nothing is raised: what cannot be had
    says why.

    Args:
        guest: it may be dead in any way.
        lines: gives frames of modules their source lines.
    """
    parts = (
        ("QEMU", lambda: _status(guest)),
        ("vCPUs", lambda: _processors(guest, lines)),
        ("backtraces", lambda: _backtraces(guest, lines)),
        ("the kernel's log, out of its memory", lambda: _log(guest)),
    )
    return "\n\n".join(f"=== {title}\n{_asked(ask)}" for title, ask in parts) + "\n"


def dump_memory(guest: Guest, file: Path) -> int:
    """Write the guest's memory as an ELF core with physical addresses, as crash(8) and drgn take it.

    Args:
        guest: its QEMU lives; it stands still meanwhile.
        file: an absolute path; QEMU writes it.

    Returns:
        Bytes written.

    Raises:
        MachineFailure: QEMU does not answer, or cannot write there.
    """
    machine = guest.machine
    seconds = _DUMP_SECONDS + _DUMP_SECONDS_PER_GIB * machine.spec.memory_mib / 1024
    machine.qmp.execute(
        "dump-guest-memory",
        {"paging": False, "protocol": f"file:{file}"},
        timeout=seconds * guest.deadlines.scale,
    )
    return file.stat().st_size


def hold_when_it_ends(guest: Guest) -> None:
    """Let QEMU stop instead of leave when its guest ends, as one that panics does: it can be asked then.

    Raises:
        MachineFailure: QEMU does not answer.
    """
    guest.machine.qmp.execute("set-action", {"shutdown": "pause"})


def _asked(ask: Callable[[], str]) -> str:
    try:
        return ask() or "(nothing)"
    except HarnessError as error:
        return f"cannot be had: {error.summary}"
    except OSError as error:
        return f"cannot be had: {error}"


def _status(guest: Guest) -> str:
    told = guest.machine.qmp.ask("query-status", timeout=_QMP_SECONDS)
    state = "running" if told.get("running") else "not running"
    return f"{told.get('status')}, {state}; {guest.machine.describe()}"


def _processors(guest: Guest, lines: LineTable | None) -> str:
    guest.machine.qmp.ask("query-status", timeout=_QMP_SECONDS)  # one that is stuck is not waited for longer
    names = Symbols.known(guest)
    head = "" if names is not None else "(its symbols were never read: addresses have no names)\n"
    return head + "\n\n".join(vcpu.render() for vcpu in backtraces(guest.machine, names, lines=lines))


def _backtraces(guest: Guest, lines: LineTable | None) -> str:
    """By SysRq over the serial port; where interrupts are off, by an NMI."""
    machine = guest.machine
    machine.check()
    console = machine.console
    since = console.mark()
    end = time.monotonic() + _SYSRQ_SECONDS * guest.deadlines.scale
    for key in _KEYS:
        before = console.mark()
        machine.qmp.ask("chardev-send-break", {"id": "console"}, timeout=_QMP_SECONDS)
        console.send(key, _QMP_SECONDS)
        if not console.wait_output(_FIRST_WORD_SECONDS, since=before):
            break  # it did not take the interrupt of the first key, and will not take that of the others
        while time.monotonic() < end and console.wait_output(_QUIET_SECONDS, since=console.mark()):
            pass
        if time.monotonic() >= end:
            break
    said = console.text(since)
    if not said.strip():
        machine.qmp.ask("inject-nmi", timeout=_QMP_SECONDS)
        console.wait_output(_NMI_SECONDS, since=since)
        said = console.text(since)
        if not said.strip():
            return "neither a SysRq key nor an NMI was answered on the console"
    found = [splat for splat in splats(said, lines=lines) if splat.kind in (SplatKind.NMI, SplatKind.TASK)]
    return "\n\n".join(splat.render(tail=0) for splat in found) + f"\n\nas it was said:\n{said}"


def _log(guest: Guest) -> str:
    log = KernelLog.of(guest)
    return "(where it is was never asked)" if log is None else "\n".join(log.lines(_LOG_LINES))
