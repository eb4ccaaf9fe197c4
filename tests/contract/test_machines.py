# SPDX-License-Identifier: MIT
"""What the usual machine has no occasion to show: more memory, memory above 4 GiB, an IOMMU.

A clause may be "not applicable" only where one of these machines decides it.
"""

from dataclasses import dataclass

import pytest

from harness.contract import Verdict, catalogue, judge
from harness.images import GuestImage, SilentProgress
from harness.iokit import IOKit
from harness.link import Guest, GuestOptions
from harness.oracle import Oracle


@dataclass(frozen=True)
class Machine:
    """A machine and the clauses it has to keep."""

    name: str
    clauses: tuple[str, ...]
    options: GuestOptions


MACHINES = (
    Machine("2 GiB", ("D02", "D03", "D09", "D14"), GuestOptions(memory_mib=2048)),
    Machine("6 GiB", ("D09", "D10", "D15", "D16", "D21"), GuestOptions(memory_mib=6144)),
    Machine("12 GiB", ("D09", "D13", "D16", "D20", "D21"), GuestOptions(memory_mib=12288)),
    Machine(
        "an IOMMU",
        ("C15", "D04", "D18", "I07"),
        GuestOptions(
            # Interrupts stay out of it: the kernel would need a split irqchip for nothing.
            devices=("intel-iommu,intremap=off", "edu,dma_mask=0xffffffffffffffff"),
            cmdline=("intel_iommu=on",),  # Debian's kernels have the driver and leave it off
        ),
    ),
)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name.replace(" ", "-"))
def test_the_clauses_of_a_machine(machine: Machine, guest_image: GuestImage) -> None:
    with Guest(guest_image, machine.options) as guest, IOKit(guest) as iokit:
        chosen = catalogue().select(*machine.clauses)
        results = judge(guest, iokit, Oracle(guest.machine), chosen, SilentProgress()).results
    wrong = [
        f"{one.clause.id} is {one.verdict.value} {one.reason}: {one.expected} expected, {one.observed}"
        for one in results
        if one.verdict is not Verdict.HOLDS
    ]
    assert not wrong


def test_what_the_usual_machine_lacks_is_decided_elsewhere(
    guest: Guest, iobmd: IOKit, oracle: Oracle
) -> None:
    results = judge(guest, iobmd, oracle, catalogue().values(), SilentProgress()).results
    lacking = {one.clause.id for one in results if one.verdict is Verdict.NOT_APPLICABLE}
    assert lacking - {clause for machine in MACHINES for clause in machine.clauses} == set()
