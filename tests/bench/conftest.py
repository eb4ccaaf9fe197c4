# SPDX-License-Identifier: MIT
"""Benches share one board; it is shown and written when the last of them is done."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# --import-mode=importlib: modules beside a test are found only where sys.path says.
sys.path.insert(0, str(Path(__file__).parent))

from bench_board import Board

from harness.images import GuestImage, RichProgress
from harness.link import Guest, GuestOptions
from harness.options import MachineOptions, prepare
from harness.report import report_console
from harness.vm import Accel

_BOARD = pytest.StashKey[Board]()
# The kernel the peer's users boot, and an accelerator every host has: figures of two hosts then compare.
RECIPE = "debian-6.1"


@pytest.fixture(scope="session")
def board(pytestconfig: pytest.Config) -> Board:
    return pytestconfig.stash.setdefault(_BOARD, Board())


@pytest.fixture(scope="session")
def bench_image(pytestconfig: pytest.Config) -> GuestImage:
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        return prepare(MachineOptions(kernel=RECIPE), RichProgress())


@pytest.fixture(scope="session")
def bench_options() -> GuestOptions:
    return GuestOptions(memory_mib=1024, cpus=1, accel=Accel.TCG)


@pytest.fixture(scope="session")
def bench_guest(board: Board, bench_image: GuestImage, bench_options: GuestOptions) -> Iterator[Guest]:
    with Guest(bench_image, bench_options) as guest:
        board.facts |= {"kernel": guest.hello.release, "qemu": guest.machine.qemu_version}
        yield guest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    board = config.stash.get(_BOARD, None)
    if board is None:
        return
    path = config.rootpath / config.getoption("--results") / "bench.json"
    board.finish()
    board.write(path)
    terminalreporter.section("bench")
    terminalreporter.flush()
    board.show(report_console())
    terminalreporter.write_line(f"written: {path}")
