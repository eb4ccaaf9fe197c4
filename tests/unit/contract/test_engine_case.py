# SPDX-License-Identifier: MIT
"""What a check is given: comparisons, probes, evidence."""

import dataclasses
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from harness.contract.case import MIB, PAGE, Bench, Case, probes
from harness.contract.catalogue import catalogue
from harness.contract.facts import MachineFacts
from harness.contract.outcome import SAMPLE, Broken, Trail
from harness.errors import HarnessError
from harness.iokit.constants import kIOMemoryMapperNone
from harness.oracle import MemoryType, PhysRange


@pytest.fixture
def guest(load_fakes: ModuleType) -> Any:
    return load_fakes.FakeGuest()


@pytest.fixture
def case(load_fakes: ModuleType, guest: Any) -> Case:
    iokit = load_fakes.FakeIOKit()
    oracle: Any = load_fakes.FakeOracle(iokit)
    return Case(Bench(guest, iokit, oracle, MachineFacts.of(guest.machine)), seed="A01")


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, PAGE - 1, PAGE, PAGE + 1, 5000, 4 * MIB, 9 * MIB + 123])
def test_probes_cover_the_ends_and_do_not_overlap(length: int) -> None:
    windows = probes(length)
    assert windows[0][0] == 0
    assert sum(windows[-1]) == length
    for (start, size), (next_start, _) in pairwise(windows):
        assert start + size <= next_start
    assert all(size > 0 for _, size in windows)
    if length > 4 * MIB:
        assert any(start < 4 * MIB < start + size for start, size in windows)


def test_patterns_are_the_same_in_every_run_and_never_zero(
    case: Case, load_fakes: ModuleType, guest: Any
) -> None:
    iokit = load_fakes.FakeIOKit()
    other = Case(Bench(guest, iokit, load_fakes.FakeOracle(iokit), case.facts), seed="A01")
    one = case.pattern(4096)
    assert one == other.pattern(4096)
    assert one != case.pattern(4096)
    assert 0 not in one


def test_differing_bytes_are_located(case: Case) -> None:
    with pytest.raises(Broken) as caught:
        case.expect_bytes(b"aXcY", equals=b"abcd", what="contents")
    assert caught.value.expected == "contents: byte 1 is 0x62"
    assert caught.value.observed == "contents: byte 1 is 0x58; 2 of 4 bytes differ"


def test_missing_bytes_are_not_compared_as_a_prefix(case: Case) -> None:
    with pytest.raises(Broken, match="3 bytes"):
        case.expect_bytes(b"abc", equals=b"abcd", what="contents")


def test_zeroes(case: Case) -> None:
    case.expect_zero(bytes(100), what="storage")
    with pytest.raises(Broken, match="byte 99 is 0x01"):
        case.expect_zero(bytes(99) + b"\1", what="storage")


def test_multiples(case: Case) -> None:
    case.expect_multiple(0x4000, 0x2000, what="PA")
    with pytest.raises(Broken, match="0x3000"):
        case.expect_multiple(0x3000, 0x2000, what="PA")


def test_what_was_planted_is_missed_when_guest_ram_lacks_it(case: Case) -> None:
    buf: Any = case.make(capacity=5000)
    planted = case.plant(buf)
    buf.memory[PAGE] ^= 0xFF
    with case.look() as look, pytest.raises(Broken, match="guest RAM behind offset"):
        case.expect_planted(look, buf, planted)


def test_writing_from_outside_reaches_the_buffer(case: Case) -> None:
    buf: Any = case.make(capacity=5000)
    with case.look() as look:
        look.write(buf, 4990, b"0123456789")
        assert look.read(buf, 4990, 10) == b"0123456789"
        assert len(look.read(buf)) == buf.storage
    assert bytes(buf.memory[4990:5000]) == b"0123456789"


def test_pat_types_come_from_the_register(case: Case) -> None:
    with case.look() as look:
        assert {MemoryType.WC, MemoryType.WT, MemoryType.WB} <= look.pat_types


def test_free_memory_counts_the_processors_own_lists(case: Case, guest: Any) -> None:
    assert case.free_memory() == 123 * PAGE
    guest.files["/proc/zoneinfo"] = b"Node 0, zone DMA\n"
    with pytest.raises(HarnessError, match="no pages"):
        case.free_memory()


def test_pressure_reclaims_and_compacts(case: Case, guest: Any) -> None:
    case.press()
    assert guest.written == ["/proc/sys/vm/drop_caches", "/proc/sys/vm/compact_memory"]


def test_long_evidence_is_a_sample_and_says_so() -> None:
    trail = Trail()
    trail.saw_ranges("buffer", [PhysRange(PAGE * n, PAGE) for n in range(20)])
    evidence = trail.evidence()
    assert len(evidence.ranges) == SAMPLE
    assert evidence.notes == (f"buffer: {SAMPLE} of 20 physical ranges are listed",)


def test_every_check_belongs_to_a_clause() -> None:
    import harness.contract.checks  # noqa: F401
    from harness.contract.engine import CHECKS

    assert set(CHECKS) <= set(catalogue())
    assert len(CHECKS) >= 90


def test_types_that_were_taken_for_granted_are_named_in_the_evidence(case: Case) -> None:
    with case.look():
        pass
    assert case.trail.notes == []
    oracle: Any = case._bench.oracle
    oracle.note = "PAT as before"
    with case.look():
        pass
    assert case.trail.notes == ["PAT as before"]


@pytest.mark.parametrize(("iommu", "option"), [(True, kIOMemoryMapperNone), (False, 0)])
def test_only_behind_an_iommu_a_check_asks_for_the_processors_addresses(
    case: Case, iommu: bool, option: int
) -> None:
    case.facts = dataclasses.replace(case.facts, iommu=iommu)
    assert case.direct == option
