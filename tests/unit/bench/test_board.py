# SPDX-License-Identifier: MIT
"""The board: ratios, goals, what is shown and written of it."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from harness.bench import Board, Breakdown, Row, Series, percentile, show
from harness.bench.show import figures_text, ratio_text
from harness.errors import BadInput


def shown(board: Board) -> str:
    out = io.StringIO()
    show(board, Console(file=out, width=200, highlight=False))
    return out.getvalue()


def row(ours: list[float], peer: list[float] | None = None, **fields: object) -> Row:
    other = None if peer is None else Series(peer)
    return Row("ours", "ms", Series(ours), peer=other, **fields)


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.501, 51), (0.99, 99), (1.0, 100)]
)
def test_percentile_is_the_nearest_rank(share, value):
    assert percentile(list(range(100, 0, -1)), share) == value


def test_the_ratio_is_a_median_over_rounds_and_not_a_ratio_of_medians():
    # A host that became ten times slower in the last two rounds slowed both sides.
    assert row([1, 1, 1, 10, 10], [2, 2, 2, 20, 20]).ratio == 0.5
    assert row([1, 10, 1], [4, 20, 2]).ratio == 0.5
    assert row([1, 3, 5], [10, 2, 10]).ratio == 0.5  # of the medians: 0.3


def test_a_round_one_side_missed_is_no_pair():
    assert row([1, 1, 100], [2, 2]).ratio == 0.5
    assert row([1, 2], [0, 4]).ratio == 0.5


def test_without_a_side_there_is_no_ratio_and_no_verdict():
    for lone in (row([1]), row([1], []), row([], [1])):
        assert lone.ratio is None
    assert row([], [1], goal=2.0).reached is None
    assert row([1], [], goal=2.0).reached is None, "a peer that could not run proves nothing"


@pytest.mark.parametrize(
    ("made", "reached"),
    [
        (row([1], [10], goal=0.1), True),
        (row([2], [10], goal=0.1), False),
        (row([80], [10], goal=8.0, more_is_better=True), True),
        (row([79], [10], goal=8.0, more_is_better=True), False),
        (row([20], goal=20.0), True),
        (row([21], goal=20.0), False),
        (row([999], goal=1000.0, more_is_better=True), False),
        (row([1], [10]), None),
    ],
)
def test_goals(made, reached):
    assert made.reached is reached


def test_the_goal_is_judged_by_the_ratio_only_when_there_is_a_peer():
    assert row([5], [10], goal=1.0).reached is True
    assert row([5], goal=1.0).reached is False


@pytest.mark.parametrize(
    ("ratio", "text"), [(1 / 12, "1/12"), (0.05, "1/20"), (0.3, "0.30"), (1.5, "1.50"), (8.0, "8.00")]
)
def test_ratios_read_as_people_say_them(ratio, text):
    assert ratio_text(ratio) == text


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([], "ms", ""),
        ([1.234], "s", "1.23"),
        ([-104.4], "ms", "-104"),
        ([0.0612], "s", "0.061"),
        ([100.4, 99.6, 200.0], "us", "100 (100..200)"),
        ([12.34, 10, 20], "ms", "12.3 (10.0..20.0)"),
    ],
)
def test_figures_have_as_many_digits_as_mean_something(values, unit, text):
    assert figures_text(Series(values), unit) == text


def test_the_table_shows_reached_missed_and_who_could_not_run():
    board = Board()
    board.row("quick", "us", Series([1.0]), peer=Series([10.0]), against="slow", goal=0.2)
    board.row("slow", "us", Series([9.0]), peer=Series([10.0]), against="quick", goal=0.2)
    peer = Series([], problem="vng: is not installed; pip install it")
    board.row("alone", "us", Series([1.0]), peer=peer, against="vng", goal=0.2)
    text = shown(board)
    assert re.search(r"quick / slow .*1/10 .*<= 0.20 reached", text)
    assert re.search(r"slow / quick .*0.90 .*<= 0.20 missed", text)
    assert re.search(r"alone / vng \[1\] .*could not run .*not judged", text)
    assert "[1] vng: is not installed; pip install it" in text


def test_words_in_brackets_are_no_markup():
    board = Board()
    board.row("[bold]x[/bold]", "us", Series([1.0]), notes=["[red]y"])
    assert "[bold]x[/bold] [1]" in shown(board)
    assert "[1] [red]y" in shown(board)


def test_a_side_that_stopped_early_keeps_its_figures_and_says_why():
    board = Board()
    board.row("ours", "us", Series([1.0, 2.0]), peer=Series([8.0], problem="broke"), against="peer")
    assert re.search(r"8.00 .*1/8", shown(board))
    assert "[1] broke" in shown(board)


def test_a_note_is_printed_once_for_all_its_rows():
    board = Board()
    for _ in range(3):
        board.row("x", "us", Series([1.0]), notes=["the same"])
    assert shown(board).count("the same") == 1


def test_parts_add_up_and_have_shares():
    parts = Breakdown("a boot")
    parts.add({"one": 1.0, "two": 3.0})
    parts.add({"one": 1.0, "two": 3.0})
    parts.detail("inside of two", 2.5)
    assert parts.whole == 4.0
    board = Board()
    board.breakdowns.append(parts)
    text = shown(board)
    assert "a boot: 4 ms" in text
    assert re.search(r"one .*25.0% .*2", text)
    assert re.search(r"two .*75.0%", text)
    assert not re.search(r"inside of two .*%", text)


def test_json_has_every_value_and_says_what_is_missing(tmp_path: Path):
    board = Board()
    board.row("a", "us", Series([2.0, 1.0, 3.0], each=100), peer=Series([4.0, 2.0, 6.0]), goal=1.0)
    board.row("b", "us", Series([], problem="no room"))
    board.breakdown("c").add({"part": 5.0})
    board.interrupted = True
    board.finish()
    board.write(tmp_path / "deep" / "bench.json")
    read = json.loads((tmp_path / "deep" / "bench.json").read_text())
    assert read["schema"] == 2
    assert read["interrupted"] is True
    assert read["rows"][0]["ours"] == {
        "median": 2.0, "min": 1.0, "max": 3.0, "values": [2.0, 1.0, 3.0],
        "timings_per_value": 100, "problem": None,
    }  # fmt: skip
    assert (read["rows"][0]["ratio"], read["rows"][0]["goal_reached"]) == (0.5, True)
    assert read["rows"][1]["ours"] == {"values": [], "problem": "no room"}
    assert read["rows"][1]["problems"] == ["no room"]
    assert read["breakdowns"][0]["parts"]["part"]["median"] == 5.0
    assert {"cpu", "cores", "load_at_start", "load_at_end"} <= read["machine"].keys()


def test_a_file_that_cannot_be_written_is_bad_input(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write"):
        Board().write(tmp_path / "file" / "bench.json")


def test_an_empty_board_can_be_shown():
    assert "Slow fails nothing" in shown(Board())
