# SPDX-License-Identifier: MIT
"""The ledger in a real guest: what iobmd.ko allocates and frees is in it, exactly, and loss is counted."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from harness.audit import Book, Direction, Flag, Kind, Ledger, build_ledger
from harness.images import SilentProgress, build_module
from harness.iokit import kIODirectionInOut, kIOMapWriteCombineCache, kIOMemoryPhysicallyContiguous

PAGE = 4096
COUNT = 500
TINY = 64


@pytest.fixture(scope="module")
def ledger_build(guest_image):
    return build_ledger(guest_image.kernel, SilentProgress())


@pytest.fixture
def sizes():
    return np.random.default_rng(6).integers(1, 17, COUNT) * PAGE - 7


def allocate(iobmd, sizes, flags=0):
    options = kIODirectionInOut | kIOMemoryPhysicallyContiguous | flags
    buffers = iobmd.batch(COUNT).withOptions(options, sizes)
    assert buffers.made.all()
    return buffers


def test_five_hundred_buffers_are_found_exactly(guest, iobmd, ledger_build, sizes):
    book = Book()
    with Ledger(guest, ledger_build) as ledger:
        book.replay(ledger.drain())
        buffers = allocate(iobmd, sizes)
        made = ledger.drain()
        book.replay(made)
        segments = buffers.getPhysicalSegment(0)["address"].tolist()
        expected = sorted(zip(buffers.storage.tolist(), segments, buffers.address.tolist(), strict=True))
        entries = [entry.made for entry in book.buffers if entry.module == "iobmd"]
        assert sorted((one.size, one.physical, one.virtual) for one in entries) == expected
        # Outside every IOMMU group a bus address is a physical one.
        assert all(one.bus == one.physical for one in entries)
        assert {entry.direction for entry in book.buffers} == {Direction.BIDIRECTIONAL}
        assert all(one.kind is Kind.ALLOC and not one.error and one.name.startswith("iobmd.") for one in made)
        assert all(one.flags == Flag(0) and len(one.stack) == 10 for one in entries)
        numbers = [event.number for event in made]
        assert numbers == list(range(numbers[0], numbers[0] + COUNT))
        assert all(a.time <= b.time for a, b in itertools.pairwise(made))
        buffers.release()
        freed = ledger.drain()
        book.replay(freed)
        assert [event.kind for event in freed] == [Kind.FREE] * COUNT
        assert len(book.buffers) == 0
        assert (ledger.lost, ledger.missed, book.violations) == (0, 0, [])


def test_memory_types_are_given_and_taken_back(guest, iobmd, ledger_build, sizes):
    book = Book()
    with Ledger(guest, ledger_build) as ledger:
        buffers = allocate(iobmd, sizes, kIOMapWriteCombineCache)
        book.replay(ledger.drain())
        assert len(book.types) == sum(buffers.storage.tolist()) // PAGE
        buffers.release()
        book.replay(ledger.drain())
        assert (book.types, book.violations, ledger.lost) == ({}, [], 0)


def test_loss_is_counted_exactly(guest, iobmd, ledger_build, sizes):
    with Ledger(guest, ledger_build, records=TINY) as ledger:
        ledger.drain()
        allocate(iobmd, sizes).release()
        assert ledger.lost == 2 * COUNT - TINY
        events = ledger.drain()
        assert [event.kind for event in events] == [Kind.ALLOC] * TINY
        # There is room again, and nothing is counted twice.
        allocate(iobmd, sizes[:1].repeat(COUNT)).release()
        assert len(ledger.drain()) == TINY
        assert ledger.lost == 2 * (2 * COUNT - TINY)


def test_a_small_ring_read_in_time_loses_nothing(guest, iobmd, ledger_build):
    with Ledger(guest, ledger_build, records=TINY) as ledger:
        ledger.drain()
        book = Book()
        for size in range(1, COUNT // 5):
            iobmd.withOptions(kIODirectionInOut, size * 16, 1).release()
            if size % 20 == 0:
                book.replay(ledger.drain())
        book.replay(ledger.drain())
        assert (ledger.lost, len(book.buffers), book.violations) == (0, 0, [])


def test_what_this_kernel_has_is_watched(guest, ledger_build):
    with Ledger(guest, ledger_build) as ledger:
        armed = ledger.info()["armed"]
    assert armed == sum(1 << kind for kind in Kind if kind > Kind.PIECE)


def test_streaming_mappings_and_pools_are_seen(guest, guest_image, ledger_build):
    source = Path(__file__).with_name("streaming")
    module = build_module(guest_image.kernel, source, SilentProgress(), name="streaming")
    book = Book()
    with Ledger(guest, ledger_build) as ledger:
        guest.load_module(module.ko.read_bytes())
        guest.unload_module("streaming")
        events = ledger.drain()
        book.replay(events)
        assert (ledger.lost, ledger.missed) == (0, 0)
    assert book.violations == []
    assert len(book.mappings) == len(book.blocks) == len(book.pools) == len(book.buffers) == 0
    ours = [event for event in events if event.module == "streaming" and event.kind > Kind.PIECE]
    assert [event.kind for event in ours] == [
        *(Kind.SET_MASK, Kind.SET_COHERENT_MASK),
        *(Kind.MAP_PAGE, Kind.SYNC_FOR_CPU, Kind.SYNC_FOR_DEVICE, Kind.UNMAP_PAGE),
        *(Kind.MAP_SG, Kind.SYNC_SG_FOR_CPU, Kind.SYNC_SG_FOR_DEVICE, Kind.UNMAP_SG),
        *(Kind.POOL_CREATE, Kind.ALLOC, Kind.POOL_ALLOC, Kind.POOL_FREE, Kind.POOL_DESTROY, Kind.FREE),
    ]
    called = {event.kind: event for event in ours}
    mapped = called[Kind.MAP_PAGE]
    assert (mapped.size, mapped.direction, mapped.bus) == (1000, Direction.FROM_DEVICE, mapped.physical)
    assert (called[Kind.SYNC_FOR_CPU].bus, called[Kind.SYNC_FOR_CPU].size) == (mapped.bus + 100, 50)
    listed = called[Kind.MAP_SG]
    assert [(piece.length, piece.bus - mapped.bus) for piece in listed.pieces] == [(100, 0), (200, 2048)]
    assert called[Kind.POOL_ALLOC].owner == called[Kind.POOL_CREATE].owner
    assert called[Kind.POOL_CREATE].name == "blocks"
    assert {event.flags for event in ours} == {Flag(0)}
