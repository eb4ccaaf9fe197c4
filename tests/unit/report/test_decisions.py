# SPDX-License-Identifier: MIT
"""The table of decisions for the documentation."""

from harness.contract.catalogue import catalogue
from harness.report import decisions_table


def test_small(small):
    assert decisions_table(small) == (
        "| clause | promise | what this project keeps | what Apple's code does |\n"
        "| --- | --- | --- | --- |\n"
        "| B02 | Write-through memory is WT. | a genuine WT mapping | gives WB |\n"
    )


def test_shipped_one_has_every_decision():
    rows = decisions_table().splitlines()[2:]
    assert [row.split()[1] for row in rows] == ["A10", "B05", "D12", "D14", "F04", "H06", "K08", "K10"]
    assert all(clause.decision in decisions_table() for clause in catalogue().decided())
