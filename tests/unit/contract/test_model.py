# SPDX-License-Identifier: MIT
"""A judgement of some clauses becomes one of all, without a word about the others being invented."""

from harness.contract.model import Clause, ClauseResult, Judgement, Kind, Provenance, Verdict

NOWHERE = Provenance("", "", "", "", "", "", "")


def clause(name: str) -> Clause:
    return Clause(name, name[0], Kind.DOCUMENTED, "sentence", "source", "observable")


def test_covering_fills_the_gaps_in_order_and_keeps_what_was_judged():
    first, second, third = clause("A01"), clause("A02"), clause("B01")
    judged = ClauseResult(second, Verdict.HOLDS)
    whole = Judgement((judged,), NOWHERE, 1.0, 2.0).covering((first, second, third), "not asked for")
    assert [result.clause for result in whole.results] == [first, second, third]
    assert whole.results[1] is judged
    assert {result.reason for result in whole.results if result is not judged} == {"not asked for"}
    assert whole.count(Verdict.UNPROVED) == 2
    assert (whole.boot_seconds, whole.check_seconds) == (1.0, 2.0)
