# SPDX-License-Identifier: MIT
"""What is done with a driver, without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness.audit import ExerciseFailed, exercise_of, exercises
from harness.errors import BadInput, FailureKind, GuestFailure


@pytest.fixture
def file(tmp_path):
    def write(text, name="use.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


class Shell:
    """A guest's shell that answers as it was told to."""

    def __init__(self, status=0, stdout=b"", stderr=b""):
        self.answer = SimpleNamespace(status=status, stdout=stdout, stderr=stderr)
        self.put_there, self.ran = [], []

    def put(self, local, remote):
        self.put_there.append((str(local), remote))

    def run(self, command, *, timeout):
        self.ran.append((command, timeout))
        return self.answer


def run_of(shell=None):
    guest = SimpleNamespace(ssh=shell, deadlines=SimpleNamespace(scale=2.0))
    return SimpleNamespace(name="ring", exercised="", guest=guest)


def test_a_python_file_gets_the_run(file):
    run = run_of()
    exercise = exercise_of(file("def exercise(run):\n    run.seen = run.name\n"))
    exercise(run)
    assert run.seen == "ring"
    assert run.exercised.endswith("use.py, exercise(run)")


def test_it_may_import_its_neighbours(file):
    file("WORD = 'beside'\n", "neighbour_of_use.py")
    run = run_of()
    exercise_of(file("import neighbour_of_use as n\ndef exercise(run):\n    run.seen = n.WORD\n"))(run)
    assert run.seen == "beside"


def test_a_script_runs_in_the_guest(file):
    shell = Shell()
    run = run_of(shell)
    name = file("true\n", "use.sh")
    exercise_of(name)(run)
    assert shell.put_there == [(name, "/tmp/exercise")]
    assert shell.ran == [(["sh", "/tmp/exercise", "ring"], 600.0)]
    exercise_of(name)(run)
    assert run.exercised == f"{name}, by the guest's sh, then {name}, by the guest's sh"


def test_a_script_that_fails_is_told_with_its_last_words(file):
    shell = Shell(status=3, stdout=b"one\n", stderr=b"sh: no such thing\n")
    with pytest.raises(ExerciseFailed, match="exit status 3") as caught:
        exercise_of(file("", "use.sh"))(run_of(shell))
    assert caught.value.evidence == ("one", "sh: no such thing")
    assert caught.value.kind is FailureKind.NOT_DONE


def test_python_that_fails_is_told_with_its_line(file):
    exercise = exercise_of(file("def exercise(run):\n    assert run.name == 'other'\n"))
    with pytest.raises(ExerciseFailed, match="AssertionError") as caught:
        exercise(run_of())
    assert any("line 2, in exercise" in line for line in caught.value.evidence)


def test_a_guest_that_dies_is_no_failure_of_the_exercise(file):
    exercise = exercise_of(
        file(
            "from harness.errors import GuestFailure\ndef exercise(run):\n    raise GuestFailure('it died')\n"
        )
    )
    with pytest.raises(GuestFailure, match="it died"):
        exercise(run_of())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "has no function exercise"),
        ("exercise = 1\n", "has no function exercise"),
        ("def exercise(run:\n", "cannot be loaded"),
        ("import no_such_module_anywhere\n", "cannot be loaded"),
    ],
)
def test_python_that_is_no_exercise_is_refused_before_anything_runs(file, text, words):
    with pytest.raises(BadInput, match=words):
        exercise_of(file(text))


def test_an_exercise_that_is_not_there():
    with pytest.raises(BadInput, match=r"there is no exercise gone\.sh") as caught:
        exercise_of("gone.sh")
    assert "traffic" in caught.value.hint


def test_traffic_needs_no_file(monkeypatch):
    seen = []
    monkeypatch.setattr(exercises, "traffic", lambda guest, *, meanwhile: seen.append((guest, meanwhile)))
    run = run_of()
    run.look = object()
    exercise_of("traffic")(run)
    assert seen == [(run.guest, run.look)]  # what is alive is looked at while there is traffic
