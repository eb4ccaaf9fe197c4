# SPDX-License-Identifier: MIT
"""Swap areas, counters and fragments: what the host works out for the guest."""

import struct
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.contract import pressure
from harness.contract.case import MIB, PAGE, Bench, Case
from harness.contract.facts import MachineFacts


@pytest.fixture
def case(load_fakes: ModuleType) -> Any:
    guest: Any = load_fakes.FakeGuest()
    iokit: Any = load_fakes.FakeIOKit()
    return Case(Bench(guest, iokit, load_fakes.FakeOracle(iokit), MachineFacts.of(guest.machine)), seed="x")


def test_a_swap_header_is_the_kernels() -> None:
    header = pressure._swap_header(4096)
    assert len(header) == PAGE
    assert header[-10:] == b"SWAPSPACE2"
    assert struct.unpack_from("<III", header, 1024) == (1, 4095, 0)


def test_the_kernels_counters_are_read_by_name(case: Case) -> None:
    files: Any = case.guest
    files.files["/proc/vmstat"] = b"nr_free_pages 5\npswpout 12\ncompact_stall 3\nxpswpout 9\n"
    assert pressure.counts(case) == {"pswpout": 12, "compact_stall": 3}


class Blocks(Case):
    """A case whose memory is 8 blocks of 2 MiB, found in an order that is not that of their addresses."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, "x")
        self.freed: list[int] = []
        self.numbers = [5, 0, 7, 2, 3, 6, 1, 4]

    def block(self, number: int) -> Any:
        return SimpleNamespace(address=number * 2 * MIB, release=lambda: self.freed.append(number))


def test_each_pair_of_blocks_keeps_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks(case._bench)
    left: list[int] = []
    monkeypatch.setattr(pressure, "fill", lambda _, leave: left.append(leave) or [])
    # Block 6 is somebody else's: its neighbour stays, or the two would be one free piece of 4 MiB some day.
    made = [blocks.block(number) for number in blocks.numbers if number != 6]
    monkeypatch.setattr(pressure, "all_blocks", lambda *_: (made, None))
    monkeypatch.setattr("harness.contract.look.Look.at", lambda _, address: address)
    kept = pressure.fragment(blocks, 2 * MIB)
    assert sorted(blocks.freed) == [1, 3, 5]
    assert sorted(one.address // (2 * MIB) for one in kept) == [0, 2, 4, 7]
    assert left == [256 * MIB + 2 * 500 * 1024]  # what the kernel keeps for itself comes on top
