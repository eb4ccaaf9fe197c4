# SPDX-License-Identifier: MIT
import io

import pytest
from rich.console import Console

from harness.images import progress
from harness.images.progress import RichProgress


def test_without_a_terminal_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PLAIN_INTERVAL", 0.0)
    out = io.StringIO()
    told = RichProgress(Console(file=out, force_terminal=False, width=80))
    with told.task("Downloading", 200) as task:
        task.advance(50)
        task.update("second file")
    told.note("[done] in brackets")
    told.note("a/path/" * 20)
    assert out.getvalue().splitlines() == [
        "Downloading ...",
        "Downloading: 25 %",
        "Downloading: second file",
        "[done] in brackets",
        "a/path/" * 20,
    ]


def test_a_fast_task_says_one_line() -> None:
    out = io.StringIO()
    with RichProgress(Console(file=out, force_terminal=False)).task("Unpacking", 100) as task:
        for _ in range(100):
            task.advance(1)
    assert out.getvalue() == "Unpacking ...\n"


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with RichProgress(Console(file=out, force_terminal=True)).task("Unpacking", 100) as task:
        task.advance(40)
        task.update("linux-image")
    assert "Unpacking: linux-image" in out.getvalue()
