# SPDX-License-Identifier: MIT
"""``iobmd`` from the command line, against real guests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pexpect
import pytest


def command(pytestconfig, *argv):
    machine = ["--kernel", pytestconfig.option.kernel, "--accel", pytestconfig.option.accel]
    return [sys.executable, "-m", "harness.cli", *argv, *machine]


@pytest.fixture
def iobmd_command(pytestconfig, tmp_path):
    def run(*argv):
        return subprocess.run(
            command(pytestconfig, *argv),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    return run


def test_check_prints_a_table_and_writes_the_same_as_json(iobmd_command, tmp_path):
    done = iobmd_command("check", "--group", "C", "--group", "F02", "--json", "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "F02   holds" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    clauses = {entry["id"]: entry for entry in report["clauses"]}
    assert len(clauses) == 173
    page = clauses["F02"]["evidence"]["pages"][0]
    assert page["effective"] == "WC"
    assert int(page["va"], 16) > 1 << 63
    assert clauses["F02"]["from_outside"] is True
    assert clauses["A01"]["verdict"] == "unproved"
    assert f"holds {sum(e['verdict'] == 'holds' for e in clauses.values())}, broken 0" in done.stdout


def guests_marked(mark):
    """Return the pids of QEMU processes that were started, by whomever, from an environment with *mark*."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"qemu-system" in words and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_from_outside_leaves_no_guest(pytestconfig, tmp_path, number, code):
    mark = f"iobmd-{uuid.uuid4()}"
    # Whoever started the tests may ignore Ctrl-C, as background jobs of a shell do; that is inherited.
    interruptible = ["env", "--default-signal=INT", *command(pytestconfig, "check")]
    process = subprocess.Popen(
        interruptible, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "IOBMD_MARK": mark},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not guests_marked(mark):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(20) == code
        deadline = time.monotonic() + 2
        while left := guests_marked(mark):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_boot_gives_a_shell_on_the_console(pytestconfig, tmp_path):
    argv = command(pytestconfig, "boot")
    child = pexpect.spawn(argv[0], argv[1:], cwd=str(tmp_path), encoding="utf-8", timeout=120)
    try:
        child.expect_exact("iobmd:/# ")
        child.sendline("grep -c iobmd /proc/modules; uname -r")
        child.expect(r"1\r\n(6\.\S+)")
        child.send("\x1d")
        child.expect(pexpect.EOF, timeout=20)
        child.close()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)


def test_doctor_finds_this_host_ready(pytestconfig, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "doctor"], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "ready: iobmd check" in done.stdout
    assert pytestconfig.option.kernel in done.stdout


def test_ssh_runs_one_command_as_ssh_does(pytestconfig, tmp_path):
    (tmp_path / "in").write_text("put there\n")
    argv = [sys.executable, "-m", "harness.cli", "ssh", "--kernel", pytestconfig.option.kernel]
    argv += ["--accel", pytestconfig.option.accel, "--put", "in:/tmp/in", "--get", "/tmp/out:out"]
    done = subprocess.run(
        [*argv, "cat", "-", "/tmp/in;", "echo complaint >&2; echo fetched > /tmp/out; exit 7"],
        cwd=tmp_path, input="piped\n", capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (7, "piped\nput there\n"), done.stderr
    assert done.stderr.endswith("complaint\n")
    assert (tmp_path / "out").read_text() == "fetched\n"


def test_ssh_gives_a_shell_of_the_terminals_size(pytestconfig, tmp_path):
    argv = command(pytestconfig, "ssh")
    child = pexpect.spawn(
        argv[0], argv[1:], cwd=str(tmp_path), encoding="utf-8", timeout=120, dimensions=(31, 97)
    )
    try:
        child.expect_exact("iobmd:~# ")
        child.sendline("stty size; tty")
        child.expect_exact("31 97\r\n/dev/pts/0\r\n")
        child.setwinsize(20, 50)
        child.expect_exact("iobmd:~# ")
        child.sendline("while [ \"$(stty size)\" != '20 50' ]; do :; done; echo resized $?")
        child.expect_exact("\nresized 0")
        child.sendline("exit 5")
        child.expect(pexpect.EOF, timeout=20)
        child.close()
        assert child.exitstatus == 5
    finally:
        child.close(force=True)


@pytest.mark.parametrize(
    ("line", "said", "code"),
    [("poweroff -f", "the guest has ended", 0), ("echo c > /proc/sysrq-trigger", "kernel panicked", 12)],
)
def test_ssh_to_a_guest_that_ends(pytestconfig, tmp_path, line, said, code):
    argv = command(pytestconfig, "ssh")
    child = pexpect.spawn(argv[0], argv[1:], cwd=str(tmp_path), encoding="utf-8", timeout=60)
    try:
        child.expect_exact("iobmd:~# ")
        child.sendline(line)
        child.expect_exact(said)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == code
    finally:
        child.close(force=True)
