# SPDX-License-Identifier: MIT
"""The kind of a failure in the report that machines read."""

import xml.etree.ElementTree as ET  # what it reads was written a moment ago

import pytest

pytest_plugins = ("pytester",)

TESTS = """
    import errno
    import pytest
    from harness.errors import BadInput, GuestFailure, HostExhausted
    from harness.link import KernelHung

    HUNG = KernelHung("x", agent_answers=False, observed="", hint="", evidence=())

    def test_none(): pass
    def test_own(): assert 1 == 2
    def test_hung(): raise HUNG
    def test_full(): raise OSError(errno.ENOSPC, "full")
    def test_wrapped():
        try:
            raise HUNG
        except KernelHung as error:
            pytest.fail(str(error), pytrace=False)

    @pytest.fixture
    def lacks():
        raise BadInput("no")
    def test_setup(lacks): pass

    @pytest.fixture
    def breaks():
        yield
        raise GuestFailure("late")
    def test_teardown(breaks): pass
    def test_both(breaks): raise HUNG
"""


def test_junit_names_the_kind(pytester):
    pytester.makepyfile(TESTS)
    done = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "--junitxml", "junit.xml")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    root = ET.parse(pytester.path / "junit.xml").getroot()  # noqa: S314
    found = {
        case.get("name"): [
            entry.get("value") for entry in case.iter("property") if entry.get("name") == "failure-kind"
        ]
        for case in root.iter("testcase")
    }
    assert found == {
        "test_none": [],
        "test_own": [],
        "test_hung": ["kernel-hung"],
        "test_full": ["host-exhausted"],
        "test_wrapped": ["kernel-hung"],
        "test_setup": ["bad-input"],
        "test_teardown": ["guest-failed"],
        "test_both": ["kernel-hung"],
    }
