# SPDX-License-Identifier: MIT
"""Several workers: how many a host has room for, and that their words reach the terminal.

The sessions are processes of their own: workers load the same conftest, and with it the same fakes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.pytest_plugin import repeat
from harness.pytest_plugin.workers import GUEST_OVERHEAD_MIB, WORKER_OVERHEAD_MIB, workers_for
from harness.vm.ram import MIB

CONFTEST = """
import sys

sys.path.insert(0, {here!r})
import fake_guest

undo = fake_guest.install(memory_mib={memory_mib})

def pytest_configure(config):
    config.add_cleanup(undo)
"""

# With 512 MiB of RAM, two guests to a worker.
WORKER_MIB = 2 * (512 + GUEST_OVERHEAD_MIB) + WORKER_OVERHEAD_MIB

MINE = """
import os
import pytest

@pytest.mark.parametrize("n", range(6))
def test_it(guest, fresh_guest, n):
    with open(f"by-{os.environ.get('PYTEST_XDIST_WORKER', 'itself')}", "a") as file:
        file.write(f"{guest.hello.release} ")
"""


@pytest.fixture
def session(tmp_path):
    """Run a test file in a process, on a host with that much memory."""

    def run(text, *argv, memory_mib=64 * WORKER_MIB, **environment):
        here = str(Path(__file__).parent)
        (tmp_path / "conftest.py").write_text(CONFTEST.format(here=here, memory_mib=memory_mib))
        (tmp_path / "test_mine.py").write_text(text)
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
             "-W", "error", *argv],
            cwd=tmp_path, env={**own_environment(), **environment}, capture_output=True, text=True,
            timeout=180, check=False,
        )  # fmt: skip

    return run


def own_environment():
    """This one's, without what it knows of the session that runs this test."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**inherited, "NO_COLOR": "1"}


@pytest.mark.parametrize(("workers", "spare", "room"), [(3, 0, 3), (3, -1, 2), (1, 0, 1), (0, 0, 1)])
def test_a_worker_has_room_for_both_its_guests(workers, spare, room):
    assert workers_for(workers * WORKER_MIB * MIB + spare, 512) == room


def test_no_more_workers_than_fit_and_the_header_says_why(session, tmp_path):
    done = session(MINE, "-n", "8", memory_mib=2 * WORKER_MIB + 100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("by-*"))) == 2
    why = f"iobmd: 2 workers instead of 8: each may need {WORKER_MIB} MiB for 2 guests, and this host has "
    assert done.stdout.count(f"\n{why}{2 * WORKER_MIB + 100} MiB left; a smaller --memory ") == 1
    # Each worker's guests are told of, the workers in order.
    told = re.findall(r"^iobmd: \[(gw\d)\] (6\.1\.0|a second guest)", done.stdout, re.MULTILINE)
    assert sorted(told) == sorted((f"gw{n}", who) for n in range(2) for who in ("6.1.0", "a second guest"))
    assert [worker for worker, _ in told] == ["gw0", "gw0", "gw1", "gw1"]


def test_auto_and_quiet_are_no_way_around(session, tmp_path):
    done = session(MINE, "-q", "-n", "auto", memory_mib=10, PYTEST_XDIST_AUTO_NUM_WORKERS="8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("by-*"))) == 1
    assert "iobmd: 1 worker instead of 8: " in done.stdout


def test_it_works_without_xdist(session, tmp_path):
    done = session(MINE, "-p", "no:xdist", memory_mib=10)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.glob("by-*")] == ["by-itself"]


def test_every_worker_goes_through_the_kernels_once(session, tmp_path):
    kernels = ("--kernel", "debian-6.1-cloud,debian-6.12-cloud")
    done = session(MINE, "-n", "8", "--maxprocesses", "2", *kernels, memory_mib=2 * WORKER_MIB)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed" in done.stdout
    assert "instead of" not in done.stdout  # there is room for two
    for path in tmp_path.glob("by-*"):
        ran = path.read_text().split()
        assert ran == sorted(ran)


def test_room_is_made_for_the_largest_machine(session):
    done = session(MINE, "-n", "2", "--machine", "usual,7-gib", memory_mib=20 * 1024)
    assert "1 worker instead of 2" in done.stdout
    assert "may need 14656 MiB for 2 guests" in done.stdout


def test_a_hopeless_guest_ends_all_workers_with_its_reason(session):
    text = """
import pytest

@pytest.mark.parametrize("n", range(200))
def test_it(guest, n):
    guest.dead, guest.broken_restores = n > 3, 3
"""
    done = session(text, "-n", "2")
    assert done.returncode == 2
    assert "Interrupted: the session guest could not be restored, 3 times in a row" in done.stdout
    assert "INTERNALERROR" not in done.stdout + done.stderr
    assert "observed: QEMU would not start" in done.stdout
    assert "During handling" not in done.stdout


def test_the_group_that_loadgroup_appends_is_not_part_of_an_id(monkeypatch):
    monkeypatch.setattr(repeat, "machine_options", lambda _: SimpleNamespace(
        memory_mib=None, cpus=1, accel=SimpleNamespace(value="tcg"), modules=None, headers=None,
        timeout_scale=2,
    ))  # fmt: skip
    config = SimpleNamespace(
        option=SimpleNamespace(loadgroup=True),
        rootpath=Path("/"),
        getoption={"--kernel": "k", "--machine": "all"}.get,
    )
    item = SimpleNamespace(nodeid="a.py::t[x@y]@group", config=config, get_closest_marker=lambda _: True)
    assert repeat.command(item).startswith("pytest 'a.py::t[x@y]' --kernel k --machine all --cpus 1 ")
    assert " --timeout-scale 2" in repeat.command(item)
