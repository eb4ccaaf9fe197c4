# SPDX-License-Identifier: MIT
"""``iobmd audit`` from the command line, against real guests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 180


def words(pytestconfig, *argv):
    machine = ["--kernel", pytestconfig.option.kernel, "--accel", pytestconfig.option.accel]
    return [sys.executable, "-m", "harness", "audit", *argv, *machine]


@pytest.fixture
def audit_command(pytestconfig, tmp_path):
    def run(*argv):
        return subprocess.run(
            words(pytestconfig, *argv),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    return run


def test_findings_are_printed_written_and_exited_with(audit_command, tmp_path):
    done = audit_command(str(HERE / "ends"), "--exercise", str(HERE / "use.sh"), "--json", "audit.json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "finding 1  free-size: ends, ends.c:" in done.stdout
    assert "finding 2  unmap-direction: ends, ends.c:" in done.stdout
    assert "2 findings in 4 buffers and mappings from 3 places" in done.stdout
    assert "none lost" in done.stdout
    document = json.loads((tmp_path / "audit.json").read_text())
    (one,) = document["audits"]
    assert [finding["rule"] for finding in one["findings"]] == ["free-size", "unmap-direction"]
    assert one["findings"][1]["count"] == 2
    assert one["devices"] == ["ends"]
    assert (one["exit_code"], one["failure"], one["ledger"]["lost"]) == (1, None, 0)


def test_a_kernel_that_dies_of_the_driver(audit_command, tmp_path):
    done = audit_command(str(HERE / "ends"), "--params", "end=crashes", "--json", "audit.json")
    assert done.returncode == 12, done.stdout + done.stderr
    assert "finding 1  free-size: ends, ends.c:" in done.stdout
    assert "the audit did not come to its end: kernel-panicked" in done.stdout
    assert "NULL pointer dereference" in done.stdout
    assert "panic" in done.stderr
    (kept,) = (tmp_path / "results").iterdir()
    assert str(kept.relative_to(tmp_path)) in done.stderr
    assert "NULL pointer dereference" in (kept / "console.log").read_text()
    assert "panic" in (kept / "error.txt").read_text()
    assert {"audit.json", "kernel.log", "qemu.log", "qemu.sh"} <= {file.name for file in kept.iterdir()}
    (one,) = json.loads((tmp_path / "audit.json").read_text())["audits"]
    assert one["failure"]["kind"] == "kernel-panicked"
    assert [finding["rule"] for finding in one["findings"]] == ["free-size"]


def test_a_driver_that_is_not_taken(audit_command):
    done = audit_command(str(HERE / "ends"), "--params", "end=refused")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "ends could not be loaded" in done.stderr
    assert "EINVAL" in done.stderr
    assert "finding 1  free-size" in done.stdout  # it made its mistake before it was refused


LONG = """
import sys

def exercise(run):
    run.sh(f"echo 1 > /sys/module/{run.name}/parameters/kick")
    print("the guest sleeps", file=sys.stderr, flush=True)
    run.sh("sleep 1000", timeout=1000)
"""


def test_ctrl_c_tells_what_was_found_and_leaves_nothing(pytestconfig, tmp_path):
    mark = uuid.uuid4().hex
    long = tmp_path / "long.py"
    long.write_text(LONG)
    # Whoever started the tests may ignore Ctrl-C, as background jobs of a shell do; that is inherited.
    interruptible = ["env", "--default-signal=INT"]
    process = subprocess.Popen(
        [*interruptible, *words(pytestconfig, str(HERE / "ends"), "--exercise", str(long))],
        cwd=tmp_path,
        env={**os.environ, "IOBMD_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert any("the guest sleeps" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            told, complaints = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130, told + complaints
    assert "Audit of ends" in told
    assert "finding 1  free-size" in told
    assert "finding 2  unmap-direction" in told
    assert "interrupted; nothing is left running" in complaints
    assert marked(mark) == []


def marked(mark):
    """The QEMUs that came from an environment with *mark* and are still there."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            ours = process.name.isdigit() and mark.encode() in (process / "environ").read_bytes()
            if ours and b"qemu-system" in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found
