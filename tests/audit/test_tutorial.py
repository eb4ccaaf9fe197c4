# SPDX-License-Identifier: MIT
"""The tutorial tells the truth: each of its commands is run, and prints what it shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from audit_stage import KERNELS, Stage

TUTORIAL = Path(__file__).parents[1] / "tutorial"
ROOT = TUTORIAL.parents[1]
SECONDS = 600
MARK = "=====the next command====="

# What is another one on every machine, kernel and day.
VARIES = (
    (re.compile(r"0x[0-9a-f]+"), "0x"),
    (re.compile(r"\b\d+\.\d+\.\d+[-+\w.]*"), "VERSION"),
    # pytest's, from a minute on: 61.50s (0:01:01)
    (re.compile(r"\b\d+\.\d+ ?s\b( \(\d+:\d\d:\d\d\))?"), "TIME"),
    (re.compile(r"\b\d+ (calls of the DMA API|looks at)"), r"N \1"),
    (re.compile(r"on a guest that was .*"), "on a guest"),
    (re.compile(r"accelerator \w+.*"), "accelerator"),
    (re.compile(r"\s+"), " "),  # where a line is wrapped depends on the length of all of these
)


@dataclass(frozen=True)
class Step:
    """A command of the tutorial, and what it shows: ``...`` stands for any lines."""

    command: str
    shown: tuple[str, ...]


def steps(text):
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip("\n").split("\n")
            found.append(Step(command, tuple(shown)))
    return found


def plain(text):
    for pattern, word in VARIES:
        text = pattern.sub(word, text)
    return text.strip()


def fits(shown, printed):
    """Whether what was printed is what is shown, pieces between ``...`` in their order."""
    pieces = [plain("\n".join(piece)) for piece in split(shown)]
    whole = plain(printed)
    if len(pieces) == 1:
        return whole == pieces[0]
    at = len(pieces[0]) if whole.startswith(pieces[0]) else -1
    for piece in pieces[1:-1]:
        at = whole.find(piece, at) + len(piece) if at >= 0 and piece in whole[at:] else -1
    return at >= 0 and whole.endswith(pieces[-1]) and len(whole) - len(pieces[-1]) >= at


def split(shown):
    pieces = [[]]
    for line in shown:
        if line == "...":
            pieces.append([])
        else:
            pieces[-1].append(line)
    return pieces


def run(commands, folder, environment):
    """Run commands one after the other in one shell; the output of each, standard error left out."""
    script = f"\necho {shlex.quote(MARK)}\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    outputs = done.stdout.split(f"{MARK}\n")
    assert len(outputs) == len(commands), done.stdout + done.stderr
    return outputs, done.stderr


@pytest.fixture
def environment(tmp_path):
    """A shell in which iobmd is this project's, as after activating its environment."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, module in (("iobmd", "harness"), ("pytest", "pytest")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        tool.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    path = f"{tools}:{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "110", "LC_ALL": "C", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def images():
    """What the tutorial's guests are booted from: to get it for the first time takes as long as it takes."""
    stage = Stage()
    return [stage.image(kernel) for kernel in KERNELS]


@pytest.mark.usefixtures("images")
def test_every_command_prints_what_it_shows(tmp_path, environment):
    # What is left by somebody who ran the tutorial's test where it lies is no part of it.
    left = shutil.ignore_patterns("__pycache__", ".*", "results")
    shutil.copytree(TUTORIAL, tmp_path / "tests" / "tutorial", ignore=left)
    told = steps((TUTORIAL / "README.md").read_text())
    assert len(told) >= 9
    outputs, complaints = run([step.command for step in told], tmp_path, environment)
    for step, printed in zip(told, outputs, strict=True):
        assert fits(step.shown, printed), f"$ {step.command}\n{printed}\n--- standard error\n{complaints}"


def test_a_wrong_tutorial_is_found_out():
    assert fits(("a 0x12", "..."), "a 0x999\nb\n")
    assert fits(("a", "...", "c"), "a\nb\nc\n")
    assert not fits(("a", "...", "c"), "a\nb\n")
    assert not fits(("a",), "a\nb\n")
    assert not fits(("a", "...", "b", "...", "c"), "a\nc\n")
    assert fits(("1 passed in 5.33s",), "1 passed in 61.50s (0:01:01)\n")
    assert not fits(("1 finding",), "2 findings")


def test_the_driver_is_shown_as_it_is():
    text = (TUTORIAL / "README.md").read_text()
    (shown,) = re.findall(r"^```c\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    source = (TUTORIAL / "courier" / "courier.c").read_text()
    assert shown in source
    line = next(number for number, one in enumerate(source.splitlines(), 1) if "FROM_DEVICE);" in one)
    assert f"Line {line} is" in text
    assert f"'{line}s/" in text
