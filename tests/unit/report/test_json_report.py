# SPDX-License-Identifier: MIT
"""The JSON report: complete, comparable, and never half written."""

import json
import os
import threading
from pathlib import Path

import pytest

from harness.contract.model import Verdict
from harness.errors import HarnessError
from harness.report import IncompleteJudgement, ReportNotWritten, check_writable, to_json, write_json


def test_golden(judgement, small, golden):
    golden("report.json", to_json(judgement, small))


def test_everything_comes_back(judgement, small):
    document = json.loads(to_json(judgement, small))
    assert document["schema"] == "iobmd.judgement/1"
    assert [entry["id"] for entry in document["clauses"]] == list(small)
    for entry, result in zip(document["clauses"], judgement.results, strict=True):
        clause, evidence = result.clause, entry["evidence"]
        assert (entry["group"], entry["kind"], entry["sentence"]) == (
            clause.group,
            clause.kind.value,
            clause.sentence,
        )
        assert Verdict(entry["verdict"]) is result.verdict
        for name in ("reason", "expected", "observed", "from_outside"):
            assert entry[name] == getattr(result, name)
        assert entry["seconds"] == pytest.approx(result.seconds, abs=1e-6)
        assert tuple(evidence["notes"]) == result.evidence.notes
        ranges = tuple((int(each["start"], 16), each["length"]) for each in evidence["ranges"])
        assert ranges == result.evidence.ranges
        assert len(evidence["pages"]) == len(result.evidence.pages)
        for page, leaf in zip(evidence["pages"], result.evidence.pages, strict=True):
            numbers = {name: int(page.pop(name), 16) for name in ("va", "pa", "entry")}
            assert {**page, **numbers} == vars(leaf)


def test_sums(judgement, small):
    document = json.loads(to_json(judgement, small))
    assert document["counts"] == {
        "holds": 3,
        "broken": 2,
        "not applicable": 1,
        "unproved": 3,
        "total": 9,
        "from_outside": 2,
    }
    for verdict in Verdict:
        assert sum(group["counts"][verdict.value] for group in document["groups"]) == judgement.count(verdict)
    assert document["provenance"] == vars(judgement.provenance)
    assert document["timings"]["oracle_milliseconds"] == {"count": 3, "median": 3.25, "max": 9.5}


def test_no_captures(judgement, small, replace):
    timings = json.loads(to_json(replace(judgement, oracle_milliseconds=()), small))["timings"]
    assert timings["oracle_milliseconds"] == {"count": 0, "median": None, "max": None}


def test_any_text_survives(judgement, small, replace):
    odd = "caf\u00e9 \x1b[1m \udcff \u2192"
    text = to_json(replace(judgement, "A02", observed=odd), small)
    assert text.isascii()
    assert json.loads(text)["clauses"][1]["observed"] == odd


def test_no_clause_is_silently_absent(judgement, small, replace, tmp_path):
    with pytest.raises(IncompleteJudgement, match="absent: C02"):
        write_json(replace(judgement, results=judgement.results[:-1]), tmp_path / "report.json", small)
    assert list(tmp_path.iterdir()) == []


def test_written_like_any_new_file(judgement, small, tmp_path):
    path = tmp_path / "report.json"
    before = os.umask(0o027)
    try:
        write_json(judgement, path, small)
    finally:
        os.umask(before)
    assert path.read_text() == to_json(judgement, small)
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_an_old_report_is_replaced_through_a_link(judgement, small, tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_json(judgement, link, small)
    assert link.is_symlink()
    assert target.read_text() == to_json(judgement, small)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_report(judgement, small, tmp_path, monkeypatch, step):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(ReportNotWritten, match="No space left on device"):
        write_json(judgement, path, small)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing/report.json", ".", "file/report.json"])
def test_a_place_that_cannot_be_written(judgement, small, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportNotWritten) as caught:
        write_json(judgement, tmp_path / name, small)
    assert isinstance(caught.value, HarnessError)
    assert caught.value.exit_code == 2
    assert str(tmp_path / name) in caught.value.tried
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_pipe_stays_a_pipe(judgement, small, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    write_json(judgement, pipe, small)
    reader.join(timeout=5)
    assert got == [to_json(judgement, small)]
    assert pipe.is_fifo()


@pytest.mark.parametrize("where", ["nowhere/report.json", "."])
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, where):
    with pytest.raises(ReportNotWritten, match="could not be written"):
        check_writable(tmp_path / where)


def test_a_place_that_can_be_written_is_left_alone(tmp_path):
    check_writable(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []
