# SPDX-License-Identifier: MIT
"""What is kept of a test: the folder a failure leaves, and the properties in a JUnit report."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest

from harness.images import source_root
from harness.pytest_plugin.asked import machine_options
from harness.pytest_plugin.seat import Seat
from harness.vm import Console

_CONSOLE_TAIL = 40
_NAME_MAX = 150
_QUIET_SECONDS = 0.1
"""What a guest wrote before it answered is on its way; only our own thread may not have read it yet."""
_WORDS_SECONDS = 1.0


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
    try:
        kept = f"kept in {_keep(item, call, seats)}"
    except OSError as error:  # a full disk must not take the report of the failure with it
        kept = f"not kept: {error}"
    for seat in seats:
        which = "" if len(seats) == 1 else f" ({seat.role.value} guest)"
        said = seat.console_since_ready().splitlines()[-_CONSOLE_TAIL:]
        text = "\n".join(said) or "(the kernel said nothing during this test)"
        report.sections.append((f"iobmd: console of this test{which}", text))
    report.sections.append(("iobmd: evidence", f"{kept}\nrepeat with: {repeat_command(item)}"))


def properties(item: pytest.Item, seats: tuple[Seat, ...]) -> list[tuple[str, object]]:
    """Say for JUnit what a test decides, what it ran on, and how its guest had been started."""
    found: list[tuple[str, object]] = [("clause", mark.args[0]) for mark in item.iter_markers("clause")]
    for seat in seats[:1]:
        guest = seat.guest
        found += [
            ("kernel", guest.hello.release),
            ("recipe", guest.image.kernel.label),
            ("qemu", guest.machine.qemu_version),
            ("accelerator", guest.machine.accelerator.name),
            ("accelerator-reason", guest.machine.accelerator.reason),
            ("module", guest.image.module.build_id),
            ("guest", seat.role.value),
            ("start", guest.start.how.name.lower()),
            ("generation", guest.generation),
        ]
    return found


def repeat_command(item: pytest.Item) -> str:
    """Return the words that run a test again, on the same machine."""
    options = machine_options(item.config)
    # Elsewhere than in this project the plugin runs in the caller's own environment.
    door = ["images/bootstrap"] if item.config.rootpath == source_root() else []
    words = [*door, "pytest", _plain_id(item), "--kernel", item.config.getoption("--kernel")]
    words += ["--memory", str(options.memory_mib), "--cpus", str(options.cpus)]
    words += ["--accel", options.accel.value]
    for name in ("modules", "headers"):
        folder = getattr(options, name)
        words += [f"--{name}", str(folder)] if folder else []
    words += [name for name in ("--fresh", "--no-snapshot") if item.config.getoption(name)]
    return shlex.join(words)


def folder_name(test: str) -> str:
    """Return the name of a test's folder: its id, with a hash where not all of it can be in a name."""
    plain = test.replace("::", "_").replace("/", "_")
    name = re.sub(r"[^\w.\[\]=-]+", "_", plain)
    if name == plain and len(name) <= _NAME_MAX:
        return name
    return f"{name[:_NAME_MAX]}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"


def _let_it_finish(console: Console) -> None:
    """Wait until all is read of what the guest has said: its last words are why anybody looks at this."""
    end = time.monotonic() + _WORDS_SECONDS
    while time.monotonic() < end and console.wait_output(_QUIET_SECONDS, since=console.mark()):
        pass


def _plain_id(item: pytest.Item) -> str:
    """The id as a user types it: ``--dist loadgroup`` appends ``@GROUP``."""
    if getattr(item.config.option, "loadgroup", False) and item.get_closest_marker("xdist_group"):
        return item.nodeid.rpartition("@")[0]
    return item.nodeid


def _keep(item: pytest.Item, call: pytest.CallInfo[None], seats: tuple[Seat, ...]) -> Path:
    results: Path = item.config.getoption("--results")
    folder = item.config.rootpath / results / folder_name(_plain_id(item))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for seat in seats:
        prefix = "" if seat is seats[0] else f"{seat.role.value}-"
        machine = seat.guest.machine
        (folder / f"{prefix}console.log").write_text(machine.console.text(), errors="replace")
        (folder / f"{prefix}qemu.sh").write_text(
            f"# as it was run: {machine.command()}\n{machine.repro_command()}\n"
        )
    there = shlex.quote(str(item.config.rootpath))
    (folder / "repeat.sh").write_text(f"cd {there}\n{repeat_command(item)}\n")
    if call.excinfo is not None:
        (folder / "error.txt").write_text(str(call.excinfo.value) + "\n")
    return folder
