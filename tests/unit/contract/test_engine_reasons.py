# SPDX-License-Identifier: MIT
"""Checks that need another machine than this one say so, and never that the clause holds."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

import harness.contract.checks  # noqa: F401 - registers the checks
from harness.contract.case import Bench, Case
from harness.contract.engine import CHECKS
from harness.contract.facts import MachineFacts
from harness.contract.outcome import NotApplicable

BEHIND_AN_IOMMU = ["C15", "D04", "D18"]


def on(fakes: ModuleType, *, iommu: bool) -> Case:
    guest: Any = fakes.FakeGuest()
    iokit: Any = fakes.FakeIOKit()
    oracle: Any = fakes.FakeOracle(iokit)
    return Case(Bench(guest, iokit, oracle, replace(MachineFacts.of(guest.machine), iommu=iommu)), seed="x")


@pytest.mark.parametrize("clause", BEHIND_AN_IOMMU)
def test_without_an_iommu_the_clause_does_not_apply(clause: str, load_fakes: ModuleType) -> None:
    with pytest.raises(NotApplicable, match="no IOMMU"):
        CHECKS[clause].run(on(load_fakes, iommu=False))


@pytest.mark.parametrize("clause", ["D16", "D21"])
def test_ram_below_4_gib_cannot_show_what_lies_above(clause: str, load_fakes: ModuleType) -> None:
    with pytest.raises(NotApplicable, match="above 4 GiB"):
        CHECKS[clause].run(on(load_fakes, iommu=False))


@pytest.mark.parametrize(
    ("devices", "cmdline", "expected"),
    [
        ((), (), False),
        (("edu",), ("intel_iommu=on",), False),
        (("intel-iommu,intremap=off",), ("intel_iommu=on",), False),
        (("intel-iommu,intremap=off", "edu"), (), False),
        (("intel-iommu,intremap=off", "edu,dma_mask=1"), ("quiet", "intel_iommu=on"), True),
    ],
)
def test_an_iommu_is_a_unit_in_use_with_a_device_behind_it(
    devices: tuple[str, ...], cmdline: tuple[str, ...], expected: bool, load_fakes: ModuleType
) -> None:
    guest: Any = load_fakes.FakeGuest()
    guest.machine.spec.devices = devices
    guest.machine.spec.cmdline = cmdline
    assert MachineFacts.of(guest.machine).iommu is expected


def test_the_top_of_ram_counts_what_lies_above_the_pci_hole(load_fakes: ModuleType) -> None:
    guest: Any = load_fakes.FakeGuest()
    guest.machine.ram.ranges = ((0, 2 << 30), (4 << 30, 1 << 30))
    assert MachineFacts.of(guest.machine).top_of_ram == 5 << 30
