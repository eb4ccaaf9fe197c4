# SPDX-License-Identifier: MIT
"""The whole contract on every machine there is: what one has no occasion to show, another one has.

The usual one is judged clause by clause in test_contract.py.

A clause may be "not applicable" only on the machines that lack what it speaks of, each of which is named
here with its clauses.
"""

import pytest

from harness.contract import Judgement, Verdict, catalogue, judge
from harness.images import GuestImage, SilentProgress
from harness.iokit import IOKit
from harness.link import Guest
from harness.machines import MACHINES, USUAL, NamedMachine
from harness.oracle import Oracle
from harness.vm import SnapshotStore

IOMMU = {"C15", "D04", "D18", "I07"}
"""Speak of a machine whose devices see other addresses than the processor."""
HIGH_RAM = {"D16", "D21"}
"""Speak of RAM above 4 GiB."""
WRITE_COMBINING = {"F02"}
"""Speaks of a PAT with write-combining."""


def lacking(machine: NamedMachine) -> set[str]:
    """The clauses a machine cannot show."""
    found = set() if "iommu" in machine.name else set(IOMMU)
    found |= set() if machine.memory_mib > 3072 else HIGH_RAM
    return found | (WRITE_COMBINING if "nopat" in machine.cmdline else set())


def told(judgement: Judgement, verdict: Verdict) -> list[str]:
    return [
        f"{one.clause.id} {one.reason}: {one.expected} expected, {one.observed}"
        for one in judgement.results
        if one.verdict is verdict
    ]


@pytest.mark.parametrize("name", [name for name in MACHINES if name != USUAL.name])
def test_the_contract_on_a_machine(name: str, guest_image: GuestImage, record_property) -> None:
    machine = MACHINES[name]
    lack = machine.lacks(guest_image.kernel)
    if lack:
        assert machine.drivers  # nothing else keeps a kernel from running on a machine
        pytest.skip(lack)
    with Guest(guest_image, machine.guest(), SnapshotStore.default()) as guest, IOKit(guest) as iokit:
        everything = catalogue().values()
        judgement = judge(guest, iokit, Oracle(guest.machine), everything, SilentProgress())
    record_property("machine", name)
    assert told(judgement, Verdict.BROKEN) == []
    assert told(judgement, Verdict.UNPROVED) == []
    left = {one.clause.id for one in judgement.results if one.verdict is Verdict.NOT_APPLICABLE}
    assert left == lacking(machine), told(judgement, Verdict.NOT_APPLICABLE)


def test_every_clause_is_decided_on_some_machine() -> None:
    everywhere = [machine for machine in MACHINES.values() if not machine.drivers]
    assert set.intersection(*map(lacking, everywhere)) == set()
