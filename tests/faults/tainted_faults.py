# SPDX-License-Identifier: MIT
"""What a kernel survives and complains about: told by pytest, which blames the test that did it.

Each runs in a session of its own, as a user's would: one test injects the fault, and the next one must pass.
The name is what the session's JUnit report says; the time is that session's own and ends when it has made the
test's report.
"""

import xml.etree.ElementTree as ET  # what it reads was written a moment ago
from pathlib import Path

from fault_table import PANIC_SECONDS
from host_faults import small_disk
from stage import Stage, ended, fault

from harness.errors import FailureKind

_SESSION_SECONDS = 240.0
_TAINTED = FailureKind.KERNEL_TAINTED
_PANICKED = FailureKind.KERNEL_PANICKED
_WARN = 'write(guest, "warn")'
# Only where it is asked for: a kernel that bears so little complains of a busy host as well.
_IMPATIENT = 'guest.write_file("/proc/sys/kernel/{}", b"1")'

_CONFTEST = """
import sys
from pathlib import Path
import pytest

sys.path.insert(0, {faults!r})
from fault_table import waiting_aside

@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if report.failed and not Path("reported").exists():
        Path("reported").write_text(str(waiting_aside()))
"""

_SESSION = """
import os
from pathlib import Path
import pytest
from fault_table import waiting_aside
from harness.link import In, Nr

def write(guest, word):
    fd = guest.open("/dev/iobmd-faults", os.O_RDWR)
    Path("injected").write_text(str(waiting_aside()))
    return guest.link.start(Nr.WRITE, fd, In(word.encode()), len(word), what=f"fault {{word}}")

{marker}
def test_fault(guest):
    guest.load_module(Path("injector.ko").read_bytes())
    {body}

def test_next(guest):
    assert guest.link.ping(b"well again") == b"well again"
"""


@fault("pytest", "WARN() in a test whose asserts hold", _TAINTED, PANIC_SECONDS)
def warning(stage: Stage) -> None:
    assert "do_warn" in _told(stage, f"{_WARN}.wait(30)")


@fault("pytest", "an oops, of which the kernel dies by default", _PANICKED, PANIC_SECONDS)
def oops(stage: Stage) -> None:
    assert "do_oops" in _told(stage, 'write(guest, "oops").wait(30)')


@fault("pytest", "an oops that the kernel is told to survive", _TAINTED, PANIC_SECONDS)
def oops_survived(stage: Stage) -> None:
    """It costs the agent a thread, and the test no assert."""
    body = 'guest.write_file("/proc/sys/kernel/panic_on_oops", b"0"); write(guest, "oops"); '
    assert "do_oops" in _told(stage, body + 'guest.machine.console.wait_for("end trace", 30)')


@fault("pytest", "BUG()", _PANICKED, PANIC_SECONDS)
def bug(stage: Stage) -> None:
    assert "do_bug" in _told(stage, 'write(guest, "bug").wait(30)')


@fault("pytest", "memory is freed twice", _PANICKED, PANIC_SECONDS)
def double_free(stage: Stage) -> None:
    assert "do_double_free" in _told(stage, 'write(guest, "double-free").wait(30)')


@fault("pytest", "sleeps where it must not", _TAINTED, PANIC_SECONDS)
def sleep_atomic(stage: Stage) -> None:
    _told(stage, 'write(guest, "sleep-atomic").wait(30)')


@fault("pytest", "a task hangs for longer than the kernel bears (1 s)", _TAINTED, 6.0)
def hung_task(stage: Stage) -> None:
    """The kernel looks every second; its complaint ends the test's wait."""
    body = f'{_IMPATIENT.format("hung_task_timeout_secs")}; write(guest, "hang"); '
    _told(stage, body + 'guest.machine.console.wait_for("blocked for more than", 30)')


@fault("pytest", "a processor is held for longer than the watchdog bears (2 s)", _TAINTED, 10.0)
def soft_lockup(stage: Stage) -> None:
    _told(stage, f'{_IMPATIENT.format("watchdog_thresh")}; write(guest, "stall-long").wait(30)')


@fault("pytest", "WARN(), and the results' disk is full", _TAINTED, PANIC_SECONDS)
def results_full(stage: Stage) -> None:
    with small_disk(stage) as disk:
        told = _told(stage, f"{_WARN}.wait(30)", "--results", str(disk / "results"))
    assert "No space left on device" in told, told


@fault("pytest", "WARN() that the test expects", None, PANIC_SECONDS)
def expected_warning(stage: Stage) -> None:
    _told(stage, f"{_WARN}.wait(30)", marker='@pytest.mark.expect_oops("iobmd-faults: as asked")')


@fault("pytest", "an oops that the test expects", None, PANIC_SECONDS)
def expected_oops(stage: Stage) -> None:
    _told(stage, 'write(guest, "oops").wait(30)', marker='@pytest.mark.expect_oops("NULL pointer")')


def _told(stage: Stage, body: str, *options: str, marker: str = "") -> str:
    """Run a session; note what the report calls its failure, and how soon.  Its next test has to pass."""
    folder = stage.folder
    (folder / "conftest.py").write_text(_CONFTEST.format(faults=str(Path(__file__).parent)))
    (folder / "test_mine.py").write_text(_SESSION.format(body=body, marker=marker))
    (folder / "injector.ko").write_bytes(stage.shop.injector)
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", "junit.xml", "test_mine.py"]
    program = stage.start([*words, *options, *stage.machine_words()])
    ended(program, _SESSION_SECONDS)
    told = (folder / "out").read_text()
    cases = {case.get("name"): case for case in ET.parse(folder / "junit.xml").iter("testcase")}  # noqa: S314
    kinds = {entry.get("name"): entry.get("value") for entry in cases["test_fault"].iter("property")}
    failed = cases["test_fault"].find("failure")
    kind = None
    if failed is not None:
        named = kinds.get("failure-kind", FailureKind.NOT_DONE.word)
        kind = next(one for one in FailureKind if one.word == named)
    said = "" if failed is None else str(failed.get("message"))
    seconds = _stamp(folder / "reported") - _stamp(folder / "injected") if kind else 0.0
    stage.call(kind, said.partition("\n")[0], seconds)
    assert cases["test_next"].find("failure") is None, told
    assert cases["test_next"].find("error") is None, told
    return told


def _stamp(path: Path) -> float:
    return float(path.read_text())
