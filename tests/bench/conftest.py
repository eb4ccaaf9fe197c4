# SPDX-License-Identifier: MIT
"""The benches of ``iobmd bench`` as tests; the table is shown and written when the last of them is done."""

from pathlib import Path

import pytest

from harness.bench import Board, Lab, default_options, show
from harness.images import RichProgress
from harness.report import report_console

_BOARD = pytest.StashKey[Board]()


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Lab:
    board = pytestconfig.stash.setdefault(_BOARD, Board())
    return Lab(default_options(), board, RichProgress())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    board = config.stash.get(_BOARD, None)
    if board is None:
        return
    path: Path = config.rootpath / config.getoption("--results") / "bench.json"
    board.finish()
    board.write(path)
    terminalreporter.section("bench")
    terminalreporter.flush()
    show(board, report_console())
    terminalreporter.write_line(f"written: {path}")
