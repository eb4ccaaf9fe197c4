# SPDX-License-Identifier: MIT
"""Faults of the gallery that show without a ledger: in page tables, in bytes, in the kernel's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from audit_drivers import Driver, drivers
from audit_stage import KERNELS, PAGE, Region, Show, Stage

from harness.forensics import LineTable
from harness.oracle import MemoryType

WB, WC, UC_MINUS = MemoryType.WB, MemoryType.WC, MemoryType.UC_MINUS
RING = 16384
BY_NAME = {driver.name: driver for driver in drivers()}
FILL = bytes([0x5A]) * 64


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shown(request: pytest.FixtureRequest, stage: Stage, kernel: str) -> Iterator[Show]:
    driver: Driver = BY_NAME[request.param]
    with stage.show(kernel, driver) as show:
        show.load()
        yield show


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shown", names, indirect=True)


def last_byte(show: Show, storage: int) -> int:
    """Return the physical address of a ring's last byte; without an IOMMU it is what the device is given."""
    (part,) = show.oracle.physical_of(show.region(storage))
    assert part.start == show.parameter("dma")
    return part.end - 1


def odd_pages(show: Show) -> set[int]:
    """Return the pages of RAM that the direct map has other than write-back."""
    with show.oracle.frozen() as view:
        return {
            leaf.pa + offset for leaf in view.direct_map_anomalies() for offset in range(0, leaf.size, PAGE)
        }


def pages_of(show: Show, storage: int) -> list[int]:
    parts = show.oracle.physical_of(show.region(storage))
    return [part.start + offset for part in parts for offset in range(0, part.length, PAGE)]


@of("above_mask", "mask_after_alloc")
def test_a_ring_above_24_bits(shown):
    assert last_byte(shown, RING) >= 1 << 24


@of("mask_refused")
def test_a_ring_above_the_limit_that_was_refused(shown):
    assert last_byte(shown, PAGE) >= 1 << 16


@of("ring_well")
def test_a_ring_below_24_bits(shown):
    assert last_byte(shown, RING) < 1 << 24


@of("above_boundary", "boundary_well")
def test_a_mapping_across_a_boundary(shown):
    end = last_byte(shown, 8192)
    crosses = (end - 8191) >> 16 != end >> 16
    assert crosses == (shown.driver.rule == "above-boundary")


@of("wc_left_on")
def test_every_page_stays_write_combined_after_the_driver(shown):
    ring = pages_of(shown, RING)
    shown.unload()
    assert odd_pages(shown) == set(ring)


@of("uc_half_restored")
def test_half_the_pages_stay_uncached_after_the_driver(shown):
    ring = pages_of(shown, RING)
    shown.unload()
    assert odd_pages(shown) == set(ring[len(ring) // 2 :])


@of(*(name for name, driver in BY_NAME.items() if "type-not-restored" in driver.twin_of))
def test_nothing_stays_write_combined_after_a_good_driver(shown):
    assert odd_pages(shown) == set(pages_of(shown, RING))
    shown.unload()
    assert odd_pages(shown) == set()


@of("half_wc")
def test_a_ring_of_two_types(shown):
    assert shown.oracle.types_of(shown.region(RING)) == {WB, WC}


@of("wc_well", "type_not_set")
def test_a_ring_of_one_type(shown):
    assert shown.oracle.types_of(shown.region(RING)) == {WC}  # also where the driver asked for another


@of("unaligned_set_memory")
def test_the_whole_page_has_changed(shown):
    first = shown.parameter("va")
    assert first % PAGE == 0
    assert shown.oracle.types_of(Region(first, 64)) == {WC}  # before the address the driver gave
    assert shown.oracle.types_of(Region(first + PAGE, RING - PAGE)) == {WB}


@of("set_memory_on_vmalloc")
def test_a_type_that_the_kernels_book_does_not_know(shown):
    region = shown.region(PAGE)
    assert shown.oracle.types_of(region) == {WC}
    (page,) = pages_of(shown, PAGE)
    assert (
        page != region.address
    )  # RAM that the kernel tracks by page, not by what __pa() made of the address
    assert odd_pages(shown) == {page}


@of("alias_conflict", "alias_well")
def test_a_window_of_another_type(shown):
    wanted = {WB, WC} if shown.driver.rule else {WC}
    assert shown.oracle.types_of(shown.region(PAGE)) == wanted


@of("user_mapping_type", "user_mapping_well")
def test_user_space_sees_another_type(shown):
    assert shown.oracle.types_of(shown.region(PAGE)) == {WC}
    with shown.mapped():
        wanted = {WB, WC} if shown.driver.rule else {WC}
        assert shown.oracle.types_of(shown.region(PAGE)) == wanted
    assert shown.oracle.types_of(shown.region(PAGE)) == {WC}


@of("wrong_mask", "mask_well")
def test_a_device_of_24_bits(shown):
    """The device drops the address lines it does not have, and nobody complains."""
    arrived = shown.oracle.read(shown.region(PAGE), 2048, 64) == FILL
    assert arrived == (shown.parameter("dma") + PAGE <= 1 << 24)
    assert arrived == (not shown.driver.rule)


@of("virt_to_phys", "bus_well")
def test_a_physical_address_behind_an_iommu(shown):
    (page,) = pages_of(shown, PAGE)
    assert page != shown.parameter("dma")
    arrived = shown.oracle.read(shown.region(PAGE), 2048, 64) == FILL
    assert arrived == (not shown.driver.rule)
    assert ("DMAR: [DMA Read" in shown.log()) == bool(shown.driver.rule)


@of("wrong_permission", "dma_after_unmap", "permission_well")
def test_a_write_the_iommu_has_to_stop(shown):
    arrived = shown.oracle.read(shown.region(PAGE), 0, 64) == bytes(64)
    assert arrived == (not shown.driver.rule)
    assert ("DMAR: [DMA Write" in shown.log()) == bool(shown.driver.rule)


@of("unreachable", "permission_well")
def test_a_read_where_nothing_is_mapped(shown):
    assert ("DMAR: [DMA Read" in shown.log()) == bool(shown.driver.rule)


@of("dma_from_stack", "dma_from_vmalloc", "vmalloc_well")
def test_the_kernel_refuses_memory_without_a_bus_address(shown):
    """Inline, before anything is called that could be probed: the warning is in the driver's own code."""
    said = shown.log()
    assert ("rejecting DMA map of vmalloc memory" in said) == bool(shown.driver.rule)
    if shown.driver.rule:
        name = shown.driver.name
        rip = re.search(rf"RIP: 0010:(\w+)\+0x([0-9a-f]+)/0x([0-9a-f]+) \[{name}\]", said)
        assert rip is not None
        table = LineTable.of(shown.build.ko_debug)
        place = (rip[1], int(rip[2], 16))
        chain = table.lookup(*place, module=name, size=int(rip[3], 16), exact=True)
        assert (f"{name}.c", shown.driver.line) in [
            (step.file.rpartition("/")[2], step.line) for step in chain
        ]
