# SPDX-License-Identifier: MIT
"""Where calls came from, in real guests: in a module with debug information, and in the kernel's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from audit_stage import KERNELS, Stage

from harness.audit import Event, Kind, Ledger, Site, Sites, Violation, build_ledger, findings
from harness.images import SilentProgress, build_module
from harness.images.modules import ModuleTree, canonical, module_bytes
from harness.link import Guest, GuestOptions

CALLS = Path(__file__).with_name("calls")
MARKS = {
    int(found[1]): f"{source.name}:{number}"
    for source in CALLS.glob("calls.[ch]")
    for number, line in enumerate(source.read_text().splitlines(), 1)
    if (found := re.search(r"/\* HERE: (\d+) \*/", line))
}
# With iommu_platform, queues and buffers go through the DMA API.
RNG = "virtio-rng-pci,disable-legacy=on,iommu_platform=on"
ENTROPY = "/sys/class/misc/hw_random/rng_available"


@dataclass
class Seen:
    """What a ledger has seen of two drivers that came and went."""

    events: list[Event]
    sites: Sites

    def site(self, kind: Kind, size: int) -> Site:
        (event,) = (one for one in self.events if (one.kind, one.size, one.name) == (kind, size, "calls"))
        return self.sites.of(event)


@pytest.fixture(scope="module", params=KERNELS)
def seen(request: pytest.FixtureRequest) -> Seen:
    """Two drivers, loaded and unloaded: one of ours, and one of the kernel's package on top of others."""
    image = Stage().image(request.param)
    build = build_module(image.kernel, CALLS, SilentProgress(), name="calls")
    tree = ModuleTree(image.kernel.modules)
    ledger = build_ledger(image.kernel, SilentProgress())
    events: list[Event] = []
    with Guest(image, GuestOptions(devices=(RNG,)), None) as guest:
        sites = Sites.of_guest(guest, {"calls": build.ko_debug}, {"calls": CALLS})
        there = guest.read_file("/proc/modules").decode()
        with Ledger(guest, ledger, frames=10) as led:  # of virtio_rng, the tenth made the queue
            guest.load_module(build.ko.read_bytes())
            guest.unload_module("calls")
            for path in tree.load_order(["virtio_rng"]):
                if f"{canonical(path.name)} " not in there:
                    guest.load_module(module_bytes(path))
            guest.read_file(ENTROPY)
            guest.unload_module("virtio_rng")
            events = led.drain()
    sites.follow(events)
    return Seen(events, sites)


@pytest.mark.parametrize("size", [101, 102, 107], ids=["inlined", "of-a-header", "of-init"])
def test_a_call_is_found_by_its_line(seen, size):
    site = seen.site(Kind.ALLOC, size)
    assert (site.module, f"{site.file}:{site.line}") == ("calls", MARKS[size])
    assert f"/* HERE: {size} */" in site.text


def test_the_helpers_of_the_kernel_are_looked_through(seen):
    site = seen.site(Kind.ALLOC, 4096)
    assert (f"{site.file}:{site.line}", site.module) == (MARKS[4096], "calls")
    assert site.stack[0].startswith("dma_pool_alloc+0x")
    assert any(frame.startswith("really_probe+0x") for frame in site.stack)


def test_a_call_that_became_a_jump_is_found_by_the_jump(seen):
    site = seen.site(Kind.ALLOC, 103)
    assert f"{site.file}:{site.line}" == MARKS[103]
    assert "last" in (site.function, site.inlined)


@pytest.mark.parametrize("size", [104, 105])
def test_of_two_jumps_nobody_knows_which(seen, size):
    site = seen.site(Kind.ALLOC, size)
    assert (site.module, site.line) == ("calls", 0)
    assert sorted(site.perhaps) == [f"{MARKS[one]} in either" for one in (104, 105)]


def test_what_was_called_by_a_register_may_be_anything(seen):
    site = seen.site(Kind.ALLOC, 106)
    assert (site.module, site.function, site.line) == ("calls", "", 0)
    assert site.perhaps


def test_a_callback_that_ended_in_the_call_is_on_no_stack(seen):
    site = seen.site(Kind.FREE, 100)
    assert (site.module, site.function, site.line) == ("calls", "", 0)
    assert f"{MARKS[100]} in stop" in site.perhaps
    # The module is on the stack all the same: it waits for its driver to be unregistered.
    assert any(frame.startswith("unload+0x") for frame in site.stack)


def test_the_user_of_virtio_ring_is_named(seen):
    """Its code has no debug information, and below it is virtio_ring, a module or built in."""
    mapped = [one for one in seen.events if one.kind is Kind.MAP_PAGE and one.driver == "virtio-pci"]
    sites = {site for one in mapped if (site := seen.sites.of(one)).module == "virtio_rng"}
    assert sites
    for site in sites:
        assert (site.file, site.line) == ("", 0)
        assert re.fullmatch(r"\w+\+0x[0-9a-f]+ \[virtio_rng\]", str(site))
        assert any(frame.startswith("virtqueue_add") for frame in site.stack)
    # The queue is made by virtio_pci, and for virtio_rng.
    made = [one for one in seen.events if one.kind is Kind.ALLOC and one.driver == "virtio-pci"]
    assert made
    assert {seen.sites.of(one).module for one in made} == {"virtio_rng"}


def test_a_finding_in_a_module_without_debug_information(seen):
    mapped = next(one for one in seen.events if one.kind is Kind.MAP_PAGE and one.driver == "virtio-pci")
    (one,) = findings(
        [Violation("unmap-size", mapped, None, "for a test")], seen.sites, modules=["virtio_rng"]
    )
    assert (one.driver, one.module) == ("virtio_rng", "virtio_rng")
    assert "virtqueue_add" in one.render()
