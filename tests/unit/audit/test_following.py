# SPDX-License-Identifier: MIT
"""Reading a ledger on the side, and counting what it holds."""

from __future__ import annotations

import threading

import pytest

from harness.audit import Direction, Entry, Event, Kind, Piece
from harness.audit.follow import Follower
from harness.audit.listing import Listing, alive, key_of


class Ring:
    """A ledger that gives what was put into it."""

    def __init__(self):
        self.batches, self.read, self.fails = [], threading.Event(), None

    def drain(self):
        if self.fails is not None:
            raise self.fails
        given, self.batches = self.batches, []
        self.read.set()
        return [event for batch in given for event in batch]


def event(number, kind=Kind.ALLOC, **fields):
    given = {"size": 4096, "bus": 0x1000 * number, "device": 1, "name": "ring.0", "stack": (1, 2)} | fields
    return Event(number=number, kind=kind, **given)


def test_it_reads_by_itself_and_in_order():
    ring, taken, all_there = Ring(), [], threading.Event()

    def take(events):
        taken.extend(one.number for one in events)
        if len(taken) == 3:
            all_there.set()

    with Follower(ring, take) as follower:
        ring.batches = [[event(1)], [event(2), event(3)]]
        assert all_there.wait(10)
        ring.batches = [[event(4)]]
        follower.catch_up()
        assert taken == [1, 2, 3, 4]
    assert not any(thread.name == "ledger" for thread in threading.enumerate())


def test_an_error_comes_to_whoever_asks_next():
    ring = Ring()
    with Follower(ring, lambda _: None) as follower:
        ring.fails = ValueError("the ring is damaged")
        follower._thread.join(10)
        ring.fails = None
        with pytest.raises(ValueError, match="damaged"):
            follower.catch_up()


def test_what_is_made_at_one_place_is_one_group():
    listing = Listing()
    listing.replay(
        [
            event(1),
            event(2, size=100),
            event(3, error=-12),
            event(4, Kind.FREE),
            event(5, stack=(9,)),
            event(6, Kind.MAP_PAGE, direction=Direction.TO_DEVICE),
            event(7, device=2, name="other"),
        ]
    )
    groups = listing.of(lambda one: one.name == "ring.0")
    assert [group.first.number for group in groups] == [1, 5, 6]
    first = groups[0]
    assert (first.calls, first.failed, first.smallest, first.largest) == (3, 1, 100, 4096)
    assert (first.lowest, first.highest) == (0x1000, 0x2063)


def test_a_group_whose_first_call_failed_knows_its_smallest():
    listing = Listing()
    listing.replay([event(1, error=-12), event(2, size=64)])
    (group,) = listing.of(lambda _: True)
    assert (group.calls, group.failed, group.smallest, group.lowest) == (2, 1, 64, 0x2000)


def test_a_list_reaches_as_far_as_its_pieces():
    listing = Listing()
    pieces = (Piece(0x5000, 10, 0x9000, 10), Piece(0x7000, 10, 0x3000, 10))
    listing.replay([event(1, Kind.MAP_SG, pieces=pieces)])
    (group,) = listing.of(lambda _: True)
    assert (group.lowest, group.highest) == (0x3000, 0x9009)


def test_a_block_is_as_large_as_its_pool_says():
    listing = Listing()
    listing.replay([event(1, Kind.POOL_CREATE, size=256, name="blocks", owner=7)])
    listing.replay([event(2, Kind.POOL_ALLOC, size=0, name="", owner=7, bus=0x4000)])
    pool, block = listing.of(lambda _: True)
    assert (pool.first.name, pool.highest) == ("blocks", 0)  # what it says of an address is its alignment
    assert (block.largest, block.first.name, block.highest) == (256, "blocks", 0x40FF)


def test_what_is_alive_is_counted_by_group():
    one, two = event(1), event(2)
    assert alive([Entry(one), Entry(two), Entry(event(3, stack=(9,)))])[key_of(one)] == 2
