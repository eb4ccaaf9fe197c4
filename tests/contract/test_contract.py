# SPDX-License-Identifier: MIT
"""The module keeps the contract: each clause with a check, on the kernel and machine of this session."""

import time

import pytest

import harness.contract.checks  # noqa: F401 - registers the checks
from harness.contract import ClauseResult, Judgement, Verdict, catalogue, judge
from harness.contract.case import Bench, Case
from harness.contract.engine import CHECKS
from harness.contract.facts import MachineFacts
from harness.images import SilentProgress
from harness.iokit import IOKit
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapInhibitCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
)
from harness.link import Guest
from harness.oracle import Oracle

MIB = 1 << 20
# Decided where the machine has what they speak of: an IOMMU, RAM above 4 GiB, a PAT with write-combining.
# test_machines.py has such machines.
OPTIONAL = {"C15", "D04", "D16", "D18", "D21", "F02", "I07"}


def judged(guest: Guest, iobmd: IOKit, oracle: Oracle, *names: str) -> Judgement:
    return judge(guest, iobmd, oracle, catalogue().select(*names), SilentProgress())


def explain(result: ClauseResult) -> str:
    notes = "\n".join(f"  {note}" for note in result.evidence.notes)
    seen = f"expected {result.expected}\nobserved {result.observed}"
    return f"{result.clause.id} {result.clause.sentence}\n{seen}\n{notes}"


@pytest.mark.parametrize(
    "clause", [pytest.param(name, marks=pytest.mark.clause(name)) for name in sorted(CHECKS)]
)
def test_clause(clause: str, guest: Guest, iobmd: IOKit, oracle: Oracle) -> None:
    result = judged(guest, iobmd, oracle, clause).results[0]
    check = CHECKS[clause]
    allowed = {Verdict.HOLDS, Verdict.NOT_APPLICABLE} if clause in OPTIONAL else {Verdict.HOLDS}
    assert result.verdict in allowed, explain(result)
    assert result.verdict is Verdict.HOLDS or result.reason
    assert result.from_outside or not check.outside or result.verdict is not Verdict.HOLDS


def test_every_clause_of_the_catalogue_gets_a_verdict(guest: Guest, iobmd: IOKit, oracle: Oracle) -> None:
    judgement = judged(guest, iobmd, oracle)
    assert [result.clause.id for result in judgement.results] == list(catalogue())
    assert judgement.count(Verdict.BROKEN) == 0, [
        explain(result) for result in judgement.results if result.verdict is Verdict.BROKEN
    ]
    assert judgement.count(Verdict.UNPROVED) == 0
    lacking = {result.clause.id for result in judgement.results if result.verdict is Verdict.NOT_APPLICABLE}
    assert lacking <= OPTIONAL


def test_at_rest_all_ram_is_write_back(iobmd: IOKit, oracle: Oracle) -> None:
    modes = (kIOMapInhibitCache, kIOMapWriteCombineCache, kIOMapWriteThruCache)
    for mode in modes:
        for size in (16, 64 << 10, 2 * MIB, 9 * MIB):
            iobmd.withOptions(kIODirectionInOut | mode, size)
    with oracle.frozen() as view:
        assert view.direct_map_anomalies(), "typed buffers are alive: the direct map must show them"
    iobmd.release_all()
    assert iobmd.info().live == 0
    with oracle.frozen() as view:
        assert view.direct_map_anomalies() == ()


def test_memory_comes_back(guest: Guest, iobmd: IOKit, oracle: Oracle) -> None:
    free = Case(Bench(guest, iobmd, oracle, MachineFacts.of(guest.machine)), "memory").free_memory

    def rounds(count: int) -> None:
        for _ in range(count):
            for mode in (0, kIOMapWriteCombineCache, kIOMapWriteThruCache):
                buf = iobmd.withOptions(kIODirectionInOut | mode, 5 * MIB)
                if buf:
                    buf.release()

    rounds(2)  # the direct map is split into small leaves once and for all
    before = free()
    rounds(20)
    deadline = time.monotonic() + 60
    while before - free() >= 2 * MIB and time.monotonic() < deadline:
        pass  # some of it comes back when the kernel gets to it; a leak does not
    assert before - free() < 2 * MIB
