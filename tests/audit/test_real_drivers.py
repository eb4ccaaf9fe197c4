# SPDX-License-Identifier: MIT
"""Drivers that nobody here wrote, unchanged and busy: all that they hand to the DMA API is listed and well.

The kernels are those for real machines: the cloud ones have no e1000e, and nvme built in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from harness.audit import AuditResult, AuditRun, Kind
from harness.audit import traffic as work
from harness.auditing import Equipment, audit_guest, prepared
from harness.images import GuestImage, SilentProgress
from harness.link import Guest
from harness.options import MachineOptions, prepare

PROGRESS = SilentProgress()
MACHINES = [
    pytest.param((kernel, unit), id=f"{kernel}{'-iommu' if unit else ''}")
    for kernel in ("debian-6.1", "debian-6.12")
    for unit in ((), ("intel-iommu,intremap=off",))
]


@dataclass(frozen=True)
class Real:
    """A driver of the kernel's.

    Attributes:
        device: the word for what it drives.
        module: its module.
        coherent: functions that make its coherent buffers, or pools.
        received: functions that map memory its device writes.
        sent: functions that map memory its device reads.
        standing: some of its mappings live as long as the card is up.
    """

    device: str
    module: str
    coherent: frozenset[str]
    received: frozenset[str]
    sent: frozenset[str]
    standing: bool = False


def real(
    device: str, module: str, coherent: str, received: str, sent: str, *, standing: bool = False
) -> Real:
    named = (frozenset(names.split()) for names in (coherent, received, sent))
    return Real(device, module, *named, standing)


DRIVERS = [
    real(
        "e1000e",
        "e1000e",
        "e1000e_setup_tx_resources e1000e_setup_rx_resources",
        "e1000_alloc_rx_buffers",
        "e1000_xmit_frame",
        standing=True,
    ),
    real(
        "e1000",
        "e1000",
        "e1000_setup_all_tx_resources e1000_setup_all_rx_resources",
        "e1000_alloc_rx_buffers",
        "e1000_xmit_frame",
        standing=True,
    ),
    real("virtio-net", "virtio_net", "virtnet_find_vqs", "try_fill_recv", "start_xmit", standing=True),
    real("nvme", "nvme", "nvme_alloc_queue", "nvme_prep_rq", "nvme_prep_rq"),
    real("ahci", "ahci", "ahci_init_one", "ata_qc_issue", "ata_qc_issue"),
    real("virtio-blk", "virtio_blk", "init_vq", "virtblk_add_req", "virtblk_add_req"),
]


KNOWN = {("misaligned", "virtnet_send_command"), ("misaligned", "virtnet_send_command_reply")}
"""What is wrong with them indeed: virtio_net maps the byte that the device answers with two bytes behind the
header that the device reads (drivers/net/virtio_net.c: struct control_buf). Both are in one cache line, which
Documentation/core-api/dma-api.rst, Part Id, forbids; x86 does not mind."""


@dataclass
class Place:
    """A guest with disks and networks of some kinds."""

    guest: Guest
    image: GuestImage
    iommu: bool


def booted(kernel: str, words: tuple[str, ...]) -> Iterator[Place]:
    options = replace(MachineOptions(kernel=kernel), snapshot=False)
    image = prepare(options, PROGRESS)
    with audit_guest(options, image, Equipment(words), PROGRESS) as guest:
        yield Place(guest, image, any(word.startswith("intel-iommu") for word in words))


@pytest.fixture(scope="module", params=MACHINES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kernel, unit = request.param
    yield from booted(kernel, (*(one.device for one in DRIVERS), *unit))


@dataclass
class Seen:
    """What was seen of a driver at work."""

    result: AuditResult
    kinds: Counter[Kind]
    coherent: int
    standing: int
    unseen: str


def audited(place: Place, driver: Real) -> Seen:
    subject, ledger = prepared(driver.module, place.image, Equipment((driver.device,)), PROGRESS)
    run = AuditRun(place.guest, subject, ledger)
    kinds: Counter[Kind] = Counter()
    alive: list[tuple[int, int]] = []
    replay = run.book.replay

    def counted(events):
        kinds.update(event.kind for event in events)
        replay(events)

    def meanwhile() -> None:
        run.look()
        alive.append((len(run.buffers), len(run.mappings)))
        check_addresses(run, place)

    run.book.replay = counted
    with run:
        (done,) = work.exercise(place.guest, meanwhile=meanwhile)
    run.exercised = str(done)
    return Seen(run.result(), kinds, *alive[0], run.observed.unseen)


def check_addresses(run: AuditRun, place: Place) -> None:
    """Behind an IOMMU a bus address is none of memory's; without one it is nothing else."""
    for buffer in (*run.buffers, *run.mappings):
        for piece in buffer.claimed:
            if piece.bus:
                assert (piece.bus != piece.physical) == place.iommu, buffer


def unnamed(seen: Seen, wanted: frozenset[str], what: str, direction: str = "") -> set[str]:
    """Functions that nothing of that kind is said to come from, not even perhaps."""
    sites = [
        one.site for one in seen.result.judged if what in one.what and one.direction.startswith(direction)
    ]
    return {name for name in wanted if not any(name in site for site in sites)}


def check(seen: Seen, driver: Real) -> None:
    result = seen.result
    told = [one for one in result.findings if (one.rule.id, one.site.function) not in KNOWN]
    assert [str(one) for one in told] == []
    assert (result.complaints, result.lost, result.missed) == ((), 0, 0)
    assert result.bound
    assert all(one.alive == 0 for one in result.judged)
    assert {rule for one in result.judged for rule in one.rules} <= {rule for rule, _ in KNOWN}
    assert unnamed(seen, driver.coherent, "coherent buffer") == set()
    assert unnamed(seen, driver.received, "mapping", "FROM_DEVICE") == set()
    assert unnamed(seen, driver.sent, "mapping", "TO_DEVICE") == set()
    assert seen.coherent > 0
    assert seen.standing > 0 or not driver.standing


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.device)
def test_a_driver_of_the_kernels_is_well_at_work(place: Place, driver: Real) -> None:
    seen = audited(place, driver)
    check(seen, driver)
    assert seen.unseen == ""
    assert seen.result.looks >= 3
    if driver.module == "e1000":
        # It copies small packets, and gives the buffer back by a sync: since 6.10 those are skipped inline.
        assert seen.kinds[Kind.SYNC_FOR_CPU] > 0
    assert any("io_queue_depth=2" in one.what for one in seen.result.blind) == (driver.module == "nvme")
    if driver.module == "nvme":
        assert "pool" in {one.what for one in seen.result.judged}
