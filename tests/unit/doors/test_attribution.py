# SPDX-License-Identifier: MIT
"""Which test a kernel's complaint fails, without a guest: kernels here are strings that tests write to."""

import re
import xml.etree.ElementTree as ET  # what it reads was written a moment ago
from pathlib import Path

import pytest

pytest_plugins = ("pytester",)

CONFTEST = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
import fake_guest

def pytest_configure(config):
    config.add_cleanup(fake_guest.install())
"""


@pytest.fixture
def session(pytester, monkeypatch):
    """Run a test file in a session whose guests are fakes."""
    monkeypatch.setenv("NO_COLOR", "1")
    pytester.makeconftest(CONFTEST)

    def run(text, *argv):
        pytester.makepyfile(test_mine=text)
        return pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-rA", *argv)

    return run


def outcomes(done):
    """The last lines of a session: what became of every phase that did not pass, by the test's name."""
    found = re.findall(r"^(FAILED|ERROR) test_mine\.py::(\w+)", done.stdout.str(), re.MULTILINE)
    return {(name, word.lower()) for word, name in found}


WARNS = """
def test_before(guest): pass
def test_warns(guest): guest.machine.console.complain()
def test_after(guest): assert guest.generation == 1
"""


def test_a_warning_fails_the_test_it_came_in_and_no_other(session):
    done = session(WARNS)
    done.assert_outcomes(passed=2, failed=1)
    assert outcomes(done) == {("test_warns", "failed")}
    said = done.stdout.str()
    assert "kernel-tainted: the kernel complained during this test: warning: " in said
    assert "at drivers/foo.c:12 in foo" in said
    assert re.search(r"^  fingerprint [0-9a-f]{12}$", said, re.MULTILINE)
    assert "harness/pytest_plugin" not in said  # a traceback of ours would only bury it
    assert "the session guest was not left well by test_mine.py::test_warns: warning: " in said


@pytest.mark.parametrize("ci", ["", "true"])  # where pytest cuts nothing short
def test_the_same_report_is_shown_once(session, monkeypatch, ci):
    monkeypatch.setenv("CI", ci)
    text = """
        def test_warns(guest):
            for _ in range(5):
                guest.machine.console.complain("foo")
            guest.machine.console.complain("bar")
    """
    said = session(text).stdout.str()
    assert "(and 1 more)" in said
    assert "(5 times) warning: " in said
    assert len(re.findall(r"^  fingerprint ", said, re.MULTILINE)) == 2


def test_new_taint_fails_a_test_even_if_nothing_was_printed(session):
    text = """
        from harness.forensics import Taint
        def test_taints(guest): guest.taint |= Taint.BAD_PAGE
        def test_after(guest): assert guest.generation == 1
        def test_loads_a_module(guest): guest.taint |= Taint.UNSIGNED_MODULE | Taint.OOT_MODULE | Taint.USER
        def test_last(guest): assert guest.generation == 1
    """
    done = session(text)
    done.assert_outcomes(passed=3, failed=1)
    assert "new taint: BAD_PAGE (a page or a slab was found in a bad state)" in done.stdout.str()


PHASES = """
import pytest

@pytest.fixture
def bad_setup(guest): guest.machine.console.complain("in_setup")

@pytest.fixture
def bad_teardown(guest):
    yield
    guest.machine.console.complain("in_teardown")

@pytest.fixture(scope="module")
def long(guest):
    yield
    guest.machine.console.complain("in_module")

def test_fine(guest): pass
def test_setup(bad_setup): pass
def test_teardown(bad_teardown): pass
def test_between(guest): assert guest.generation == 2
def test_last(long, guest): pass
"""


def test_trouble_of_a_fixture_is_told_where_it_happened(session):
    done = session(PHASES)
    done.assert_outcomes(passed=4, errors=3)
    assert outcomes(done) == {("test_setup", "error"), ("test_teardown", "error"), ("test_last", "error")}
    said = done.stdout.str()
    assert (
        "the kernel complained in this test's setup: warning: WARNING at drivers/foo.c:12 in in_setup" in said
    )
    assert "the kernel complained in this test's teardown: warning: " in said
    assert "in in_module" in said
    assert "when this test was over" not in said


LATE = """
import fake_guest

def test_sets_a_fuse(guest): pass
def test_is_innocent(guest): assert guest.generation == 1
"""


def test_what_comes_between_two_tests_is_of_the_first(session, pytester):
    conftest = (
        CONFTEST
        + """
def pytest_runtest_logfinish(nodeid):
    if "fuse" in nodeid:
        fake_guest.STARTED[0].machine.console.complain("late")
"""
    )
    pytester.makeconftest(conftest)
    done = session(LATE)
    done.assert_outcomes(passed=2, errors=1)
    assert outcomes(done) == {("test_sets_a_fuse", "error")}
    assert "the kernel complained when this test was over: warning: " in done.stdout.str()
    assert done.ret == 1


def test_what_comes_between_two_tests_is_told_by_a_worker_too(pytester):
    conftest = (
        CONFTEST
        + """
def pytest_runtest_logfinish(nodeid):
    if "fuse" in nodeid and fake_guest.STARTED:
        fake_guest.STARTED[0].machine.console.complain("late")
"""
    )
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_mine=LATE)
    done = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-rA", "-n", "1")
    assert outcomes(done) == {("test_sets_a_fuse", "error")}
    done.assert_outcomes(passed=2, errors=1)


def test_what_comes_after_the_last_test_is_told_as_well(session, pytester):
    text = """
        import atexit
        def test_last(guest): pass
    """
    pytester.makeconftest(
        CONFTEST
        + """
def pytest_runtest_logreport(report):
    if report.when == "call":
        fake_guest.STARTED[0].machine.console.complain("at_the_end")
"""
    )
    done = session(text)
    assert outcomes(done) == {("test_last", "error")}


EXPECTED = """
import pytest
from harness.errors import FailureKind, GuestFailure

class Panicked(GuestFailure):
    kind = FailureKind.KERNEL_PANICKED

@pytest.mark.expect_oops("in foo")
def test_comes(guest): guest.machine.console.complain("foo")

@pytest.mark.expect_oops("in foo")
def test_does_not_come(guest): assert guest.generation == 1

@pytest.mark.expect_oops("in foo")
def test_another_comes_too(guest):
    guest.machine.console.complain("foo")
    guest.machine.console.complain("bar")

@pytest.mark.expect_oops("in foo")
@pytest.mark.expect_oops("in b.r")
def test_two_come(guest):
    assert guest.generation == 2
    guest.machine.console.complain("foo")
    guest.machine.console.complain("bar")

@pytest.mark.expect_oops("sysrq triggered")
def test_it_dies_of_it(guest):
    guest.machine.console.panic("sysrq triggered crash")
    raise Panicked("the guest kernel panicked")

@pytest.mark.expect_oops("sysrq triggered")
def test_it_dies_of_another(guest):
    guest.machine.console.panic("out of memory")
    raise Panicked("the guest kernel panicked")

@pytest.mark.expect_oops("in foo")
def test_it_comes_and_an_assert_fails(guest):
    guest.machine.console.complain("foo")
    assert 0
"""


def test_a_wanted_report_passes_and_an_unwanted_or_missing_one_fails(session):
    done = session(EXPECTED)
    assert outcomes(done) == {
        ("test_does_not_come", "failed"),
        ("test_another_comes_too", "failed"),
        ("test_it_dies_of_another", "failed"),
        ("test_it_comes_and_an_assert_fails", "failed"),
    }
    done.assert_outcomes(passed=3, failed=4)
    said = done.stdout.str()
    assert "the kernel was expected to report what matches 'in foo', and did not" in said


@pytest.mark.parametrize("argument", ["", "'('", "1"])
def test_a_marker_without_a_regular_expression_is_refused(session, argument):
    text = f"""
        import pytest
        @pytest.mark.expect_oops({argument})
        def test_it(guest): pass
    """
    done = session(text)
    assert done.ret != 0
    assert "expect_oops" in done.stdout.str() + done.stderr.str()


def test_a_test_that_fails_by_itself_shows_what_the_kernel_said_as_well(session):
    text = """
        def test_bad(guest):
            guest.machine.console.complain()
            assert 0, "by itself"
    """
    done = session(text)
    done.assert_outcomes(failed=1)
    said = done.stdout.str()
    assert "by itself" in said
    assert said.index("what the kernel complained about") > said.index("by itself")


def test_an_expected_failure_may_be_the_kernels(session):
    text = """
        import pytest
        @pytest.mark.xfail(strict=True)
        def test_known(guest): guest.machine.console.complain()
        def test_after(guest): assert guest.generation == 1
    """
    session(text).assert_outcomes(xfailed=1, passed=1)


def test_ordinary_words_are_no_trouble(session):
    text = """
        import pytest

        @pytest.mark.parametrize("said", ["usb 1-1: new device", "Out of memory: Killed process 7 (x)",
                                          "sysrq: HELP : loglevel(0-9)", "WARNING is a word"])
        def test_it(guest, said):
            guest.machine.console.said += said + "\\n"
            assert guest.generation == 0
    """
    session(text).assert_outcomes(passed=4)


def test_junit_has_the_kind_and_the_fingerprint(session, pytester):
    text = """
        from harness.errors import HostExhausted
        def test_warns(guest): guest.machine.console.complain()
        def test_plain(guest): assert 0
        def test_host(guest): raise HostExhausted("no room")
        def test_good(guest): pass
    """
    session(text, "--junitxml", "junit.xml")
    root = ET.parse(pytester.path / "junit.xml").getroot()  # noqa: S314
    found = {}
    for case in root.iter("testcase"):
        of = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        found[case.get("name")] = (of.get("failure-kind"), of.get("splat", ""))
    assert found["test_good"] == found["test_plain"] == (None, "")
    assert found["test_host"] == ("host-exhausted", "")
    assert found["test_warns"][0] == "kernel-tainted"
    assert re.fullmatch(r"[0-9a-f]{12}", found["test_warns"][1])


def test_both_guests_are_watched(session):
    text = """
        def test_home(guest, fresh_guest): guest.machine.console.complain("home")
        def test_abroad(guest, fresh_guest): fresh_guest.machine.console.complain("abroad")
        def test_after(guest, fresh_guest): assert guest.generation == 1
    """
    done = session(text)
    assert outcomes(done) == {("test_home", "failed"), ("test_abroad", "failed")}
    assert "in home" in done.stdout.str()
    assert "in abroad" in done.stdout.str()


def test_what_was_said_before_a_restore_in_the_test_counts(session):
    text = """
        def test_it(guest):
            guest.machine.console.complain()
            guest.dead = True
            guest.restore()
    """
    session(text).assert_outcomes(failed=1)
