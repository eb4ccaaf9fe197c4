# SPDX-License-Identifier: MIT
"""Programs that die, hang and ignore signals; and parents that vanish."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.errors import HostLacks
from harness.vm.errors import describe_status
from harness.vm.process import Process, guarded, spawn


def start(tmp_path: Path, script: str, **options: object) -> Process:
    return spawn(["/bin/sh", "-c", script], pass_fds=(), log=tmp_path / "log", **options)  # type: ignore[arg-type]


def wait_for_text(path: Path, text: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while text not in path.read_text():
        assert time.monotonic() < end, path.read_text()
        time.sleep(0.005)


def test_output_and_exit_code_are_kept(tmp_path: Path) -> None:
    process = start(tmp_path, "echo out; echo err >&2; exit 7")
    assert process.wait(10) == 7
    assert process.end() == 7
    assert (tmp_path / "log").read_text() == "out\nerr\n"
    assert "exit code 7" in repr(process)


def test_a_polite_program_ends_when_asked(tmp_path: Path) -> None:
    read, write = os.pipe()
    process = spawn(["/bin/cat", f"/proc/self/fd/{read}"], pass_fds=(read,), log=tmp_path / "log")
    os.close(read)
    assert process.status() is None
    assert process.end(ask=lambda: os.close(write)) == 0


def test_a_deaf_program_gets_sigterm(tmp_path: Path) -> None:
    process = start(tmp_path, "echo up; exec sleep 100")
    start_time = time.monotonic()
    assert process.end(ask=lambda: None, grace=0.1) == -signal.SIGTERM
    assert time.monotonic() - start_time < 5


def test_an_asking_that_fails_is_no_obstacle(tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("no connection")

    process = start(tmp_path, "exec sleep 100")
    assert process.end(ask=fails, grace=1) == -signal.SIGTERM


def test_a_stubborn_program_gets_sigkill(tmp_path: Path) -> None:
    process = start(tmp_path, "trap '' TERM; echo deaf; while :; do sleep 1; done")
    wait_for_text(tmp_path / "log", "deaf")
    assert process.end(grace=0.1) == -signal.SIGKILL
    assert process.end() == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()


def test_ctrl_c_while_ending_still_ends_it(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    process = start(tmp_path, "trap '' TERM; while :; do sleep 1; done")
    with pytest.raises(KeyboardInterrupt):
        process.end(ask=interrupted)
    assert process.status() == -signal.SIGKILL


def test_only_the_named_descriptors_are_inherited(tmp_path: Path) -> None:
    secret, passed = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    process = spawn(["/bin/ls", "-l", "/proc/self/fd"], pass_fds=(passed,), log=tmp_path / "log")
    assert process.end(ask=lambda: process.wait(10)) == 0
    os.close(secret)
    os.close(passed)
    listed = {line.split()[-3] for line in (tmp_path / "log").read_text().splitlines() if "->" in line}
    assert str(passed) in listed
    assert str(secret) not in listed


def test_it_has_a_session_of_its_own(tmp_path: Path) -> None:
    process = start(tmp_path, "exec sleep 100")
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    process.end(grace=0.1)


def test_it_survives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    made: list[Process] = []
    thread = threading.Thread(target=lambda: made.append(start(tmp_path, "exec sleep 100")))
    thread.start()
    thread.join()
    assert made[0].wait(0.3) is None
    made[0].end(grace=0.1)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    process = spawn(["/nowhere/qemu"], pass_fds=(), log=tmp_path / "log")
    assert process.end(ask=lambda: process.wait(10)) == 127
    assert "/nowhere/qemu" in (tmp_path / "log").read_text()


def test_a_missing_setpriv_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostLacks, match="setpriv"):
        guarded(["true"])


def test_a_parent_that_is_gone_already_starts_nothing() -> None:
    command = guarded(["/bin/echo", "started"])
    assert subprocess.run(command, capture_output=True, check=False).stdout == b"started\n"
    command[command.index(str(os.getpid()))] = "1"
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.stdout, done.returncode) == (b"", 1)


CHILD = """
import sys
from pathlib import Path
from harness.vm.process import spawn
script = "trap '' TERM HUP INT; while :; do sleep 1; done"
process = spawn(["/bin/sh", "-c", script], pass_fds=(), log=Path(sys.argv[1]))
print(process.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_takes_it_along_within_a_second(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as parent:
        assert parent.stdout is not None
        orphan = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            poller = select.poll()
            poller.register(orphan, select.POLLIN)
            assert poller.poll(1000), "it outlived its parent by a second"
        finally:
            os.close(orphan)


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exit code 0"), (-9, "killed by SIGKILL"), (-99, "signal 99")]
)
def test_a_status_in_words(status: int, words: str) -> None:
    assert words in describe_status(status)
