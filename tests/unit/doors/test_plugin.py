# SPDX-License-Identifier: MIT
"""The pytest door without a guest: what a session says when there is no machine, or no longer one."""

import pytest

pytest_plugins = ("pytester",)

FAKE_GUEST = """
from types import SimpleNamespace

import pytest

from harness import plugin
from harness.errors import GuestFailure


def dead():
    raise GuestFailure("QEMU was killed")


@pytest.fixture(scope="session")
def guest(pytestconfig):
    machine = SimpleNamespace(
        console=SimpleNamespace(text=lambda: "last words"),
        command=lambda: "qemu", repro_command=lambda: "qemu",
        accelerator=SimpleNamespace(name="tcg", reason="why"), qemu_version="7.2", check=dead,
    )
    booted = SimpleNamespace(
        machine=machine, hello=SimpleNamespace(release="6.1"), boot_seconds=1.0,
        image=SimpleNamespace(kernel=SimpleNamespace(label="custom"), module=SimpleNamespace(build_id="01")),
    )
    pytestconfig.stash[plugin._GUEST] = booted
    return booted
"""


@pytest.fixture
def session(pytester, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    def run(text, *argv, conftest=""):
        pytester.makepyfile(test_mine=text)
        pytester.makeconftest(conftest)
        return pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", *argv)

    return run


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--memory", "64"), "64 MiB of guest RAM are too few"),
        (("--kernel", "debian-6.2"), "there is no kernel recipe 'debian-6.2'"),
        (("--headers", "h"), "either a recipe or files of your own"),
    ],
)
def test_a_machine_that_cannot_be_is_a_usage_error_before_any_test(session, argv, words):
    done = session("def test_nothing(): pass", *argv)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert words in done.stderr.str()
    assert "passed" not in done.stdout.str()


def test_a_guest_that_cannot_be_had_is_told_without_the_frames_of_the_harness(session, monkeypatch, tmp_path):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "my cache"))
    done = session("def test_it(iobmd): pass")
    done.assert_outcomes(errors=1)
    assert "the cache folder's path holds white space" in done.stdout.str()
    assert "hint: set IOBMD_CACHE" in done.stdout.str()
    assert "harness/images" not in done.stdout.str()


def test_evidence_that_cannot_be_kept_does_not_end_the_session(session):
    text = "def test_bad(guest): assert 0\ndef test_good(): pass"
    done = session(text, "--results", "/dev/null/results", conftest=FAKE_GUEST)
    done.assert_outcomes(failed=1, passed=1)
    assert "not kept: " in done.stdout.str()
    assert "last words" in done.stdout.str()


def test_what_to_repeat_can_be_started_from_anywhere(session, pytester):
    session("def test_bad(guest): assert 0", conftest=FAKE_GUEST).assert_outcomes(failed=1)
    (script,) = (pytester.path / "results").glob("*/repeat.sh")
    assert script.read_text().startswith(f"cd {pytester.path}\npytest test_mine.py::test_bad ")


def test_a_guest_that_died_before_a_test_is_named_in_one_line(session):
    done = session("def test_it(iobmd): pass", conftest=FAKE_GUEST)
    done.assert_outcomes(errors=1)
    assert "the guest has died before this test: QEMU was killed" in done.stdout.str()
    assert "harness/plugin.py" not in done.stdout.str()
