# SPDX-License-Identifier: MIT
"""Every bench, run as a test; one fails when our own side could not be measured, and never for being slow."""

import pytest

from harness.bench import BENCHES, Lab

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("name", BENCHES)
def test_bench(lab: Lab, name: str, pytestconfig: pytest.Config) -> None:
    rows, breakdowns = len(lab.board.rows), len(lab.board.breakdowns)
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        BENCHES[name].run(lab)
    measured = lab.board.rows[rows:]
    taken_apart = lab.board.breakdowns[breakdowns:]
    assert measured or taken_apart
    assert [row.ours.problem for row in measured if not row.ours] == []
    assert [parts.problem for parts in taken_apart if not parts.parts] == []
