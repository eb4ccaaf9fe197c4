# SPDX-License-Identifier: MIT
"""``iobmd clauses``: every clause has a card, and remembers its last verdict."""

from pathlib import Path

import pytest

from harness import cli
from harness.contract.catalogue import catalogue
from harness.contract.engine import all_checks
from harness.contract.model import ClauseResult, Judgement, Provenance, Verdict
from harness.history import Remembered, last_verdicts, remember
from harness.images import load_recipes, source_root
from harness.report import decisions_table

PROVENANCE = Provenance("custom", "6.1.0", "7.2", "tcg", "asked for", "q35", "0123")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def judged(verdict, *names):
    results = tuple(ClauseResult(clause, verdict) for clause in catalogue().select(*names))
    return Judgement(results, PROVENANCE, 1.0, 2.0)


def test_every_clause_has_a_card(capsys):
    assert cli.main(["clauses"]) == 0
    out = capsys.readouterr().out
    for name in catalogue():
        assert f"\n{name}  " in f"\n{out}"


def test_a_card_says_who_decides_and_how(capsys):
    assert cli.main(["clauses", "F04"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    clause, check = catalogue()["F04"], all_checks()["F04"]
    for words in (clause.sentence, clause.source, clause.observable, clause.decision, clause.implementation):
        assert words in out
    assert f"{check.run.__name__}, from outside the guest" in out
    assert " ".join(check.run.__doc__.split()) in out
    assert "never judged here" in out


def test_the_last_verdict_is_remembered(capsys):
    remember(judged(Verdict.BROKEN, "C08"))
    assert cli.main(["clauses", "C08"]) == 0
    assert "broken on 6.1.0, " in capsys.readouterr().out


def test_a_clause_that_was_not_asked_for_keeps_what_it_had(cache):
    remember(judged(Verdict.HOLDS, "C"))
    remember(judged(Verdict.UNPROVED, "C"))
    assert last_verdicts()["C08"].verdict == "holds"
    assert list(cache.iterdir()) == [cache / "last-verdicts.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"C08": 1}', '{"C08": {"verdict": "holds"}}'])
def test_a_damaged_memory_is_an_empty_one(tmp_path, text):
    file = tmp_path / "memory.json"
    file.write_text(text)
    assert last_verdicts(file) == {}
    remember(judged(Verdict.HOLDS, "C08"), file)
    assert isinstance(last_verdicts(file)["C08"], Remembered)


def test_an_unknown_clause_exits_2(capsys):
    assert cli.main(["clauses", "C99"]) == 2
    assert "group C" in capsys.readouterr().err


def test_the_readme_has_every_decision():
    assert decisions_table() in (Path(source_root()) / "README.md").read_text(encoding="utf-8")


def test_the_nightly_run_covers_every_recipe():
    workflow = (Path(source_root()) / ".github/workflows/nightly.yml").read_text(encoding="utf-8")
    listed = {line.strip(" -") for line in workflow.splitlines() if line.strip().startswith("- debian-")}
    assert listed == set(load_recipes())
