# SPDX-License-Identifier: MIT
"""What checks compare about mappings: leaves against leaves, pages that went, errors of system calls."""

from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.contract.case import PAGE, Bench, Case, Place
from harness.contract.facts import MachineFacts
from harness.contract.mapped import (
    expect_access,
    expect_errno,
    expect_gone,
    expect_layout,
    expect_leaves,
    expect_types,
    layout,
    pages_of,
)
from harness.contract.outcome import Broken
from harness.contract.tracing import _HIT
from harness.link import GuestOSError
from harness.oracle import Leaf, MemoryType, PhysRange

WB = MemoryType.WB
LEAF = Leaf(
    va=0x7000, pa=0x3000, size=PAGE, level=1, entry=0, pat_index=0, pat_type=WB, mtrr_type=WB, effective=WB,
    user=True, writable=True,
)  # fmt: skip


@pytest.fixture
def case(load_fakes: ModuleType) -> Case:
    guest, iokit = load_fakes.FakeGuest(), load_fakes.FakeIOKit()
    oracle: Any = load_fakes.FakeOracle(iokit)
    return Case(Bench(guest, iokit, oracle, MachineFacts.of(guest.machine)), seed="J01")


def looking_at(*leaves: Leaf) -> Any:
    """A look at page tables of exactly these 4 KiB leaves."""
    by_page = {leaf.va: leaf for leaf in leaves}
    return SimpleNamespace(
        leaves=lambda place: [
            by_page[page] for page in range(place.address, place.address + place.storage, PAGE)
        ],
        mapped=lambda address: address & -PAGE in by_page,
        at=lambda address: by_page[address & -PAGE].pa + address % PAGE,
    )


def test_the_same_leaves_are_no_change(case: Case) -> None:
    expect_layout(case, [replace(LEAF, entry=0x60)], layout([LEAF]), "over a buffer")


@pytest.mark.parametrize(
    "now",
    [
        [],
        [LEAF, replace(LEAF, va=0x8000)],
        [replace(LEAF, pa=0x4000)],
        [replace(LEAF, writable=False)],
        [replace(LEAF, effective=MemoryType.WC)],
    ],
)
def test_another_leaf_is_a_change(case: Case, now: list[Leaf]) -> None:
    with pytest.raises(Broken):
        expect_layout(case, now, layout([LEAF]), "over a buffer")


def test_one_leaf_of_another_type_is_broken(case: Case) -> None:
    expect_types(case, [LEAF], frozenset({WB}), "here")
    with pytest.raises(Broken, match="1 others, WC at 0x8000"):
        expect_types(case, [LEAF, replace(LEAF, va=0x8000, effective=MemoryType.WC)], frozenset({WB}), "here")


@pytest.mark.parametrize("bit", ["user", "writable"])
def test_a_leaf_with_another_bit_is_broken(case: Case, bit: str) -> None:
    place = Place(LEAF.va, PAGE)
    expect_leaves(case, looking_at(LEAF), place, user=True, writable=True)
    with pytest.raises(Broken, match=bit):
        expect_leaves(case, looking_at(replace(LEAF, **{bit: False})), place, user=True, writable=True)


def test_other_memory_at_the_address_is_gone_enough(case: Case) -> None:
    place, where = Place(LEAF.va + 100, 50), [PhysRange(LEAF.pa + 100, 50)]
    expect_gone(case, looking_at(), place, where)
    expect_gone(case, looking_at(replace(LEAF, pa=0x9000)), place, where)
    with pytest.raises(Broken):
        expect_gone(case, looking_at(LEAF), place, where)


@pytest.mark.parametrize("faults", [True, False])
def test_access_is_compared_both_ways(case: Case, faults: bool) -> None:
    process: Any = SimpleNamespace(faults=lambda address, write: faults)  # noqa: ARG005
    expect_access(case, process, 0x7000, faults=faults, what="here")
    with pytest.raises(Broken):
        expect_access(case, process, 0x7000, faults=not faults, what="here")


def test_a_call_must_fail_with_that_error(case: Case) -> None:
    def fails(number: int, *args: int, what: str) -> None:  # noqa: ARG001
        raise GuestOSError(13, what)

    expect_errno(case, _process(fails), "EACCES", 9, what="mmap")
    with pytest.raises(Broken):
        expect_errno(case, _process(fails), "EPERM", 9, what="mmap")
    with pytest.raises(Broken, match="success"):
        expect_errno(case, _process(lambda number, what: None), "EACCES", 9, what="mmap")  # noqa: ARG005


def _process(syscall: Any) -> Any:
    return SimpleNamespace(syscall=syscall)


@pytest.mark.parametrize(("length", "pages"), [(1, 1), (PAGE, 1), (PAGE + 1, 2), (5000, 2)])
def test_pages_are_counted_from_a_page_on(length: int, pages: int) -> None:
    assert pages_of(length) == pages


def test_the_tracers_lines_are_read() -> None:
    line = "  init-1  [000] d....  12.3456: flush: (cpa_flush+0x0/0x1a0) cache=1\n"
    assert _HIT.findall(line * 2 + line.replace("cache=1", "cache=0")) == ["1", "1", "0"]
