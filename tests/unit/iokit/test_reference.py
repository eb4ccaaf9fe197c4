# SPDX-License-Identifier: MIT
"""The model against the contract's own tables."""

from __future__ import annotations

import pytest

from harness.iokit import IOReturn
from harness.iokit import constants as k
from harness.iokit.reference import Call, Factory, Limits, ReferenceBuffer, Role, Verdict, place

PAGE = 4096
LIMITS = Limits(memory=2 << 30, top=3 << 30)
BIG = Limits(memory=8 << 30, top=9 << 30)
WORD = 1 << 64
INOUT = k.kIODirectionInOut
PAGEABLE = k.kIOMemoryPageable

# mask -> (alignment of the first page, contiguous)
MASKS = {
    0xFFFF_FFFF: (PAGE, False),
    0xFFFF_F000: (PAGE, False),
    0xFFFF_E000: (0x2000, True),
    0xFFFF_0000: (0x10000, True),
    0xFFF0_0000: (0x100000, True),
    0x00FF_FFFF: (PAGE, False),
    0x7FFF_FFFF: (PAGE, False),
    0xF_FFFF_FFFF: (PAGE, False),
    0xFFFF_FFFF_FFFF_F000: (PAGE, False),
}


def masked(mask, capacity=PAGE, limits=BIG):
    return place(Call(Factory.PHYSICAL_MASK, INOUT, capacity, mask=mask), limits)


@pytest.mark.parametrize(("mask", "expected"), MASKS.items(), ids=map(hex, MASKS))
def test_the_worked_table_of_masks(mask, expected):
    placement = masked(mask)
    alignment, contiguous = expected
    assert placement.contiguous is contiguous
    assert placement.address_bits == alignment - 1
    assert placement.page_bits == (alignment - PAGE if alignment > PAGE else 0)
    assert placement.mask == mask | PAGE - 1


def test_masks_that_cannot_be_honoured():
    assert masked(1).verdict is Verdict.NULL
    assert masked(0x8000_0000, limits=LIMITS).verdict is not Verdict.MADE
    assert masked(0xFFFF_FFFF, limits=LIMITS).verdict is Verdict.MADE  # all RAM is below
    assert masked(0xFFFF_FFFF, limits=BIG).verdict is Verdict.EITHER
    assert masked(0).mask is None


REFUSED = {
    "A05": Call(Factory.WITH_OPTIONS, INOUT, 0),
    "A06": Call(Factory.IN_TASK, k.kIODirectionOut | PAGEABLE, WORD // 2, task=Role.NULL),
    "A07": Call(Factory.WITH_OPTIONS, INOUT, WORD - 1, PAGE),
    "A08": Call(Factory.WITH_OPTIONS, INOUT, 2 * PAGE, WORD - 1),
    "A08, A06": Call(Factory.WITH_OPTIONS, k.kIODirectionOut | PAGEABLE, WORD - 1),
    "A09": Call(Factory.IN_TASK, INOUT, PAGE, task=Role.USER),
    "E18": Call(Factory.IN_TASK, INOUT | PAGEABLE | k.kIOMapPrefault, PAGE, task=Role.USER),
    "G09": Call(Factory.COPY, INOUT, PAGE),
    "K02": Call(Factory.CREATE, PAGEABLE, PAGE),
    "2.6": Call(Factory.GUARD_PAGES, INOUT | PAGEABLE, PAGE),
    "2.3": Call(Factory.IN_TASK, INOUT | PAGEABLE, 513 << 20),
    "D01": Call(Factory.WITH_OPTIONS, INOUT | k.kIOMemoryPhysicallyContiguous, 1 << 40),
    "A17": Call(Factory.WITH_OPTIONS, INOUT, 1 << 40),
}


@pytest.mark.parametrize(("clause", "call"), REFUSED.items(), ids=REFUSED)
def test_what_has_to_be_null(clause, call):
    placement = place(call, LIMITS)
    assert (placement.verdict, placement.clause) == (Verdict.NULL, clause[:3])


ALIGNED = {
    "C02": (Call(Factory.WITH_OPTIONS, INOUT, 10, 1), 0),
    "C03": (Call(Factory.WITH_OPTIONS, INOUT, 10, 0), 0),
    "C01": (Call(Factory.WITH_OPTIONS, INOUT, 10, 256), 255),
    "C05": (Call(Factory.WITH_OPTIONS, INOUT, 10, 100), 127),
    "C10": (Call(Factory.WITH_OPTIONS, INOUT | k.kIOMemoryPhysicallyContiguous, 10, 100), 99),
    "C12": (Call(Factory.WITH_OPTIONS, INOUT | k.kIOMemoryKernelUserShared, 16), PAGE - 1),
    "C13": (Call(Factory.WITH_OPTIONS, INOUT | k.kIOMemoryMapperNone, 16), PAGE - 1),
    "C14": (Call(Factory.WITH_OPTIONS, INOUT | PAGEABLE, 16, 65_536), PAGE - 1),
    "D08": (Call(Factory.CAPACITY, INOUT, 8192, contiguous=True), 8191),
    "D08, 100": (Call(Factory.CAPACITY, INOUT, 100, contiguous=True), 99),
    "G06": (Call(Factory.BYTES, INOUT, 5), 7),
    "G06, long": (Call(Factory.BYTES, INOUT, 5000), PAGE - 1),
    "K05": (Call(Factory.CREATE, INOUT, 16, 0), PAGE - 1),
}


@pytest.mark.parametrize(("call", "bits"), ALIGNED.values(), ids=ALIGNED)
def test_alignment(call, bits):
    placement = place(call, LIMITS)
    assert (placement.verdict, placement.address_bits) == (Verdict.MADE, bits)


def test_details_of_placement():
    over = place(Call(Factory.WITH_OPTIONS, INOUT, 5000, 8192), LIMITS)
    assert (over.contiguous, over.page_bits, over.capacity) == (True, 4096, 5000)
    odd = place(Call(Factory.WITH_OPTIONS, INOUT, 5000, 12_288), LIMITS)  # C09
    assert odd.page_bits == 0x2000
    low = place(Call(Factory.WITH_OPTIONS, INOUT | k.kIOMemoryPhysicallyContiguous, 3000), BIG)
    assert low.mask == 0xFFFF_FFFF  # D21
    guarded = place(Call(Factory.GUARD_PAGES, INOUT, 5000), LIMITS)
    assert guarded.capacity == 8192
    unmapped = place(Call(Factory.PHYSICAL_MASK, INOUT, 10, mask=0xFFFF_FFFF, task=Role.NULL), LIMITS)
    assert (unmapped.verdict, unmapped.mapped) == (Verdict.MADE, False)  # A10
    dropped = place(Call(Factory.INIT, INOUT, 10, alignment=64, mask=0xFF_FFFF), LIMITS)
    assert dropped.mask is None  # D11


@pytest.mark.parametrize(
    ("mode", "name"),
    [(0, "WB"), (1, "UC_MINUS"), (2, "WT"), (3, "WB"), (4, "WC"), (8, "WB"), (9, "UC_MINUS")],
)
def test_types(mode, name):
    call = Call(Factory.WITH_OPTIONS, INOUT | mode << 8, PAGE)
    assert place(call, LIMITS).memory_type == name
    without = Limits(memory=1 << 30, top=1 << 30, types=frozenset({"WB", "WC", "UC_MINUS"}))
    assert (place(call, without).verdict is Verdict.NULL) == (name == "WT")


def buffer(options=INOUT, capacity=1000, **more):
    return ReferenceBuffer(place(Call(Factory.IN_TASK, options, capacity, **more), LIMITS))


def test_lengths_and_append():
    one = buffer()
    assert one.appendBytes(b"full already")
    assert one.length == 1000
    one.setLength(995)
    one.appendBytes(b"1234567")
    assert (one.length, bytes(one.contents[995:])) == (1000, b"12345")
    one.setLength(1001)
    assert one.length == 1000
    one.setLength(0)
    assert one.readBytes(0, 1) == {b""}
    assert one.getBytesNoCopy(0x1000, 0, 0) == 0


def test_direction_and_access():
    one = buffer(k.kIODirectionOut)
    assert one.writeBytes(0, b"x", 1) == 0
    assert one.prepare(k.kIODirectionIn) is IOReturn.kIOReturnNotWritable
    one.setDirection(k.kIODirectionIn)
    assert one.prepare(k.kIODirectionNone) is IOReturn.kIOReturnSuccess
    assert one.writeBytes(0, b"x", 1) == 1


def test_wiring_is_counted():
    one = buffer(INOUT | PAGEABLE)
    assert one.prepared == 0
    one.prepare(0)
    one.prepare(0)
    one.complete()
    assert one.prepared == 1
    one.complete()
    assert one.complete() is IOReturn.kIOReturnSuccess
    assert one.prepared == 0
    assert buffer().prepared == 1


def test_purgeable_life():
    one = buffer(INOUT | PAGEABLE | k.kIOMemoryPurgeable)
    one.writeBytes(0, b"precious", 8)
    assert one.purge_answers(k.kIOMemoryPurgeableVolatile) == {(0, 2)}
    one.purge(k.kIOMemoryPurgeableVolatile, 2)
    assert one.readBytes(0, 8) == {b"precious", bytes(8)}
    assert one.purge_answers(k.kIOMemoryPurgeableNonVolatile) == {(0, 3), (0, 4)}
    one.purge(k.kIOMemoryPurgeableNonVolatile, 3)
    assert one.readBytes(0, 8) == {b"precious"}
    one.purge(k.kIOMemoryPurgeableEmpty, 2)
    one.purge(k.kIOMemoryPurgeableVolatile, 4)
    assert one.state == k.kIOMemoryPurgeableEmpty  # E12
    one.purge(k.kIOMemoryPurgeableNonVolatile, 4)
    assert one.readBytes(0, 8) == {bytes(8)}
    assert one.purge_answers(0) == {(IOReturn.kIOReturnBadArgument, -1)}
    assert buffer(INOUT | PAGEABLE).purge_answers(1) == {(IOReturn.KERN_INVALID_ARGUMENT, -1)}


def test_segments_are_judged():
    one = buffer(capacity=3 * PAGE)
    assert one.judge_segments([(0x5000, 2 * PAGE), (0x9000, PAGE)], None) == ""
    wrong = {
        "I04": [(0x5000, PAGE)],
        "I05": [(0x5000, PAGE), (0x6000, 2 * PAGE)],
    }
    for clause, segments in wrong.items():
        assert one.judge_segments(segments, None).startswith(clause)
    moved = one.judge_segments([(0x5000, 3 * PAGE)], [(0x7000, 3 * PAGE)])
    assert moved.startswith("I09")
    run = buffer(INOUT | k.kIOMemoryPhysicallyContiguous, 2 * PAGE, alignment=8192)
    assert run.judge_segments([(0x5000, PAGE), (0x9000, PAGE)], None).startswith("D01")
    assert run.judge_segments([(0x5000, 2 * PAGE)], None).startswith("C08")
    low = ReferenceBuffer(masked(0xFFFF_FFFF, capacity=PAGE))
    assert low.judge_segments([(1 << 32, PAGE)], None).startswith("D09")


def test_mappings():
    one = buffer()
    anywhere = k.kIOMapAnywhere
    assert one.map_answer(Role.KERNEL, anywhere, 0, 0).own
    assert not one.map_answer(Role.KERNEL, anywhere | k.kIOMapUnique, 0, 0).own
    assert not one.map_answer(Role.USER, anywhere | k.kIOMapReadOnly, 0, 0).writable
    assert one.map_answer(Role.USER, anywhere, 10, 20).length == 20
    for offset, length in ((1, 0), (1000, 1), (0, 1001), (999, 2)):
        assert one.map_answer(Role.USER, anywhere, offset, length) is None
    one.setLength(0)
    assert one.map_answer(Role.KERNEL, anywhere, 0, 0) is None
    loose = buffer(INOUT | PAGEABLE)
    assert loose.map_answer(Role.USER, anywhere | k.kIOMapPrefault, 0, 0) is None
