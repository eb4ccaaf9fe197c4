# SPDX-License-Identifier: MIT
"""One kernel on several machines: a row each, what is broken in full, and what nobody could decide."""

import dataclasses
import json

import pytest

from harness.contract.model import Verdict
from harness.report import IncompleteJudgement, machines_to_json, print_machines


def with_verdicts(judgement, **verdicts):
    """The judgement with other verdicts for some clauses."""
    results = tuple(
        dataclasses.replace(one, verdict=verdicts.get(one.clause.id, Verdict.HOLDS), reason="it has none")
        for one in judgement.results
    )
    return dataclasses.replace(judgement, results=results)


@pytest.fixture
def show(screen, small):
    def shown(judgements, left_out=(), width=110, **options) -> str:
        console = screen(width)
        print_machines(judgements, left_out, console, catalogue=small, **options)
        return console.file.getvalue()

    return shown


@pytest.fixture
def first(judgement):
    return judgement.results[0].clause.id


def test_a_row_per_machine_and_a_sum(show, judgement):
    text = show({"pc": with_verdicts(judgement), "no-pat": with_verdicts(judgement)})
    rows = [line.split() for line in text.splitlines() if line.startswith(("pc ", "no-pat "))]
    count = len(judgement.results)
    assert [row[:5] for row in rows] == [[name, str(count), "0", "0", "0"] for name in ("pc", "no-pat")]
    assert f"holds {2 * count}, broken 0, not applicable 0, unproved 0 of {2 * count} on 2 machines" in text
    assert "not applicable anywhere: none" in text


def test_what_is_broken_is_shown_with_its_machine(show, judgement, first):
    broken = with_verdicts(judgement, **{first: Verdict.BROKEN})
    text = show({"pc": with_verdicts(judgement), "7-gib": broken})
    assert text.count("BROKEN") == 1
    assert text.index("7-gib  ") < text.index("BROKEN")
    assert "broken 1" in text


def test_a_clause_is_named_that_no_machine_decides(show, judgement, first):
    lacking = with_verdicts(judgement, **{first: Verdict.NOT_APPLICABLE})
    assert f"not applicable anywhere: {first}" in show({"pc": lacking, "usual": lacking})
    elsewhere = show({"pc": lacking, "usual": with_verdicts(judgement)})
    assert "not applicable anywhere: none" in elsewhere
    assert "n/a on" not in elsewhere
    told = show({"pc": lacking, "usual": with_verdicts(judgement)}, verbose=True)
    assert f"{first}   n/a on pc" in told
    assert "it has none" in told


def test_machines_that_were_left_out_are_told(show, judgement):
    text = show({"pc": with_verdicts(judgement)}, ["virtio-iommu: no driver"])
    assert "left out: virtio-iommu: no driver" in text


@pytest.mark.parametrize("width", [40, 64, 110])
def test_nothing_is_wider_than_the_terminal(show, judgement, first, width):
    broken = with_verdicts(judgement, **{first: Verdict.BROKEN})
    text = show({"pc": broken}, ["a: " + "word " * 40], width=width)
    assert max(map(len, text.splitlines())) <= width


def test_json_has_each_machines_document(judgement, small):
    document = json.loads(machines_to_json({"pc": judgement}, ["a: b"], small))
    assert document["schema"] == "iobmd.judgements/1"
    assert document["left_out"] == ["a: b"]
    assert document["machines"]["pc"]["schema"] == "iobmd.judgement/1"
    assert len(document["machines"]["pc"]["clauses"]) == len(judgement.results)


def test_an_incomplete_judgement_is_no_row(show, judgement):
    with pytest.raises(IncompleteJudgement):
        show({"pc": dataclasses.replace(judgement, results=judgement.results[1:])})
