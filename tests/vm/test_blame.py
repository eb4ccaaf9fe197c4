# SPDX-License-Identifier: MIT
"""What a kernel says fails the test that made it say so: sessions of their own over guests that are broken.

The injector is the module of ``tests/faults``: a word written to its device breaks the kernel as it says.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET  # what it reads was written a moment ago
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from harness.images import SilentProgress, build_module

INJECTOR = Path(__file__).parents[1] / "faults" / "injector"

CONFTEST = """
from pathlib import Path

import pytest

KO = Path({ko!r})


@pytest.fixture
def break_it(guest):
    return breaker(guest)


@pytest.fixture
def break_fresh(fresh_guest):
    return breaker(fresh_guest)


def breaker(guest):
    if b"iobmd_faults" not in guest.read_file("/proc/modules"):
        guest.load_module(KO.read_bytes())

    def write(word):
        guest.write_file("/dev/iobmd-faults", word.encode())

    return write
"""


@pytest.fixture(scope="session")
def injector(guest_image):
    return build_module(guest_image.kernel, INJECTOR, SilentProgress(), name="iobmd_faults").ko_debug


def command_line(pytestconfig, *argv):
    return [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-W", "error",
            "--kernel", pytestconfig.option.kernel, "--accel", pytestconfig.option.accel, *argv]  # fmt: skip


def environment():
    names = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**names, "NO_COLOR": "1"}


@pytest.fixture
def session(tmp_path, pytestconfig, injector):
    """Run a test file in a pytest of its own; return how it went."""
    (tmp_path / "conftest.py").write_text(CONFTEST.format(ko=str(injector)))

    def run(text, *argv):
        (tmp_path / "test_mine.py").write_text(text)
        done = subprocess.run(
            command_line(pytestconfig, *argv), cwd=tmp_path, env=environment(), capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        print(done.stdout, done.stderr)
        return done

    return run


def outcomes(done):
    """What became of every phase that did not pass, by the test's name."""
    found = re.findall(r"^(FAILED|ERROR) test_mine\.py::(\w+)", done.stdout, re.MULTILINE)
    return {(name, word.lower()) for word, name in found}


def folder_of(tmp_path, test):
    return tmp_path / "results/latest" / f"test_mine.py_{test}"


SPLATS = """
import pytest

def test_before(guest): pass
def test_warns(break_it): break_it("warn")
def test_after_a_warning(guest, iobmd): assert guest.generation == 1
def test_oopses(break_it): break_it("oops")
def test_after_an_oops(guest, iobmd): assert guest.generation == 2

@pytest.fixture
def warns_at_the_end(break_it):
    yield
    break_it("warn")

def test_teardown(warns_at_the_end): pass
def test_after_a_teardown(guest): assert guest.generation == 3

@pytest.mark.expect_oops("iobmd-faults: as asked")
def test_wants_a_warning(break_it): break_it("warn")

@pytest.mark.expect_oops("NULL pointer dereference")
def test_wants_an_oops(break_it): break_it("oops")

@pytest.mark.expect_oops("NULL pointer dereference")
def test_wants_an_oops_in_vain(break_it): break_it("nothing")

@pytest.mark.expect_oops("NULL pointer dereference")
def test_wants_an_oops_and_gets_a_warning(break_it): break_it("warn")

def test_fresh(break_fresh, guest): break_fresh("warn")
def test_last(guest, iobmd): pass
"""


def test_every_report_of_a_kernel_fails_the_test_it_belongs_to(session, tmp_path):
    done = session(SPLATS, "--junitxml", "junit.xml")
    assert done.returncode == 1
    assert outcomes(done) == {
        ("test_warns", "failed"),
        ("test_oopses", "failed"),
        ("test_teardown", "error"),
        ("test_wants_an_oops_in_vain", "failed"),
        ("test_wants_an_oops_and_gets_a_warning", "failed"),
        ("test_fresh", "failed"),
    }
    assert "kernel-tainted: the kernel complained during this test: warning: WARNING at " in done.stdout
    assert "do_warn" in done.stdout
    root = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314
    found = {}
    for case in root.iter("testcase"):
        of = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        found[case.get("name")] = (of.get("failure-kind"), of.get("splat"))
    assert found["test_warns"][0] == found["test_teardown"][0] == "kernel-tainted"
    assert found["test_oopses"][0] == "kernel-panicked"  # oops=panic is on the command line
    assert found["test_warns"][1] == found["test_wants_a_warning"][1] != found["test_oopses"][1]
    assert found["test_last"] == (None, None)

    oops = folder_of(tmp_path, "test_oopses")
    assert "oops: BUG: kernel NULL pointer dereference" in (oops / "splats.txt").read_text()
    assert "at  do_oops+0x" in (oops / "splats.txt").read_text()
    assert "iobmd_faults.c:" in (oops / "splats.txt").read_text()
    assert "test_warns" not in (oops / "test-console.log").read_text()
    assert "test_oopses" in (oops / "test-console.log").read_text()
    assert {path.name for path in oops.iterdir()} == {
        "console.log", "error.txt", "qemu.log", "qemu.sh", "repeat.sh", "repro.json", "splats.txt",
        "test-console.log",
    }  # fmt: skip


HANGS = """
from harness.deadlines import Deadlines

def test_hangs(break_it, iobmd, guest):
    guest.operation_timeout = 1.0
    try:
        break_it("{word}")
    finally:
        guest.wait_as(Deadlines(5.0))  # as if it lived

def test_after(guest, iobmd): assert guest.generation == 1
"""


@pytest.mark.parametrize(
    ("word", "kind"),
    [("spin", "kernel-hung"), ("spin-deaf", "kernel-hung"), ("hang", "operation-timed-out")],
)
def test_a_hang_leaves_what_can_still_be_asked(session, tmp_path, word, kind):
    since = time.monotonic()
    done = session(HANGS.format(word=word))
    # What the fixtures ask such a guest does not wait as well: 100 s for every operation, by those deadlines.
    assert time.monotonic() - since < 95
    assert outcomes(done) == {("test_hangs", "failed")}
    folder = folder_of(tmp_path, "test_hangs")
    assert json.loads((folder / "repro.json").read_text())["failure"] == kind
    hang = (folder / "hang.txt").read_text()
    assert "=== QEMU\nrunning, running" in hang
    assert re.search(r"vCPU 0: in the kernel, (halted, )?interrupts", hang)
    word = word.replace("-", "_")
    assert f"do_{word}+0x" in hang, hang  # by name: on the vCPU's stack, or the task's of SysRq
    assert "cannot be had" not in hang


def test_the_memory_of_a_failure_is_an_elf_core(session, tmp_path):
    done = session("def test_bad(guest): assert 0", "--dump-on-failure", "--memory", "256")
    assert "1 failed" in done.stdout
    with (folder_of(tmp_path, "test_bad") / "memory.elf").open("rb") as file:
        core = ELFFile(file)
        assert core["e_type"] == "ET_CORE"
        loads = [part for part in core.iter_segments() if part["p_type"] == "PT_LOAD"]
        assert sum(part["p_filesz"] for part in loads) >= 256 << 20


def test_a_panic_is_dumped_as_well(session, tmp_path):
    done = session(
        "def test_bad(break_it): break_it('panic')\ndef test_after(guest, iobmd): pass",
        "--dump-on-failure", "--memory", "256",
    )  # fmt: skip
    assert outcomes(done) == {("test_bad", "failed")}
    assert (folder_of(tmp_path, "test_bad") / "memory.elf").stat().st_size > 256 << 20


def test_only_the_last_runs_are_kept(session, tmp_path):
    names = []
    for _ in range(3):
        session("def test_bad(guest): assert 0", "--keep-runs", "2")
        names.append((tmp_path / "results/latest").readlink().name)
        (tmp_path / "results" / "mine").mkdir(exist_ok=True)
        time.sleep(1.0 - time.time() % 1.0)  # a run's name has the second it began
    assert {path.name for path in (tmp_path / "results").iterdir()} == {*names[1:], "latest", "mine"}


def test_a_full_disk_hides_nothing(session):
    done = session("def test_bad(break_it): break_it('warn')", "--results", "/dev/full/results")
    assert outcomes(done) == {("test_bad", "failed")}
    assert "not kept: " in done.stdout
    assert "kernel-tainted: " in done.stdout


REPEATED = """
import os
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_bad(break_it, n):
    print("hash seed", os.environ.get("PYTHONHASHSEED"))
    break_it("warn")
"""


def test_a_failed_test_is_run_again_from_its_folder(session, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "42")
    session(REPEATED, "--cpus", "2")
    monkeypatch.delenv("PYTHONHASHSEED")
    folder = folder_of(tmp_path, "test_bad[2]")

    def again(where, cwd="/"):
        return subprocess.run(
            [sys.executable, "-m", "harness", "repro", str(where)], cwd=cwd, env=environment(),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = again(folder.resolve())
    assert done.returncode == 1, done.stderr
    assert "1 failed" in done.stdout
    assert "hash seed 42" in done.stdout
    assert "2 vCPU" in done.stdout
    assert "kernel-tainted: the kernel complained during this test" in done.stdout

    gone = again(tmp_path / "results")
    assert gone.returncode == 2
    assert "is not the results folder of a failed test" in gone.stderr
    (tmp_path / "test_mine.py").write_text("def test_other(): pass")
    assert (
        "the test is gone: pytest does not find test_mine.py::test_bad[2]" in again(folder.resolve()).stderr
    )
    (tmp_path / "test_mine.py").unlink()
    assert "the test is gone: there is no file " in again(folder.resolve()).stderr


KEPT = """
def test_bad(guest, iobmd):
    guest.write_file("/tmp/seen", b"by the shell")
    assert 0

def test_after(guest): assert guest.generation == 1
"""


def test_a_kept_guest_can_be_looked_at(tmp_path, pytestconfig):
    (tmp_path / "test_mine.py").write_text(KEPT)
    with subprocess.Popen(
        command_line(pytestconfig, "--keep-vm", "--keep-seconds", "120"), cwd=tmp_path, env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as pytest_:  # fmt: skip
        said = {}
        for line in pytest_.stdout:
            name, _, rest = line.strip().partition(":")
            said[name] = rest.strip()
            if "pytest waits until" in line:
                break
        assert "120 s are over" in line
        words = said["QMP"].split()
        attach, sock = [sys.executable, "-m", "harness", *words[1:3]], words[2]

        def ask(*more, **how):
            return subprocess.run(
                [*attach, *more], env=environment(), capture_output=True, text=True, timeout=60,
                check=False, **how,
            )  # fmt: skip

        assert json.loads(ask("qmp", "query-status").stdout)["status"] == "paused"
        assert "the guest runs" in ask("resume").stdout
        assert json.loads(ask("qmp", "query-status").stdout)["status"] == "running"
        assert "stands still" in ask("pause").stdout
        assert ask("qmp", "no-such-command").returncode == 1
        assert speak_qmp(said["QMP for tools"])["return"]["status"] == "paused"
        assert ask("shell", input="cat /tmp/seen\n").stdout == "by the shell"
        assert "add-symbol-file " in said["gdb"]
        assert "-s .data 0xffffffff" in said["gdb"]
        assert said["gdb"].endswith(f"'target remote {Path(sock).parent}/gdb.sock'")
        assert "pytest goes on" in ask("end").stdout
        rest = pytest_.stdout.read()
        assert pytest_.wait(60) == 1
    assert "1 failed, 1 passed" in rest
    gone = subprocess.run([*attach, "resume"], env=environment(), capture_output=True, text=True, check=False)
    assert gone.returncode == 2
    assert "no session keeps a guest at " in gone.stderr


def speak_qmp(path):
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(20)
        line.connect(path)
        file = line.makefile("rw")
        assert "QMP" in json.loads(file.readline())
        file.write('{"execute": "qmp_capabilities"} {"execute": "query-status"}')
        file.flush()
        assert json.loads(file.readline()) == {"return": {}}
        return json.loads(file.readline())


def test_ctrl_c_ends_the_keeping_and_not_the_session(tmp_path, pytestconfig):
    (tmp_path / "test_mine.py").write_text(KEPT)
    # Whoever started the tests may ignore Ctrl-C, as background jobs of a shell do; that is inherited.
    interruptible = ["env", "--default-signal=INT", *command_line(pytestconfig, "--keep-vm")]
    with subprocess.Popen(
        interruptible, cwd=tmp_path, env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as pytest_:  # fmt: skip
        line = next(line for line in pytest_.stdout if "pytest waits until" in line)
        assert "600 s are over" in line
        pytest_.send_signal(signal.SIGINT)
        rest = pytest_.stdout.read()
        assert "Ctrl-C; pytest goes on" in rest
        assert "1 failed, 1 passed" in rest  # it ends the waiting, not the session


LEAKS = """
from harness.link import Guest

LEFT = []

def test_leaves_one(guest_image):
    LEFT.append(Guest(guest_image).__enter__())
"""


def test_a_guest_nobody_ended_fails_the_session(session):
    done = session(LEAKS)
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "iobmd: left behind" in done.stdout
    assert re.search(r"process \d+ \(qemu-system-x86\)", done.stdout)
    assert "memory file /memfd:iobmd-ram-" in done.stdout
    assert done.stdout.count("socket to QEMU") >= 3
    assert "private folder " in done.stdout
