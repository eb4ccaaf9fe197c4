# SPDX-License-Identifier: MIT
"""The plugin as its users meet it: in a file of theirs, outside of this project."""

import os
import re
import subprocess
import sys

import pytest

PASSES = """
from harness.iokit import kIODirectionInOut, kIOMapWriteCombineCache
from harness.oracle import MemoryType


def test_write_combined(iobmd, oracle):
    buf = iobmd.withOptions(kIODirectionInOut | kIOMapWriteCombineCache, capacity=64 * 1024, alignment=65536)
    assert buf.getPhysicalSegment(0).address % 65536 == 0
    assert oracle.types_of(buf) == {MemoryType.WC}        # every alias, seen from outside


def test_what_a_test_leaves_is_released(iobmd):
    assert iobmd.info().live == 0
"""

FAILS = """
def test_null_says_why(iobmd):
    iobmd.withOptions(0x13, 8 << 20).getCapacity()


def test_speaks_and_fails(iobmd, guest):
    guest.write_file("/dev/kmsg", b"<3>the kernel's last words\\n")
    assert iobmd.withOptions(3, 16).getCapacity() == 17


def test_kills(guest):
    guest.machine.qmp.execute("quit")
    guest.link.ping()


def test_comes_after(iobmd):
    pass
"""


@pytest.fixture
def session(tmp_path, pytestconfig):
    """Run a user's test file in a pytest of its own, with this session's kernel."""

    def run(text, *argv):
        (tmp_path / "test_mine.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error",
                   "--kernel", pytestconfig.option.kernel,
                   "--accel", pytestconfig.option.accel, *argv]  # fmt: skip
        environment = {**os.environ, "NO_COLOR": "1"}
        environment.pop("PYTEST_ADDOPTS", None)
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
        )

    return run


def test_the_example_of_the_readme_passes_anywhere(session):
    done = session(PASSES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert re.search(r"iobmd: kernel \S+, machine \S+, \d+ MiB, \d vCPU", done.stdout)
    assert re.search(
        r"iobmd: 6\.\S+ \(\S+\) on \S+, QEMU \S+, (tcg|kvm): .+; (booted|restored \D+) in \d", done.stdout
    )


def test_a_failure_leaves_its_evidence(session, tmp_path):
    done = session(FAILS)
    assert done.returncode == 1
    assert "3 failed, 1 passed" in done.stdout
    assert "getCapacity was asked of NULL" in done.stdout
    assert "longest physically contiguous block" in done.stdout

    evidence = {path.name: path for path in (tmp_path / "results/latest").iterdir()}
    spoke = next(path for name, path in evidence.items() if "speaks_and_fails" in name)
    assert "the kernel's last words" in (spoke / "console.log").read_text()
    assert "the kernel's last words" in done.stdout
    assert "qemu-system-x86_64" in (spoke / "qemu.sh").read_text()
    assert "test_mine.py::test_speaks_and_fails" in (spoke / "repeat.sh").read_text()

    assert "QEMU" in done.stdout  # the death of the guest is named, in the test that caused it ...
    assert any("test_kills" in name for name in evidence)
    died = r"^iobmd: the session guest died in \S+::test_kills: QEMU ended .* for \S+::(\w+)$"
    assert re.findall(died, done.stdout, re.MULTILINE) == ["test_comes_after"]  # ... and hurts nobody else


def test_wrong_words_are_a_usage_error(session):
    done = session("", "--memory", "64")
    assert done.returncode == 4
    assert "64 MiB of guest RAM are too few" in done.stderr
