# SPDX-License-Identifier: MIT
"""The pytest door without a guest: who gets which one, what a death does, what a session says about it."""

import re
import xml.etree.ElementTree as ET  # what it reads was written a moment ago
from pathlib import Path

import pytest

from harness.machines import MACHINES

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

    def run(text, *argv, conftest=CONFTEST):
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
        (("--machine", "pc,p6"), "there is no machine 'p6'"),
        (("--machine", ","), "--machine is empty"),
    ],
)
def test_a_machine_that_cannot_be_is_a_usage_error_before_any_test(session, argv, words):
    done = session("def test_nothing(): pass", *argv, conftest="")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert words in done.stderr.str()
    assert "passed" not in done.stdout.str()


def test_a_guest_that_cannot_be_had_is_told_without_the_frames_of_the_harness(session, monkeypatch, tmp_path):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "my cache"))
    done = session("def test_it(iobmd): pass", conftest="")
    done.assert_outcomes(errors=1)
    assert "the cache folder's path holds white space" in done.stdout.str()
    assert "hint: set IOBMD_CACHE" in done.stdout.str()
    assert "harness/images" not in done.stdout.str()


# -- who gets which guest -----------------------------------------------------------------------------------

WHOSE = """
def test_the_sessions(guest, machine, iobmd, oracle, ssh):
    assert iobmd.process is guest
    assert ssh is guest.ssh
    assert oracle._machine is machine is guest.machine

def test_the_fresh_one(fresh_guest, fresh_machine, iobmd, oracle, ssh):
    assert iobmd.process is fresh_guest
    assert ssh is fresh_guest.ssh
    assert oracle._machine is fresh_machine is fresh_guest.machine

def test_both(iobmd, oracle, fresh_machine, guest, machine):
    assert iobmd.process is not guest
    assert oracle._machine is fresh_machine is not machine
    assert guest.machine is machine
"""


def test_a_test_that_names_the_fresh_one_is_about_it(session):
    session(WHOSE).assert_outcomes(passed=3)


FRESH = """
import fake_guest

def test_nobody_has_asked():
    assert fake_guest.STARTED == []

def test_first(fresh_guest):
    assert fake_guest.STARTED == [fresh_guest]
    assert fresh_guest.generation == 0
    fresh_guest.files.add("mine")

def test_second(fresh_guest):
    assert fake_guest.STARTED == [fresh_guest]
    assert fresh_guest.files == set()
    assert fresh_guest.generation == 1
    fresh_guest.dead = True

def test_third(fresh_guest, guest):
    assert len(fake_guest.STARTED) == 2
    assert not fresh_guest.dead
    guest.files.add("kept")

def test_fourth(iobmd, guest):
    assert iobmd.process is guest
    assert guest.files == {"kept"}
    assert guest.generation == 0
"""


def test_a_fresh_guest_is_restored_for_every_test_and_the_other_one_never(session):
    done = session(FRESH)
    done.assert_outcomes(passed=5)
    said = done.stdout.str()
    second = (
        "iobmd: a second guest, 6.1.0-cloud on usual; restored from a snapshot in 100 ms (so it was asked)"
    )
    assert f"{second}; " in said
    assert "restored 2 times: 1 in place (20 ms), 1 in a new QEMU (20 ms)" in said
    assert " died in " not in said  # that is what it is for


CLEAN = """
import pytest

@pytest.mark.parametrize("n", range(3))
def test_clean(guest, n):
    assert guest.files == set()
    assert guest.generation == n
    guest.files.add("mine")

def test_without_a_guest():
    pass

def test_with_another(fresh_guest):
    pass

def test_after(oracle, guest):
    assert guest.generation == 3
"""


def test_fresh_makes_the_sessions_guest_clean_before_every_test_that_uses_it(session):
    session(CLEAN, "--fresh").assert_outcomes(passed=6)


def test_without_fresh_the_sessions_guest_is_left_alone(session):
    text = "def test_a(guest): guest.files.add(1)\ndef test_b(guest): assert guest.files == {1}"
    session(text).assert_outcomes(passed=2)


@pytest.mark.parametrize(("argv", "allowed"), [((), True), (("--no-snapshot",), False)])
def test_no_snapshot_is_for_both_guests(session, argv, allowed):
    text = (
        "def test_it(guest, fresh_guest): assert guest.options.snapshot is fresh_guest.options.snapshot is {}"
    )
    session(text.format(allowed), *argv).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("why", "argv", "said"),
    [
        ("", (), "; booted in 100 ms (its snapshot was made)"),
        ("no room", (), "; booted in 100 ms (no room)"),
        ("", ("--no-snapshot",), "; booted in 100 ms"),
    ],
)
def test_a_boot_says_why_it_was_one(session, why, argv, said):
    text = f"""
        import fake_guest
        from harness.link import Start, StartKind

        def test_it(guest):
            guest.starts = (Start(StartKind.BOOTED, 0.1, {why!r}),)
    """
    done = session(text, *argv)
    assert next(line for line in done.outlines if line.startswith("iobmd: 6.1.0")).endswith(said)


def test_an_oracle_is_kept_all_along_its_guest(session):
    text = """
        seen = set()
        def test_a(oracle): seen.add(oracle)
        def test_b(oracle): assert seen == {oracle}
        def test_c(oracle, fresh_guest): assert oracle not in seen
    """
    session(text).assert_outcomes(passed=3)


TWO_KERNELS = ("--kernel", "debian-6.1-cloud,debian-6.12-cloud")


def test_several_kernels_each_have_their_guests(session):
    text = """
        import fake_guest

        def test_mine(iobmd): assert len(fake_guest.STARTED) == 1
        def test_fresh(fresh_guest, guest):
            assert fresh_guest.hello.release == guest.hello.release
            assert len(fake_guest.STARTED) == 2
            guest.dead = True
        def test_oracle(oracle, guest): assert not guest.dead
        def test_kills(guest): guest.dead = True  # and nobody is left who needs it
    """
    done = session(text, *TWO_KERNELS, "-v")
    done.assert_outcomes(passed=8)
    said = done.stdout.str()
    assert said.count(" died in ") == 2
    for release in ("6.1.0-cloud", "6.12.0-cloud"):
        assert f"test_fresh[{release}]" in said
        assert f"iobmd: {release} (" in said
        assert f"iobmd: a second guest, {release} on usual; " in said


def test_several_machines_each_have_their_guests(session):
    text = """
        import fake_guest

        def test_mine(iobmd, named_machine, guest):
            assert len(fake_guest.STARTED) == 1
            assert guest.options.machine == named_machine.name
        def test_fresh(fresh_guest, guest):
            assert fresh_guest.options.machine == guest.options.machine
            guest.dead = True
        def test_oracle(oracle, guest): assert not guest.dead
        def test_only_an_image(guest_image): pass
        def test_kills(guest): guest.dead = True
    """
    done = session(text, "--machine", "pc,7-gib", "-vv", "--junitxml", "junit.xml")
    done.assert_outcomes(passed=9)
    said = done.stdout.str()
    assert "machines pc, 7-gib" in said
    assert "test_only_an_image PASSED" in said
    assert said.count(" died in ") == 2
    for name in ("pc", "7-gib"):
        assert f"test_fresh[{name}]" in said
        assert f"iobmd: 6.1.0-cloud (debian-6.1-cloud) on {name}, " in said
    cases = ET.parse("junit.xml").getroot().iter("testcase")  # noqa: S314
    ran = {(case.get("name"), one.get("value")) for case in cases for one in case.iter("property")
           if one.get("name") == "machine"}  # fmt: skip
    assert {("test_mine[pc]", "pc"), ("test_mine[7-gib]", "7-gib")} <= ran


def test_kernels_and_machines_together_leave_out_what_cannot_be(session):
    text = """
        import fake_guest

        def test_mine(guest): assert len(fake_guest.STARTED) == 1
        def test_other(guest): assert len(fake_guest.STARTED) == 1
        def test_image(guest_image): pass
    """
    done = session(text, *TWO_KERNELS, "--machine", "all", "-vv")
    everywhere = len(MACHINES) - 1
    done.assert_outcomes(passed=2 * (2 * everywhere + 1) + 2)
    said = done.stdout.str()
    assert "test_mine[6.12.0-cloud-virtio-iommu]" in said
    assert "test_mine[6.1.0-cloud-virtio-iommu]" not in said
    assert "left out of --machine all: virtio-iommu: Linux 6.1.0-cloud has no virtio_iommu" in said
    assert said.count("on pc, QEMU") == 2  # each machine was started once a kernel


def test_a_machine_asked_for_by_name_must_be_possible(session):
    done = session("def test_it(guest): pass", "--machine", "virtio-iommu,pc")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    assert "the machine virtio-iommu cannot be had with this kernel" in done.stdout.str()


# -- guests that break --------------------------------------------------------------------------------------

DEATH = """
def test_kills(guest): guest.{0} = True
def test_has_none(): pass
def test_after(iobmd, guest): assert guest.generation == 1
def test_later(iobmd, guest): assert guest.generation == 1
"""


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("dead", r"QEMU was killed \(by whom, nobody knows\)"),
        ("silent", "a mark: no reply within 10 s"),
    ],
)
def test_a_broken_guest_fails_nobody_after_it_and_the_end_says_whose_it_was(session, end, words):
    done = session(DEATH.format(end))
    done.assert_outcomes(passed=4)
    said = [line for line in done.outlines if " died in " in line]
    assert len(said) == 1
    how = f"{'restored from a' if end == 'dead' else 'put back to the'} snapshot in 20 ms"
    line = rf"iobmd: the session guest died in test_mine\.py::test_kills: {words}; {how} for "
    assert re.fullmatch(rf"{line}test_mine\.py::test_after", said[0])


def test_a_death_is_told_of_a_guest_that_would_have_been_restored_anyhow(session):
    done = session(DEATH.format("dead"), "--fresh", "--deselect", "test_mine.py::test_later")
    done.assert_outcomes(passed=3, deselected=1)
    assert "the session guest died in test_mine.py::test_kills: QEMU was killed" in done.stdout.str()


NEVER_AGAIN = """
def test_kills(guest):
    guest.dead, guest.broken_restores = True, {}
def test_after(guest): pass
def test_later(): pass
"""


def test_two_restores_may_fail(session):
    session(NEVER_AGAIN.format(2)).assert_outcomes(passed=3)


def test_three_failed_restores_end_the_session_with_one_message(session):
    done = session(NEVER_AGAIN.format(3))
    done.assert_outcomes(passed=1)
    assert done.ret == 3
    said = done.stdout.str()
    assert said.count("the session guest could not be restored, 3 times in a row") == 1
    assert "observed: QEMU would not start\n" in said
    assert "hint: type this" in said
    assert "Traceback" not in said


# -- what is kept and said ----------------------------------------------------------------------------------


def test_evidence_that_cannot_be_kept_does_not_end_the_session(session):
    text = "def test_bad(guest): assert 0\ndef test_good(): pass"
    done = session(text, "--results", "/dev/null/results")
    done.assert_outcomes(failed=1, passed=1)
    assert "not kept: " in done.stdout.str()
    assert "begins test_mine.py::test_bad" in done.stdout.str()


def test_what_to_repeat_can_be_started_from_anywhere(session, pytester):
    session("def test_bad(guest): assert 0", "--fresh").assert_outcomes(failed=1)
    (script,) = (pytester.path / "results").glob("latest/*/repeat.sh")
    assert script.read_text().startswith(f"cd {pytester.path}\npytest test_mine.py::test_bad ")
    assert script.read_text().endswith(" --fresh\n")


def test_the_console_shown_is_this_tests_and_both_guests_are_kept(session, pytester):
    text = """
        def test_before(guest): guest.machine.console.said += "of before"
        def test_bad(guest, fresh_guest):
            guest.machine.console.said += "said at home"
            fresh_guest.machine.console.late = "said abroad"
            assert 0
    """
    done = session(text)
    shown = done.stdout.str()
    assert "of before" not in shown
    assert "said at home" in shown
    assert "said abroad" in shown
    (folder,) = (pytester.path / "results/latest").iterdir()
    assert "said abroad" in (folder / "console.log").read_text()
    whole = (folder / "session-console.log").read_text()
    assert "of before" in whole
    assert "said at home" in whole
    assert "of before" not in (folder / "session-test-console.log").read_text()
    assert (folder / "session-qemu.log").read_text() == "QEMU 1 says nothing\n"
    assert "qemu 1" in (folder / "session-qemu.sh").read_text()


def test_the_console_of_another_process_is_shown_from_its_start(session):
    text = """
        def test_bad(guest):
            guest.dead = True
            guest.restore()
            guest.machine.console.said = "new\\n"
            assert 0
    """
    done = session(
        f"def test_before(guest): guest.machine.console.said += 'x' * 99\n{text.replace(' ' * 8, '')}"
    )
    done.stdout.fnmatch_lines(["new"])


def test_junit_says_how_the_guest_was_started(session, pytester):
    text = """
        def test_a(iobmd): pass
        def test_b(guest): guest.dead = True
        def test_c(guest): pass
        def test_d(fresh_guest, guest): pass
        def test_e(fresh_guest): pass
    """
    session(text, "--junitxml", "junit.xml", "--no-snapshot").assert_outcomes(passed=5)
    root = ET.parse(pytester.path / "junit.xml").getroot()  # noqa: S314
    found = []
    for case in root.iter("testcase"):
        of = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
        found.append((of["guest"], of["start"], of["generation"]))
    assert found == [
        ("session", "booted", "0"),
        ("session", "booted", "0"),
        ("session", "restored", "1"),
        ("fresh", "booted", "0"),
        ("fresh", "rewound", "1"),
    ]
