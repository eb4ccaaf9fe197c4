# SPDX-License-Identifier: MIT
"""The kernel's log in guest memory: a ring built here as kernel/printk/printk_ringbuffer.c lays it out."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import numpy as np
import pytest

from harness.errors import BadInput
from harness.forensics.kernel_log import KernelLog, numbers

MAP = 0xFFFF_FFFF_8000_0000
BASE = 0x10_0000  # phys_base
NOTE, POINTER, RING, DESCS, INFOS, TEXT = 0x1000, 0x8000, 0x9000, 0xA000, 0xB000, 0x2_0F00  # TEXT spans pages
BITS, SIZE_BITS = 3, 8
COMMITTED, FINALIZED, REUSABLE = 1, 2, 3

FACTS = f"""\
OSRELEASE=6.1.0
SYMBOL(prb)={MAP + POINTER:x}
SYMBOL(swapper_pg_dir)={MAP + 0x3000:x}
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
NUMBER(pgtable_l5_enabled)=0
NUMBER(phys_base)={BASE}
KERNELOFFSET=1f000000
CRASHTIME=never
"""


class Ram:
    """What KernelLog reads; anything outside is no RAM."""

    ranges = ((0, 1 << 21),)

    def __init__(self) -> None:
        self.data = bytearray(1 << 21)

    def read(self, gpa: int, length: int) -> bytes:
        if not 0 <= gpa <= len(self.data) - length:
            raise BadInput("no RAM")
        return bytes(self.data[gpa : gpa + length])

    def array(self, gpa: int, length: int) -> np.ndarray:
        return np.frombuffer(self.data, np.uint8, length, gpa)

    def put(self, va: int, data: bytes) -> None:
        at = va + BASE
        self.data[at : at + len(data)] = data


@pytest.fixture
def ram() -> Ram:
    ram = Ram()
    note = FACTS.encode()
    ram.data[NOTE : NOTE + len(note)] = note
    ram.put(POINTER, struct.pack("<Q", MAP + RING))
    ram.put(RING + 48, struct.pack("<IIQ", SIZE_BITS, 0, MAP + TEXT))
    return ram


def fill(ram: Ram, first: int, texts: list[str | None], state: int = FINALIZED) -> None:
    """Write records from id *first* on; None leaves one that is only reserved."""
    last = first + len(texts) - 1
    ram.put(RING, struct.pack("<IIQQQQ", BITS, 0, MAP + DESCS, MAP + INFOS, last | FINALIZED << 62, first))
    position = first * 40
    for number, text in enumerate(texts, first):
        data = (text or "").encode()
        room = -(-(8 + len(data)) // 8) * 8
        after = position + room
        wraps = position >> SIZE_BITS != (after - 1) >> SIZE_BITS
        if wraps:  # the block starts at the beginning of the buffer, its lpos stays
            after = (after >> SIZE_BITS << SIZE_BITS) + room
        index = number & ((1 << BITS) - 1)
        kept = (state if text is not None else 0) << 62 | number
        ram.put(DESCS + index * 24, struct.pack("<QQQ", kept, position, after))
        ram.put(INFOS + index * 88, struct.pack("<QQH", number, number * 10**9, len(data)))
        start = 0 if wraps else position & ((1 << SIZE_BITS) - 1)
        ram.put(TEXT + start, struct.pack("<Q", number) + data)
        position = after


def log_of(ram: Ram, note: int | None = NOTE) -> KernelLog | None:
    return KernelLog.of(SimpleNamespace(machine=SimpleNamespace(ram=ram), vitals=SimpleNamespace(note=note)))


def test_records_in_order(ram):
    fill(ram, 1, ["one", "two", "three"])
    assert log_of(ram).lines() == ("[    1.000000] one", "[    2.000000] two", "[    3.000000] three")
    assert log_of(ram).lines(2) == ("[    2.000000] two", "[    3.000000] three")
    assert len(log_of(ram).said("o")) == 2


@pytest.mark.parametrize("first", [5, 6, 7, 60])
def test_round_the_ring(ram, first):
    """Descriptors wrap after 8, text after 256 bytes; a block is never split."""
    texts = [f"number {number} is here" for number in range(first, first + 8)]
    fill(ram, first, texts)
    assert [line.partition("] ")[2] for line in log_of(ram).lines()] == texts


@pytest.mark.parametrize("state", [COMMITTED, FINALIZED])
def test_what_counts_as_said(ram, state):
    fill(ram, 1, ["one", None, "three"], state)
    assert [line[-5:] for line in log_of(ram).lines()] == ["] one", "three"]


def test_what_is_being_overwritten_is_left_out(ram):
    fill(ram, 1, ["one", "two"], REUSABLE)
    assert log_of(ram).lines() == ()


def test_a_descriptor_of_another_record_is_left_out(ram):
    """It was used again between two looks at the ring."""
    fill(ram, 1, ["one", "two"])
    ram.put(DESCS + 24, struct.pack("<Q", FINALIZED << 62 | 9))
    assert log_of(ram).lines() == ("[    2.000000] two",)


def test_where_there_is_no_log(ram):
    assert log_of(ram, None) is None
    assert log_of(ram, 1 << 40) is None
    ram.data[NOTE : NOTE + 4096] = bytes(4096)
    assert log_of(ram) is None


@pytest.mark.parametrize(
    ("place", "junk"),
    [
        (POINTER, bytes(8)),
        (POINTER, b"\xff" * 8),
        (RING, b"\xff" * 48),
        (RING + 48, b"\xff" * 16),
        (RING + 8, struct.pack("<Q", 0x1234)),
    ],
)
def test_a_log_that_makes_no_sense_is_none(ram, place, junk):
    """The guest may have written anywhere."""
    fill(ram, 1, ["one", "two"])
    ram.put(place, junk)
    assert all(isinstance(line, str) for line in log_of(ram).lines())


def test_facts():
    facts = numbers(FACTS.encode())
    assert facts["prb"] == MAP + POINTER
    assert facts["KERNELOFFSET"] == 0x1F000000
    assert facts["phys_base"] == BASE
    assert "CRASHTIME" not in facts
    assert "OSRELEASE" not in facts
