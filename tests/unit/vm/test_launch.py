# SPDX-License-Identifier: MIT
"""Which name a death gets: the order of looking at the process and at the console."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import FailureKind, HostExhausted
from harness.vm import Console, ConsoleLost, GuestPanicked, QemuDied, QemuRefused
from harness.vm.launch import Launched


class FakeProcess:
    """Ends when it is waited for, as a process does whose sockets are closed already."""

    def __init__(self, now: int | None, later: int | None) -> None:
        self.now, self.later, self.waits = now, later, 0
        self.pid = os.getpid()  # one that is not on its way out

    def status(self) -> int | None:
        return self.now

    def wait(self, _seconds: float) -> int | None:
        self.waits += 1
        self.now = self.later
        return self.now


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[socket.socket, Console]]:
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "console.log")
    yield theirs, console
    theirs.close()
    console.close()


def made(process: Any, console: Console, folder: Path, *, answered: bool = True) -> Launched:
    (folder / "qemu.log").write_text("qemu: out of luck\n")
    return Launched(
        process, console, console._sock, {}, -1, ("qemu",), "qemu", folder, answered, lambda: "it told"
    )


def test_a_living_machine_passes_without_waiting(line: tuple[socket.socket, Console], tmp_path: Path) -> None:
    process = FakeProcess(None, None)
    made(process, line[1], tmp_path).check()
    assert process.waits == 0


def test_a_closed_console_is_a_death_that_is_about_to_be_reaped(
    line: tuple[socket.socket, Console], tmp_path: Path
) -> None:
    line[0].close()
    line[1].wait_end(5)
    with pytest.raises(QemuDied) as caught:
        made(FakeProcess(None, -6), line[1], tmp_path).check()
    assert caught.value.signal_name == "SIGABRT"
    assert caught.value.observed == "killed by SIGABRT (it told)"
    assert "qemu: qemu: out of luck" in str(caught.value)


def test_a_closed_console_of_a_process_that_lives_is_no_death(
    line: tuple[socket.socket, Console], tmp_path: Path
) -> None:
    line[0].close()
    line[1].wait_end(5)
    process = FakeProcess(None, None)
    launched = made(process, line[1], tmp_path)
    for _ in range(3):
        with pytest.raises(ConsoleLost) as caught:
            launched.check()
    assert caught.value.kind is FailureKind.CHANNEL_BROKEN
    assert process.waits == 1  # known is known


def test_a_panic_names_the_death_better_than_the_exit_code(
    line: tuple[socket.socket, Console], tmp_path: Path
) -> None:
    line[0].sendall(b"[    1.000000] Kernel panic - not syncing: test\n")
    line[0].close()
    with pytest.raises(GuestPanicked, match="not syncing: test"):
        made(FakeProcess(0, 0), line[1], tmp_path).check()


def test_a_death_before_the_greeting_is_a_refusal(
    line: tuple[socket.socket, Console], tmp_path: Path
) -> None:
    line[0].close()
    with pytest.raises(QemuRefused, match="did not start") as caught:
        made(FakeProcess(1, 1), line[1], tmp_path, answered=False).check()
    assert (caught.value.status, caught.value.exit_code) == (1, 2)


def test_a_refusal_for_lack_of_something_is_the_hosts(
    line: tuple[socket.socket, Console], tmp_path: Path
) -> None:
    line[0].close()
    it = made(FakeProcess(1, 1), line[1], tmp_path, answered=False)
    (tmp_path / "qemu.log").write_text("qemu: cannot set up guest memory 'ram': Cannot allocate memory\n")
    with pytest.raises(HostExhausted, match="no memory left") as caught:
        it.check()
    assert isinstance(caught.value.__cause__, QemuRefused)
    assert any("Cannot allocate memory" in text for text in caught.value.evidence)


def test_a_log_that_is_not_whole_says_so(line: tuple[socket.socket, Console], tmp_path: Path) -> None:
    it = made(FakeProcess(None, None), line[1], tmp_path)
    assert not any("missing" in text for text in it.scene().console)
    line[1]._lost = 7
    assert it.scene().console[-1] == "(7 bytes of this log are missing: the disk was full)"
