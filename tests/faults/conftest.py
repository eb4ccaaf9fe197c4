# SPDX-License-Identifier: MIT
"""The stages faults take place on, and the table at the end."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# --import-mode=importlib: modules beside a test are found only where sys.path says.
sys.path.insert(0, str(Path(__file__).parent))

import fault_table
import left_over
from stage import Shop

from harness.images import GuestImage
from harness.options import from_namespace
from harness.report import report_console

_ROW, _NOTE = "fault", "note"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "how hard tests/faults tries")
    group.addoption("--kills", metavar="N", type=int, default=10,
                    help="at how many random moments a session is killed; default %(default)s")  # fmt: skip
    group.addoption("--calls", metavar="N", type=int, default=20_000,
                    help="how many calls the stress makes; default %(default)s")  # fmt: skip
    group.addoption("--soak", metavar="SECONDS", type=float, default=20.0,
                    help="how long random tests with random faults run; default %(default)s")  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where private folders go; what is started from now on is marked."""
    folder = tmp_path_factory.mktemp("private")
    with left_over.private_world(folder):
        yield folder


@pytest.fixture(scope="session")
def shop(pytestconfig: pytest.Config, world: Path, guest_image: GuestImage) -> Shop:  # noqa: ARG001
    return Shop.of(guest_image, from_namespace(pytestconfig.option))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = [one for many in terminalreporter.stats.values() for one in many if hasattr(one, "when")]
    reports.sort(key=lambda report: report.start)
    noted = [pair for one in reports if one.when == "call" for pair in one.user_properties]
    rows = [fault_table.load(text) for name, text in noted if name == _ROW]
    notes = [text for name, text in noted if name == _NOTE]
    for note in notes:
        terminalreporter.write_line(f"faults: {note}")
    if not rows:
        return
    path = config.rootpath / config.getoption("--results") / "faults.json"
    facts = {"kernel": config.getoption("--kernel"), "notes": notes}
    fault_table.write(rows, facts, path)
    terminalreporter.section("faults")
    terminalreporter.flush()
    fault_table.show(rows, report_console())
    terminalreporter.write_line(f"written: {path}")
