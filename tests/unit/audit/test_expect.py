# SPDX-License-Identifier: MIT
"""What is expected of a buffer, against a machine that shows what it is told to."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from harness.audit import Buffer, Direction, Entry, Event, Kind, NotAsExpected, Piece, expect
from harness.errors import BadInput
from harness.oracle import Leaf, MemoryType, PhysRange, Unmapped

VA, PA, BUS, SIZE = 0xFFFF_8880_0123_4000, 0x123_4000, 0x8000, 8192


def leaf(kind, va=VA, pa=PA):
    return Leaf(va, pa, 4096, 1, pa | 0x63, 0, kind, MemoryType.WB, kind, False, True)


@dataclass
class Machine:
    """An oracle and its view in one."""

    parts: tuple[PhysRange, ...] = (PhysRange(PA, SIZE),)
    leaves: tuple[Leaf, ...] = (leaf(MemoryType.WC),)
    memory: bytes = bytes(SIZE)
    asked: list[object] = field(default_factory=list)

    @contextmanager
    def frozen(self):
        yield self

    def physical_of(self, va, length):
        self.asked.append((va, length))
        if not self.parts:
            raise Unmapped(va, 1, 0)
        return self.parts

    def aliases(self, ranges):
        self.asked.append(tuple(ranges))
        return self.leaves

    def read(self, pa, n):
        return self.memory[pa - PA : pa - PA + n]


def buffer(machine, kind=Kind.ALLOC, **fields):
    given = {"virtual": VA, "physical": PA, "bus": BUS, "size": SIZE, "name": "ring.0"} | fields
    made = Event(number=3, kind=kind, **given)
    return Buffer(Entry(made), machine, lambda event: f"ring.c:{event.number}")


def test_a_chain_of_what_is_so_is_one_look():
    machine = Machine()
    chain = expect(buffer(machine)).below(16).aligned(4096).type("WC").contiguous()
    chain.direction("BIDIRECTIONAL")
    assert machine.asked == [(VA, SIZE), (PhysRange(PA, SIZE),)]
    chain.holds(bytes(16)).zeroed()


@pytest.mark.parametrize(
    ("wrong", "expected", "observed"),
    [
        (lambda one: one.below(15), "2^15", "0x8000..0x9fff"),
        (lambda one: one.aligned(0x10000), "a bus address that 0x10000 divides", "0x8000"),
        (lambda one: one.aligned(0x8000), "a physical address that 0x8000 divides", "0x1234000"),
        (lambda one: one.type("WB"), "memory type WB", "WC"),
        (lambda one: one.type("WB", "WC"), "memory type WC and WB", "observed: WC"),
        (lambda one: one.direction("TO_DEVICE"), "TO_DEVICE", "BIDIRECTIONAL"),
        (lambda one: one.holds(b"\0\1", offset=4), "01 at offset 0x5", "00"),
    ],
)
def test_what_is_not_so_is_told_with_evidence(wrong, expected, observed):
    with pytest.raises(NotAsExpected) as caught:
        wrong(expect(buffer(Machine())))
    told = str(caught.value)
    assert "coherent buffer of 8192 bytes at bus address 0x8000 of ring.0" in told
    assert expected in told
    assert observed in told
    for evidence in ("made by:  ring.c:3", "0x1234000..0x1235fff, by its page tables", "1 leaf of 4 KiB"):
        assert evidence in told


def test_the_last_byte_counts():
    expect(buffer(Machine(), bus=0x6000)).below(15)
    with pytest.raises(NotAsExpected):
        expect(buffer(Machine(), bus=0x6001)).below(15)


def test_every_mapping_counts():
    two = Machine(leaves=(leaf(MemoryType.WC), leaf(MemoryType.WB, va=0xFFFF_C900_0000_0000)))
    with pytest.raises(NotAsExpected, match="observed: WC and WB"):
        expect(buffer(two)).type("WC")
    expect(buffer(two)).type("WC", MemoryType.WB)


def test_pieces_are_not_contiguous():
    pieces = Machine(parts=(PhysRange(PA, 4096), PhysRange(PA + 8192, 4096)))
    with pytest.raises(NotAsExpected, match="2 pieces"):
        expect(buffer(pieces)).contiguous()


def test_a_list_is_looked_for_where_the_ledger_says():
    runs = (Piece(PA, 100, BUS, 100), Piece(PA + 8192, 200, BUS + 100, 200))
    machine = Machine()
    listed = buffer(machine, Kind.MAP_SG, pieces=runs, direction=Direction.TO_DEVICE)
    assert listed.bus_ranges == ((BUS, 100), (BUS + 100, 200))
    sight = listed.look()
    assert (sight.walked, sight.physical) == (False, (PhysRange(PA, 100), PhysRange(PA + 8192, 200)))
    expect(listed).direction(Direction.TO_DEVICE)


def test_memory_without_a_kernel_address_is_looked_for_where_the_ledger_says():
    sight = buffer(Machine(parts=())).look()  # DMA_ATTR_NO_KERNEL_MAPPING: what looks like an address is none
    assert (sight.walked, sight.physical) == (False, (PhysRange(PA, SIZE),))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda one: one.below(0),
        lambda one: one.below(65),
        lambda one: one.aligned(0),
        lambda one: one.type(),
        lambda one: one.type("write-combined"),
        lambda one: one.direction("UP"),
        lambda one: one.holds(b"\0", offset=SIZE),
        lambda one: one.holds(b"\0", offset=-1),
    ],
)
def test_what_makes_no_sense_is_no_assertion(wrong):
    with pytest.raises(BadInput):
        wrong(expect(buffer(Machine())))


def test_a_buffer_says_what_it_is():
    one = buffer(Machine())
    assert repr(one) == "<coherent buffer of 8192 bytes at bus address 0x8000 of ring.0>"
    assert (one.address, one.storage, one.alive, one.site) == (VA, SIZE, True, "ring.c:3")
    one.entry.ended = one.made
    assert not one.alive
