# SPDX-License-Identifier: MIT
"""The ledger in a real guest: what iobmd.ko allocates and frees is in it, exactly, and loss is counted."""

import itertools

import numpy as np
import pytest

from harness.audit import Book, Direction, Flag, Kind, Ledger
from harness.iokit import kIODirectionInOut, kIOMapWriteCombineCache, kIOMemoryPhysicallyContiguous

PAGE = 4096
COUNT = 500
TINY = 64


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
        assert all(one.flags == Flag(0) and len(one.stack) == 6 for one in entries)
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
