# SPDX-License-Identifier: MIT
"""The results folder: each run has its own, the last ones are kept, the latest has a name."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.pytest_plugin.runs import LATEST, folder_name, prune, results_root

pytest_plugins = ("pytester",)

CONFTEST = f"""
import errno
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_guest

def pytest_configure(config):
    config.add_cleanup(fake_guest.install())
"""
FAILS = "def test_bad(guest): assert 0"
CI_VARIABLES = (  # of hypothesis/_settings.py
    *("CI", "TF_BUILD", "bamboo.buildKey", "BUILDKITE", "CIRCLECI", "CIRRUS_CI", "CODEBUILD_BUILD_ID"),
    *("GITHUB_ACTIONS", "GITLAB_CI", "HEROKU_TEST_RUN_ID", "TEAMCITY_VERSION"),
)


@pytest.fixture
def session(pytester, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    def run(text, *argv, conftest=CONFTEST, apart=False):
        pytester.makepyfile(test_mine=text)
        pytester.makeconftest(conftest)
        start = pytester.runpytest_subprocess if apart else pytester.runpytest_inprocess
        return start("-q", "-p", "no:cacheprovider", *argv)

    return run


def test_the_oldest_runs_go_and_nothing_else(tmp_path):
    runs = [f"20260101-00000{n}-4194999" for n in range(5)]
    for name in (*runs, "mine", "20260101-000000", "faults.json"):
        (tmp_path / name).mkdir()
    assert {path.name for path in prune(tmp_path, 2, runs[4])} == set(runs[:3])
    assert {path.name for path in tmp_path.iterdir()} == {
        *runs[3:], "mine", "20260101-000000", "faults.json",
    }  # fmt: skip


def test_the_folder_is_not_beside_the_files_of_a_kernel(tmp_path):
    """Without a configuration file pytest's root is what its words have in common, ``--modules /x/y`` too."""
    said = {"--results": Path("results"), "--modules": Path("/x/y"), "rootdir": None}
    config = SimpleNamespace(
        rootpath=Path("/"),
        inipath=None,
        invocation_params=SimpleNamespace(dir=tmp_path),
        getoption=lambda name, default=None: said.get(name, default),
    )
    assert results_root(config) == tmp_path / "results"
    config.inipath = Path("/pyproject.toml")
    assert results_root(config) == Path("/results")
    config.inipath, said["--modules"] = None, None
    assert results_root(config) == Path("/results")


def test_a_run_that_goes_on_stays(tmp_path):
    mine, other = f"20260101-000000-{os.getpid()}", "20260101-000001-4194999"
    for name in (mine, other, "20260101-000002-4194998"):
        (tmp_path / name).mkdir()
    prune(tmp_path, 1, "20260101-000002-4194998")
    assert {path.name for path in tmp_path.iterdir()} == {mine, "20260101-000002-4194998"}


def test_latest_leads_to_the_last_run_that_failed(session, pytester):
    session(FAILS, apart=True)
    results = pytester.path / "results"
    first = (results / LATEST).resolve()
    assert first.parent == results
    assert (results / LATEST).readlink() == Path(first.name)  # relative: the folder can be moved
    session(FAILS, apart=True)
    second = (results / LATEST).resolve()
    assert second != first
    session("def test_good(guest): pass", apart=True)
    assert {path.name for path in results.iterdir()} == {first.name, second.name, LATEST}


def test_what_somebody_else_calls_latest_is_left_alone(session, pytester):
    (pytester.path / "results" / LATEST).mkdir(parents=True)
    assert session(FAILS).ret == 1
    assert (pytester.path / "results" / LATEST).is_dir()
    assert not (pytester.path / "results" / LATEST).is_symlink()


def test_workers_share_a_run(session, pytester):
    text = "import pytest\n@pytest.mark.parametrize('n', range(6))\ndef test_bad(guest, n): assert 0"
    session(text, "-n", "2", apart=True)
    runs = [path for path in (pytester.path / "results").iterdir() if path.name != LATEST]
    assert len(runs) == 1
    assert len(list(runs[0].iterdir())) == 6


def test_two_failures_of_one_test_have_two_folders(session, pytester):
    text = """
        import pytest

        @pytest.fixture
        def breaks(guest):
            yield
            raise ValueError("in the end")

        def test_bad(breaks): assert 0, "in the middle"
    """
    session(text)
    found = {path.parent.name: path.read_text() for path in pytester.path.glob("results/latest/*/error.txt")}
    assert "in the middle" in found["test_mine.py_test_bad"]
    assert "in the end" in found["test_mine.py_test_bad.2"]
    (folder,) = pytester.path.glob("results/latest/*.2")  # although the guest has ended by then
    assert "begins test_mine.py::test_bad" in (folder / "console.log").read_text()
    assert "says nothing" in (folder / "qemu.log").read_text()


FULL = (
    CONFTEST
    + """
import pathlib

real = pathlib.Path.write_text

def full(path, *args, **kwargs):
    if "results" in path.parts and path.name != "error.txt":
        raise OSError(errno.ENOSPC, "No space left on device")
    return real(path, *args, **kwargs)

pathlib.Path.write_text = full
"""
)


def test_a_disk_that_fills_up_takes_only_what_does_not_fit(session, pytester):
    done = session(FAILS, conftest=FULL, apart=True)
    done.assert_outcomes(failed=1)
    said = done.stdout.str()
    assert "assert 0" in said
    assert "not kept: repro.json: OSError: [Errno 28] No space left on device" in said
    assert "not kept: test-console.log: " in said
    assert "repeat with: pytest test_mine.py::test_bad" in said
    (folder,) = pytester.path.glob("results/latest/*")
    assert {path.name for path in folder.iterdir()} == {"error.txt", "console.log", "qemu.log"}


INTERRUPTED = (
    CONFTEST
    + """
from harness.pytest_plugin import evidence

def interrupt(*_):
    raise KeyboardInterrupt

evidence._let_it_finish = interrupt
"""
)


def test_ctrl_c_while_evidence_is_kept_does_not_lose_the_failure(session):
    text = "def test_bad(guest): assert 0\ndef test_next(guest): pass"
    done = session(text, "-W", "error", conftest=INTERRUPTED, apart=True)
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.assert_outcomes(failed=1)
    assert "Ctrl-C while the evidence of a failure was kept" in done.stdout.str()


@pytest.mark.parametrize("argv", [("-n", "2"), ("-n", "auto")])
def test_a_guest_is_not_kept_where_nobody_can_look_at_it(session, argv):
    done = session(FAILS, "--keep-vm", *argv, apart=True)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "--keep-vm waits for you at every failure: run the tests without -n" in done.stderr.str()


def test_evidence_that_goes_wrong_hides_nothing(session):
    text = """
        import fake_guest
        def test_bad(guest):
            guest.machine.repro_command = None  # as a mistake of ours would be
            assert 0
    """
    done = session(text)
    done.assert_outcomes(failed=1)
    assert "not kept: qemu.sh: TypeError: " in done.stdout.str()


ROLLS_DICE = """
from hypothesis import given, settings, strategies as st, HealthCheck

@settings(database=None, suppress_health_check=list(HealthCheck))
@given(st.integers())
def test_bad(guest, n): assert n < 1000
"""


@pytest.fixture
def at_a_desk(monkeypatch):
    """Whatever Hypothesis knows a CI by is not set."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("at_a_desk")
def test_the_record_has_what_a_test_depends_on(session, pytester, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    session(
        ROLLS_DICE,
        "--machine",
        "pc",
        "--cpus",
        "2",
        "--memory",
        "256",
        "--fresh",
        "--timeout-scale",
        "3",
        "-W",
        "error",
        apart=True,
    )
    (file,) = pytester.path.glob("results/latest/*/repro.json")
    record = json.loads(file.read_text())
    assert record["test"] == "test_mine.py::test_bad"
    assert record["root"] == str(pytester.path)
    assert record["machine"] == [
        "--kernel", "debian-6.1-cloud", "--machine", "pc", "--memory", "256", "--cpus", "2",
        "--accel", "auto", "--timeout-scale", "3", "--fresh",
    ]  # fmt: skip
    assert record["environment"]["PYTHONHASHSEED"] == "7"
    assert record["kernel"]["release"] == "6.1.0-cloud"
    (seed,) = (word for word in record["settings"] if word.startswith("--hypothesis-seed="))
    assert re.fullmatch(r"--hypothesis-seed=\d+", seed)
    assert seed in (file.parent / "repeat.sh").read_text()
    assert record["settings"][record["settings"].index("-W") + 1] == "error"
    assert "--hypothesis-profile=ci" not in record["settings"]


@pytest.mark.usefixtures("at_a_desk")
def test_a_failure_of_a_ci_is_repeated_with_what_its_ci_tried(session, pytester, monkeypatch):
    monkeypatch.setenv("CI", "true")
    session(ROLLS_DICE, apart=True)
    (file,) = pytester.path.glob("results/latest/*/repro.json")
    assert "--hypothesis-profile=ci" in json.loads(file.read_text())["settings"]


def test_no_two_tests_share_a_folder():
    long = "tests/vm/test_it.py::test_it[" + "x" * 200
    ids = ["a.py::t[a b]", "a.py::t[a_b]", "a.py::t[a:b]", "a.py::t[ä/b]", long + "1]", long + "2]"]
    names = [folder_name(test) for test in ids]
    assert len(set(names)) == len(ids)
    assert all(len(name.encode()) < 255 for name in names)
    assert folder_name("tests/vm/test_it.py::test_it[6.1-x=1]") == "tests_vm_test_it.py_test_it[6.1-x=1]"
