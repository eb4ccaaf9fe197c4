# SPDX-License-Identifier: MIT
"""How fast things are, beside their peers: everything measured by turns in one run, nothing judged."""

from harness.bench.board import Board, Breakdown, Row, Series, percentile
from harness.bench.lab import RECIPE, Lab, default_options
from harness.bench.rounds import Side, interleave
from harness.bench.show import show
from harness.bench.suite import BENCHES, Bench, run, select

__all__ = [
    "BENCHES",
    "RECIPE",
    "Bench",
    "Board",
    "Breakdown",
    "Lab",
    "Row",
    "Series",
    "Side",
    "default_options",
    "interleave",
    "percentile",
    "run",
    "select",
    "show",
]
