# SPDX-License-Identifier: MIT
"""``iobmd bench``: what it takes, what it refuses, what it shows when it is interrupted."""

import json

import pytest

from harness import cli
from harness.bench import BENCHES, Bench, Board, Lab, Side, default_options, door, run, select, suite
from harness.errors import BadInput, GuestFailure
from harness.images import SilentProgress


@pytest.fixture
def fakes(monkeypatch):
    """Benches that need no guest: one that works, one that is interrupted, one that fails."""

    def steady(lab: Lab) -> None:
        side = Side("ours", lambda _: lambda: {"each": 2.0})
        lab.board.row("something", "us", side.series("each"), goal=3.0)
        lab.measure("steady", [side], 4)

    def interrupted(lab: Lab) -> None:
        left = iter([1.0, 1.0])

        def measure():
            for value in left:
                return {"each": value}
            raise KeyboardInterrupt

        side = Side("ours", lambda _: measure)
        lab.board.row("cut short", "us", side.series("each"))
        lab.measure("interrupted", [side], 9)

    def broken(_: Lab) -> None:
        raise GuestFailure("the guest is gone")

    made = [Bench("steady", "works", steady), Bench("cut", "is interrupted", interrupted),
            Bench("broken", "fails", broken), Bench("rare", "only by name", steady, usual=False)]  # fmt: skip
    benches = {bench.name: bench for bench in made}
    for module in (suite, door):
        monkeypatch.setattr(module, "BENCHES", benches)
    monkeypatch.setattr(suite, "_ALL", tuple(made))
    return benches


def test_every_bench_is_explained():
    for bench in BENCHES.values():
        assert bench.about
        assert len(bench.name) < 10
    assert "boot" in BENCHES


@pytest.mark.usefixtures("fakes")
def test_without_a_name_the_usual_ones_run():
    assert [bench.name for bench in select([])] == ["steady", "cut", "broken"]
    assert [bench.name for bench in select(["rare", "steady", "rare"])] == ["steady", "rare"]


def test_an_unknown_name_is_refused_with_a_guess():
    with pytest.raises(BadInput, match="no bench 'strat'") as caught:
        select(["strat"])
    assert caught.value.hint == "did you mean start?"
    with pytest.raises(BadInput) as caught:
        select(["qqqqqq"])
    assert "--help" in caught.value.hint


@pytest.mark.usefixtures("fakes")
def test_a_run_shows_its_table_and_writes_its_file(tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "steady", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "something" in out
    assert "<= 3 reached" in out
    assert json.loads(file.read_text())["rows"][0]["ours"]["values"] == [2.0] * 4


@pytest.mark.usefixtures("fakes")
def test_rounds_are_the_users(tmp_path):
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "steady", "--rounds", "2", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["rows"][0]["ours"]["values"] == [2.0] * 2


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("rounds", ["0", "-3"])
def test_no_rounds_are_refused(rounds, capsys):
    assert cli.main(["bench", "steady", "--rounds", rounds]) == 2
    assert "measures nothing" in capsys.readouterr().err


@pytest.mark.usefixtures("fakes")
def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, capsys):
    assert cli.main(["bench", "broken", "--json", str(tmp_path / "no" / "such" / "x.json")]) == 2
    assert "the guest is gone" not in capsys.readouterr().err


@pytest.mark.usefixtures("fakes")
def test_ctrl_c_shows_what_was_measured_and_exits_130(tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "cut", "broken", "--json", str(file)]) == 130
    out = capsys.readouterr().out
    assert "cut short" in out
    assert "Interrupted" in out
    read = json.loads(file.read_text())
    assert read["interrupted"] is True
    assert read["rows"][0]["ours"]["values"] == [1.0, 1.0]


@pytest.mark.usefixtures("fakes")
def test_a_failure_of_our_own_side_shows_what_came_before_it(capsys):
    assert cli.main(["bench", "steady", "broken"]) == 3
    captured = capsys.readouterr()
    assert "something" in captured.out
    assert "the guest is gone" in captured.err


def test_its_machine_is_the_published_one_unless_told_otherwise():
    parsed = cli._parser().parse_args(["bench"])
    usual = default_options()
    assert (parsed.kernel, parsed.accel) == (usual.kernel, usual.accel.value) == ("debian-6.1", "tcg")
    assert cli._parser().parse_args(["bench", "--kernel", "debian-6.12"]).kernel == "debian-6.12"
    assert cli._parser().parse_args(["check"]).kernel != usual.kernel, "its defaults are nobody else's"


def test_help_names_every_bench(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    out = capsys.readouterr().out
    assert all(f"  {bench.name} " in out and bench.about in out for bench in BENCHES.values())


def test_an_interrupted_run_is_marked_on_the_board(fakes):
    board = Board()
    run([fakes["cut"]], Lab(default_options(), board, SilentProgress()))
    assert board.interrupted
    assert "load_at_end" in board.facts
