# SPDX-License-Identifier: MIT
"""A session that leaves something behind fails, and says what."""

import os
import signal
from pathlib import Path

import pytest

from harness.vm.leaks import held

pytest_plugins = ("pytester",)

LEAKS = {
    "memory": """
        import os
        LEFT = []
        def test_it(): LEFT.append(os.memfd_create("iobmd-ram-test"))
    """,
    "socket": """
        import socket
        from harness.vm.leaks import track
        LEFT = []
        def test_it():
            here, there = socket.socketpair()
            LEFT.extend((track(here), there))
    """,
    "folder": """
        from harness.vm.workdir import Workdir
        LEFT = []
        def test_it(): LEFT.append(Workdir())
    """,
    "process": """
        import shutil, subprocess
        LEFT = []
        def test_it(tmp_path):
            shutil.copy(shutil.which("sleep"), tmp_path / "qemu-system-x86_64")
            LEFT.append(subprocess.Popen([tmp_path / "qemu-system-x86_64", "60"]))
            while "qemu" not in open(f"/proc/{LEFT[0].pid}/comm").read():
                pass  # its name comes a moment after its start
            LEFT[0].returncode = 0  # nor does Python warn of it
    """,
}
WORDS = {
    "memory": "memory file /memfd:iobmd-ram-test",
    "socket": "socket to QEMU, descriptor ",
    "folder": "private folder ",
    "process": " (qemu-system-x86)",
}


def run(pytester, text, *argv):
    pytester.makepyfile(test_mine=text)
    return pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", *argv)


@pytest.mark.parametrize("what", LEAKS)
def test_what_is_left_fails_the_session(pytester, what):
    done = run(pytester, LEAKS[what])
    said = done.stdout.str()
    for line in said.splitlines():
        if line.endswith(" (qemu-system-x86)"):
            pid = int(line.split()[1])
            assert "qemu-system" in Path(f"/proc/{pid}/comm").read_text()
            os.kill(pid, signal.SIGKILL)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    assert "1 passed" in said
    assert "iobmd: left behind" in said
    assert WORDS[what] in said


def test_what_a_worker_leaves_fails_the_session_too(pytester):
    done = run(pytester, LEAKS["memory"], "-n", "1")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    assert "  [gw0] memory file /memfd:iobmd-ram-test" in done.stdout.str()


def test_nothing_left_is_nothing_said(pytester):
    done = run(pytester, "def test_it(): pass")
    assert done.ret == 0
    assert "left behind" not in done.stdout.str()


def test_what_was_there_before_is_not_the_sessions(pytester):
    from harness.vm.workdir import Workdir

    mine = Workdir()
    try:
        assert any("private folder" in what for what in held())
        pytester.makepyfile("def test_it(): pass")
        done = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider")
        assert done.ret == 0
    finally:
        mine.close(keep=False)
