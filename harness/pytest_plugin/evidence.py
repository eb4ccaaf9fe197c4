# SPDX-License-Identifier: MIT
"""What is kept of a test: the folder a failure leaves, and the properties in a JUnit report.

The folder is filled from what is certain to what takes time, one file after the other, while the guest is
still there.  A file that cannot be kept is named in the report and takes nothing else along.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from harness.errors import FailureKind, HarnessError
from harness.forensics.evidence import SILENT, dump_memory, hang_report
from harness.pytest_plugin import repeat, runs
from harness.pytest_plugin.attribution import blame_of
from harness.pytest_plugin.audits import RESULTS, as_text
from harness.pytest_plugin.kinds import kind_of
from harness.pytest_plugin.seat import Seat
from harness.report import audits_to_json
from harness.vm import Console

_CONSOLE_TAIL = 40
_QUIET_SECONDS = 0.1
"""What a guest wrote before it answered is on its way; only our own thread may not have read it yet."""
_WORDS_SECONDS = 1.0
_CHUNK = 1 << 20


@dataclass
class Kept:
    """A folder while it is filled.

    Attributes:
        folder: where; None when it could not even be made.
        lost: what could not be kept, and why.
    """

    folder: Path | None
    lost: list[str] = field(default_factory=list)

    def put(self, name: str, contents: Callable[[], str]) -> None:
        """Keep a text."""
        self.make(name, lambda file: file.write_text(contents(), errors="replace"))

    def make(self, name: str, make: Callable[[Path], object]) -> None:
        """Keep a file that *make* writes; whatever goes wrong is no reason not to keep the next one."""
        if self.folder is None:
            return
        file = self.folder / name
        try:
            make(file)
        except Exception as error:
            said = error.summary if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
            self.lost.append(f"not kept: {name}: {said}")

    def lines(self) -> list[str]:
        """What to say of it."""
        return [*([f"kept in {self.folder}"] if self.folder else []), *self.lost]


def attach(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, seats: tuple[Seat, ...]
) -> None:
    """Keep the evidence of a failed test and show its essence in the report.

    Args:
        item: the test.
        call: its failed phase.
        report: of that phase.
        seats: the guests it used, the one it is about first; not empty.
    """
    for seat in seats:
        _let_it_finish(seat.guest.machine.console)
    # Before a guest that hangs is asked for backtraces, which it prints on its console.
    heard = [seat.watch.said().splitlines()[-_CONSOLE_TAIL:] for seat in seats]
    error = call.excinfo.value if call.excinfo is not None else None
    kind = kind_of(error)
    kept = _keep(item, call.when, str(error or ""), kind, seats)
    trouble = blame_of(item).trouble(call.when)
    if trouble and trouble.render() not in str(error):
        report.sections.append(("iobmd: what the kernel complained about", trouble.render()))
    for seat, said in zip(seats, heard, strict=True):
        which = "" if len(seats) == 1 else f" ({seat.role.value} guest)"
        text = "\n".join(said) or "(the kernel said nothing during this test)"
        report.sections.append((f"iobmd: console of this test{which}", text))
    again = [f"repeat with: {repeat.command(item)}"]
    if kept.folder is not None:
        again.append(f"or with: iobmd repro {shlex.quote(str(kept.folder))}")
    report.sections.append(("iobmd: evidence", "\n".join([*kept.lines(), *again])))


def properties(item: pytest.Item, seats: tuple[Seat, ...]) -> list[tuple[str, object]]:
    """Say for JUnit what a test decides, what it ran on, and how its guest had been started."""
    found: list[tuple[str, object]] = [("clause", mark.args[0]) for mark in item.iter_markers("clause")]
    for seat in seats[:1]:
        guest = seat.guest
        found += [
            ("kernel", guest.hello.release),
            ("recipe", guest.image.kernel.label),
            ("machine", seat.ground.machine),
            ("qemu", guest.machine.qemu_version),
            ("accelerator", guest.machine.accelerator.name),
            ("accelerator-reason", guest.machine.accelerator.reason),
            ("module", guest.image.module.build_id),
            ("guest", seat.role.value),
            ("start", guest.start.how.name.lower()),
            ("generation", guest.generation),
        ]
    return found


def _keep(
    item: pytest.Item, phase: str, error: str, kind: FailureKind | None, seats: tuple[Seat, ...]
) -> Kept:
    try:
        kept = Kept(runs.test_folder(item.config, repeat.plain_id(item)))
    except OSError as failed:  # a full disk must not take the report of the failure with it
        return Kept(None, [f"not kept: {failed}"])
    named = f"{kind.word}: {kind.meaning}\n\n" if kind is not None else ""
    kept.put("error.txt", lambda: f"{named}{error}\n")
    kept.put("repro.json", lambda: json.dumps(repeat.record(item, kind, seats), indent=2) + "\n")
    kept.put("repeat.sh", lambda: f"cd {shlex.quote(str(item.config.rootpath))}\n{repeat.command(item)}\n")
    for seat in seats:
        _keep_guest(kept, "" if seat is seats[0] else f"{seat.role.value}-", seat)
    audits = item.stash.get(RESULTS, [])
    if audits:
        kept.put("audit.txt", lambda: "\n".join(as_text(result) for result in audits))
        kept.put("audit.json", lambda: audits_to_json(audits))
    trouble = blame_of(item).trouble(phase)
    if trouble:
        kept.put("splats.txt", lambda: trouble.render(tail=1000) + "\n")
    for seat in seats:
        prefix = "" if seat is seats[0] else f"{seat.role.value}-"
        if kind in SILENT:
            _keep_last_words(kept, prefix, seat)
        if item.config.getoption("--dump-on-failure"):
            kept.make(f"{prefix}memory.elf", partial(dump_memory, seat.guest))
    return kept


def _keep_last_words(kept: Kept, prefix: str, seat: Seat) -> None:
    seat.call_sick("it was asked for backtraces")
    kept.put(f"{prefix}hang.txt", lambda: hang_report(seat.guest, seat.watch.names.lines))


def _keep_guest(kept: Kept, prefix: str, seat: Seat) -> None:
    machine = seat.guest.machine
    kept.put(f"{prefix}test-console.log", seat.watch.said)
    kept.make(f"{prefix}console.log", lambda file: _copy_console(machine.console, file))
    if seat.closed:
        kept.put(f"{prefix}qemu.log", lambda: seat.qemu_log)
    else:
        kept.make(f"{prefix}qemu.log", lambda file: shutil.copyfile(machine.workdir / "qemu.log", file))
    kept.put(f"{prefix}qemu.sh", lambda: f"# as it was run: {machine.command()}\n{machine.repro_command()}\n")


def _copy_console(console: Console, file: Path) -> None:
    """All of it, a piece at a time: it may be larger than anybody wants to have in memory."""
    size, at = console.mark(), 0
    with file.open("wb") as target:
        while at < size:
            piece = console.raw(at, min(_CHUNK, size - at))
            if not piece:
                return
            at += target.write(piece)


def _let_it_finish(console: Console) -> None:
    """Wait until all is read of what the guest has said: its last words are why anybody looks at this."""
    end = time.monotonic() + _WORDS_SECONDS
    while time.monotonic() < end and console.wait_output(_QUIET_SECONDS, since=console.mark()):
        pass
