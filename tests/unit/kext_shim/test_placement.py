# SPDX-License-Identifier: MIT
"""The placement functions against the rules told a second time in Python (placement_rules.py)."""

import errno
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_rules import (
    ANY,
    CLEAR_ENCRYPT,
    COPY,
    CREATE,
    CURRENT_TASK,
    GIB,
    GUARD,
    GUARDED,
    HOST_CONTIGUOUS,
    IN_TASK,
    INIT_MASK,
    KERNEL_TASK,
    MAPPER_NONE,
    MIB,
    NULL_TASK,
    ON_DEMAND,
    PAGE,
    PAGEABLE,
    PHYSICALLY_CONTIGUOUS,
    PREFAULT,
    PURGEABLE,
    SHARED,
    TAGGED,
    THREAD_SAFE,
    TOP,
    UC_MINUS,
    UNMAPPED,
    WB,
    WC,
    WIRED,
    WITH_BYTES,
    WITH_CAPACITY,
    WITH_MASK,
    WITH_OPTIONS,
    WT,
    Limits,
    Plan,
    Refused,
    Request,
    rules,
)

DEBIAN = Limits()
# CMA has no power of two for its limit.
WITH_CMA = Limits(memory=8 * GIB - 64 * MIB, run=8 * GIB - 64 * MIB)
SMALL = Limits(memory=512 * MIB, top=512 * MIB)
ODD_TOP = Limits(memory=5 * GIB, top=7 * GIB + 3 * PAGE)
HUGE = Limits(memory=256 * GIB, top=258 * GIB, wired=4 * GIB, pageable=1 << 43)
WITH_MAPPER = Limits(mapper=1)
MACHINES = (DEBIAN, WITH_CMA, SMALL, ODD_TOP, HUGE, WITH_MAPPER)

AROUND = (0, 8, 100, 2040, PAGE, 2 * PAGE, 5000, 65536, MIB, 4 * MIB, 512 * MIB, 2 * GIB, 8 * GIB, TOP // 2)
EDGES = sorted(
    {edge + delta for edge in AROUND for delta in (-1, 0, 1) if edge + delta >= 0}
    | {
        128,
        3 * MIB,
        5 * GIB,
        1 << 33,
        1 << 40,
        TOP - 2 * PAGE,
        TOP - PAGE - 1,
        TOP - PAGE,
        TOP - PAGE + 1,
        TOP - 2,
    }
    | {TOP - 1}
)
FLAGS = (
    *(0, PHYSICALLY_CONTIGUOUS, HOST_CONTIGUOUS, PAGEABLE, PURGEABLE, MAPPER_NONE, SHARED, 0x40000),
    *(CLEAR_ENCRYPT, 0x100, 0x400 | PHYSICALLY_CONTIGUOUS, THREAD_SAFE, 0x800000, PAGEABLE | PREFAULT),
    *(PREFAULT, 0xFFFFFFFF),
)
MASKS = (
    *(0, 1, 2, 0xFFF, 0x1000, 0x1FFF, 0xFFFFF, 0xFFFFFF, 0x1FFFFFF, 0x0FFFFFFF, 0x1FFFFFFF, 0x7FFFFFFF),
    *(0xFFFFFFFF, 0xFFFFF000, 0xFFFFE000, 0xFFFF0000, 0xFFF00000, 0xFFC00000, 0xFF800000, 0x80000000),
    *(0xFFFFFFFFF, 0x1FFFFFFFF, 0x27FFFFFFF, 0x27FFFFFFE, 0x3FFFFFFFF, 0x1BFFFFFFF, 0x1C0002FFF, 0x180000000),
    *(0x1FFFFF000, 0x1FFFFE000, 0xF0F0F000, 0x7F0FFFFF, 0xFFFFEFFF, 0xFFFFDFFF, 0xFFFFDFFE, 0x55555FFF),
    *(ANY, ANY - 0xFFF, ANY - 0x1000, ANY - 0x2000, ANY - (1 << 32), ANY - (1 << 31), 1 << 63, 0x3F00000000),
)
FACTORIES = (WITH_OPTIONS, WITH_MASK, INIT_MASK, COPY, GUARD)


def disagreement(shim, request, limits):
    told, answered = rules(request, limits), shim.place(request, limits)
    return None if told == answered else f"{request} on {limits}: {answered} is not {told}"


def test_sizes_alignments_and_flags_against_the_second_telling(shim):
    pick = random.Random(2)
    everything = list(itertools.product(EDGES, EDGES, FLAGS))
    for capacity, alignment, options in pick.sample(everything, 30000):
        request = Request(capacity, alignment, options=options)
        assert not disagreement(shim, request, pick.choice(MACHINES))


def test_masks_against_the_second_telling(shim):
    capacities = (1, 2041, PAGE, PAGE + 1, 2 * PAGE, 65536, 65537, 4 * MIB, 4 * MIB + 1, 20 * MIB, 3 * GIB)
    for limits, mask, capacity in itertools.product(MACHINES, MASKS, capacities):
        for options in (3, 3 | PHYSICALLY_CONTIGUOUS):
            request = Request(capacity, 1, mask, WITH_MASK, options)
            assert not disagreement(shim, request, limits)


def test_factories_and_tasks_against_the_second_telling(shim):
    for factory, task, options in itertools.product(FACTORIES, range(3), FLAGS):
        for capacity, mask in itertools.product((0, 5000, 512 * MIB + 1, TOP - 1), (0, 0xFFFFFFFF)):
            alignment = PAGE if factory == GUARD else 1
            request = Request(capacity, alignment, mask, factory, options, task)
            assert not disagreement(shim, request, DEBIAN)


@given(
    capacity=st.one_of(st.integers(0, TOP - 1), st.integers(0, 3 * PAGE), st.sampled_from(EDGES)),
    alignment=st.one_of(st.just(1), st.integers(0, 3 * PAGE), st.sampled_from(EDGES)),
    mask=st.one_of(st.sampled_from(MASKS), st.integers(0, TOP - 1), st.integers(0, (1 << 36) - 1)),
    factory=st.sampled_from(FACTORIES),
    options=st.one_of(st.sampled_from(FLAGS), st.integers(0, (1 << 32) - 1)),
    task=st.sampled_from([NULL_TASK, KERNEL_TASK, CURRENT_TASK]),
    limits=st.sampled_from(MACHINES),
)
def test_anything_against_the_second_telling(
    shim, *, capacity, alignment, mask, factory, options, task, limits
):
    assert not disagreement(shim, Request(capacity, alignment, mask, factory, options, task), limits)


def expect_first_usable(shim, *, mask, contiguous, start, length, wanted, order):
    start, end, wanted = start * PAGE, (start + length) * PAGE, wanted * PAGE
    alignment = PAGE << order if contiguous else 1
    mask |= 0xFFF
    found = shim.usable(mask, alignment, contiguous, start=start, end=end, wanted=wanted)

    def fits(first, size):
        return first + size <= end and not any(page & ~mask for page in range(first, first + size, PAGE))

    step = max(alignment, PAGE)
    needed = wanted if contiguous else PAGE
    first = next((at for at in range(-(-start // step) * step, end, step) if fits(at, needed)), None)
    if first is None:
        assert found is None
    else:
        sizes = range(PAGE, wanted + PAGE, PAGE)
        assert found == (first, max(size for size in sizes if fits(first, size)))


def test_usable_stretches_against_a_search_page_by_page(shim):
    pick = random.Random(12)
    for _ in range(6000):
        expect_first_usable(
            shim, mask=pick.getrandbits(9) << 12 | pick.getrandbits(9) << 12, contiguous=pick.random() < 0.5,
            start=pick.randrange(300), length=pick.randrange(1, 100), wanted=pick.randrange(1, 20),
            order=pick.randrange(5),
        )  # fmt: skip


@given(
    mask=st.one_of(st.integers(1, TOP - 1), st.integers(0, 0xFF).map(lambda bits: bits << 12 | 0xFFF)),
    contiguous=st.booleans(),
    start=st.integers(0, 300),
    length=st.integers(1, 120),
    wanted=st.integers(1, 24),
    order=st.integers(0, 4),
)
def test_any_usable_stretch_against_a_search_page_by_page(
    shim, *, mask, contiguous, start, length, wanted, order
):
    expect_first_usable(
        shim, mask=mask, contiguous=contiguous, start=start, length=length, wanted=wanted, order=order
    )


@pytest.mark.parametrize("options", [3, 3 | PHYSICALLY_CONTIGUOUS])
def test_no_plan_lets_a_page_have_a_bit_the_mask_lacks(shim, options):
    """The documented promise (D09, D12, D14), from the mask alone."""
    pick = random.Random(14)
    planned = 0
    for _ in range(1500):
        mask = pick.getrandbits(34) | pick.getrandbits(34)
        plan = shim.place(Request(PAGE, 1, mask, WITH_MASK, options), ODD_TOP)
        if not isinstance(plan, Plan):
            continue
        planned += 1
        page = pick.randrange(ODD_TOP.top) & plan.mask & -PAGE
        if page < ODD_TOP.top:
            assert page & ~(mask | (mask & -mask) - 1) == 0, f"mask {mask:#x} page {page:#x}"
    assert planned > 500


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        *((0, WB), (1, UC_MINUS), (2, WT), (3, WB)),
        *((4, WC), (5, WB), (6, UC_MINUS), (7, WC)),
        # The field has three bits; the fourth is kIOMemoryMapperNone and leaves the mode as it is.
        *((8, WB), (9, UC_MINUS), (10, WT), (11, WB)),
        *((12, WC), (13, WB), (14, UC_MINUS), (15, WC)),
    ],
)
def test_cache_modes(shim, mode, expected):
    plan = shim.place(Request(16, options=3 | mode << 8), DEBIAN)
    assert plan.memory_type == expected
    assert plan.alignment == (PAGE if mode else 1)


def test_cache_modes_of_later_mappings(shim):
    """All four bits count here, and modes without a name are the default."""
    expected = [WB, UC_MINUS, WT, WB, WC, WB, UC_MINUS, WC, UC_MINUS, UC_MINUS, *[WB] * 6]
    assert [shim.type_of_map(0xFFFFF0FF | mode << 8) for mode in range(16)] == expected


@pytest.mark.parametrize(
    ("clause", "request_", "expected"),
    [
        ("C01", Request(100, 256), Plan(100, PAGE, 256)),
        ("C03", Request(100, 0), Plan(100, PAGE, 1)),
        ("C05", Request(16, 100), Plan(16, PAGE, 128)),
        ("C06", Request(5000, PAGE), Plan(5000, 2 * PAGE, PAGE)),
        ("C07", Request(16, 65536), Plan(16, 65536, 65536, contiguous=True)),
        ("C09", Request(5000, 5000), Plan(5000, 2 * PAGE, 8192, contiguous=True)),
        ("C12", Request(16, options=3 | SHARED), Plan(16, PAGE, PAGE)),
        ("C13", Request(16, options=3 | MAPPER_NONE), Plan(16, PAGE, PAGE)),
        ("C14", Request(5000, 65536, options=3 | PAGEABLE), Plan(5000, 2 * PAGE, PAGE, kind=ON_DEMAND)),
        ("D07", Request(5000, options=0x13), Plan(5000, 2 * PAGE, contiguous=True)),
        ("D21", Request(2040, options=0x13), Plan(2040, PAGE, contiguous=True)),
        ("D21", Request(2041, options=0x13), Plan(2041, PAGE, mask=0xFFFFFFFF, contiguous=True)),
        ("D21", Request(4096, options=0x13), Plan(4096, PAGE, mask=0xFFFFFFFF, contiguous=True)),
        ("D21", Request(4097, options=0x13), Plan(4097, 2 * PAGE, contiguous=True)),
        ("E07", Request(16, options=3 | PURGEABLE), Plan(16, PAGE)),
        ("D09", Request(16, 1, 0xFFFFFFFF, WITH_MASK), Plan(16, PAGE, PAGE, 0xFFFFFFFF)),
        ("D09", Request(16, 1, 0xFFFFF000, WITH_MASK), Plan(16, PAGE, PAGE, 0xFFFFFFFF)),
        ("D10", Request(16, 1, 0xFFFFE000, WITH_MASK), Plan(16, 8192, 8192, 0xFFFFFFFF, contiguous=True)),
        ("D10", Request(16, 1, 0xFFFF0000, WITH_MASK), Plan(16, 65536, 65536, 0xFFFFFFFF, contiguous=True)),
        ("D11", Request(16, 2, 0xFFFFFFFF, INIT_MASK), Plan(16, PAGE, 2)),
        ("D11", Request(16, 65536, 0xFFFFFF, INIT_MASK), Plan(16, 65536, 65536, contiguous=True)),
        ("D11", Request(16, 0, 0xFFFFFFFF, INIT_MASK), Plan(16, PAGE, PAGE, 0xFFFFFFFF)),
        ("D12", Request(9000, 1, 0xFFFFFF, WITH_MASK), Plan(9000, 3 * PAGE, PAGE, 0xFFFFFF)),
        ("D13", Request(16 * MIB, 1, 0xFFFFFF, WITH_MASK), Plan(16 * MIB, 16 * MIB, PAGE, 0xFFFFFF)),
        ("D14", Request(5000, 1, 0xF0F0F000, WITH_MASK), Plan(5000, 2 * PAGE, PAGE, 0xF0F0FFFF)),
        ("D15", Request(5000, 1, 0xFFFFFFFFF, WITH_MASK), Plan(5000, 2 * PAGE, PAGE)),
        ("D15", Request(5000, 1, ANY - 0xFFF, WITH_MASK), Plan(5000, 2 * PAGE, PAGE)),
        (
            "D16",
            Request(5000, 1, 0x1FFFFFFFF, WITH_MASK),
            Plan(5000, 8192, PAGE, 0x1FFFFFFFF, contiguous=True),
        ),
        ("D17", Request(5000, 1, 0, WITH_MASK), Plan(5000, 2 * PAGE, 1)),
        ("D19", Request(16, 1, 0xFFFF0000, WITH_MASK, 0x33), Plan(16, PAGE, PAGE, kind=ON_DEMAND)),
        (
            "A10",
            Request(16, 1, 0xFFFFFFFF, WITH_MASK, 3, NULL_TASK),
            Plan(16, PAGE, PAGE, 0xFFFFFFFF, WIRED, UNMAPPED),
        ),
        ("A10", Request(16, 1, 0, WITH_MASK, 3, NULL_TASK), Plan(16, PAGE, 1, ANY, WIRED, UNMAPPED)),
        (
            "A11",
            Request(16, options=3 | PAGEABLE, task=NULL_TASK),
            Plan(16, PAGE, PAGE, ANY, ON_DEMAND, UNMAPPED),
        ),
        ("A12", Request(16, options=3 | PAGEABLE, task=CURRENT_TASK), Plan(16, PAGE, PAGE, kind=ON_DEMAND)),
        ("2.6", Request(5000, PAGE, factory=GUARD), Plan(8192, 8192, PAGE, mapping=GUARDED)),
        ("E18", Request(16, options=3 | PREFAULT), Plan(16, PAGE)),
    ],
)
def test_worked_examples(shim, *, clause, request_, expected):
    assert shim.place(request_, DEBIAN) == expected, clause
    assert rules(request_, DEBIAN) == expected, clause


@pytest.mark.parametrize(
    ("clause", "request_", "expected"),
    [
        ("D04", Request(9 * MIB, options=0x13), Plan(9 * MIB, 9 * MIB, io_bits=64)),
        ("D04", Request(5000, options=0x813), Plan(5000, 2 * PAGE, PAGE, contiguous=True)),
        ("D05", Request(5000, options=0x83), Plan(5000, 2 * PAGE, contiguous=True, io_bits=64)),
        ("D08", Request(8192, 8192, options=0x13), Plan(8192, 8192, 8192, contiguous=True, io_bits=64)),
        ("D18", Request(5000, 1, 0xFFFFFF, WITH_MASK), Plan(5000, 2 * PAGE, PAGE, io_bits=24)),
        ("D18", Request(5000, 1, 0x1FFFFFFFF, WITH_MASK), Plan(5000, 2 * PAGE, PAGE, io_bits=33)),
        ("D18", Request(5000, 1, 0xFF00F000, WITH_MASK), Plan(5000, 2 * PAGE, PAGE, io_bits=32)),
        (
            "D18",
            Request(5000, 1, 0xFFFF0000, WITH_MASK),
            Plan(5000, 65536, 65536, contiguous=True, io_bits=32),
        ),
        ("D18", Request(5000, 1, 0xFFFFFF, WITH_MASK, 0x803), Plan(5000, 2 * PAGE, PAGE, 0xFFFFFF)),
        ("D21", Request(4096, options=0x13), Plan(4096, PAGE, io_bits=64)),
        ("C15", Request(100), Plan(100, 128, 64, io_bits=64, packed=True)),
        ("C15", Request(100, 128), Plan(100, 128, 128, io_bits=64, packed=True)),
        ("C15", Request(4031), Plan(4031, 4032, 64, io_bits=64, packed=True)),
        ("C15", Request(4032), Plan(4032, PAGE, io_bits=64)),
        ("C15", Request(100, options=0x803), Plan(100, PAGE, PAGE)),
        # Nobody would know its address to keep off the neighbours.
        ("A10", Request(16, 1, 0, WITH_MASK, 3, NULL_TASK), Plan(16, PAGE, mapping=UNMAPPED, io_bits=64)),
    ],
)
def test_worked_examples_behind_a_mapper(shim, *, clause, request_, expected):
    assert shim.place(request_, WITH_MAPPER) == expected, clause


@pytest.mark.parametrize(
    ("clause", "request_", "code"),
    [
        ("A05", Request(0), errno.EINVAL),
        ("A05", Request(0, PAGE, factory=GUARD), errno.EINVAL),
        ("A06", Request(TOP - 1, options=2), errno.EOVERFLOW),
        ("A06", Request(TOP - 1, options=2 | PAGEABLE), errno.EOVERFLOW),
        # Wraps in no sum, only when it is rounded to pages.
        ("A06", Request(TOP - 2, options=2 | PAGEABLE, task=NULL_TASK), errno.ENOMEM),
        ("A07", Request(TOP - PAGE + 1, PAGE), errno.EOVERFLOW),
        ("A08", Request(8192, TOP - 8192), errno.EOVERFLOW),
        # A page and this alignment wrap to 4095, not below the capacity: the alignment itself is refused.
        ("A08", Request(16, TOP - 1), errno.ENOMEM),
        ("A09", Request(16, factory=IN_TASK, task=NULL_TASK), errno.EINVAL),
        ("A09", Request(16, factory=IN_TASK, task=CURRENT_TASK), errno.EINVAL),
        ("A09", Request(16, 1, 0xFFFFFFFF, WITH_MASK, task=CURRENT_TASK), errno.EINVAL),
        ("A17", Request(2 * GIB + 1), errno.ENOMEM),
        ("C11", Request(16, 1 << 33), errno.ENOMEM),
        ("D02", Request(4 * MIB + 1, options=0x13), errno.ENOMEM),
        ("D10", Request(16, 1, 0x80000000, WITH_MASK), errno.ENOMEM),
        ("D12", Request(16 * MIB + 1, 1, 0xFFFFFF, WITH_MASK), errno.ENOMEM),
        ("D14", Request(65537, 1, 0xF0F0F000, WITH_MASK, 0x13), errno.ENOMEM),
        ("D14", Request(2 * PAGE, 1, 0xFFFFEFFF, WITH_MASK, 0x13), errno.ENOMEM),
        ("D16", Request(4 * MIB + 1, 1, 0x1FFFFFFFF, WITH_MASK), errno.ENOMEM),
        ("E18", Request(16, options=3 | PAGEABLE | PREFAULT), errno.EINVAL),
        ("G09", Request(16, factory=COPY), errno.EINVAL),
        ("G09", Request(16, factory=COPY, options=3 | PAGEABLE, task=NULL_TASK), errno.EINVAL),
        ("2.3", Request(512 * MIB + 1, options=3 | PAGEABLE), errno.ENOMEM),
        ("2.6", Request(16, PAGE, factory=GUARD, options=3 | PAGEABLE), errno.EINVAL),
        ("2.6", Request(16, PAGE, factory=GUARD, options=0x13), errno.EINVAL),
    ],
)
def test_refusals(shim, *, clause, request_, code):
    assert shim.place(request_, DEBIAN) == Refused(code), clause


def call(factory, **other):
    base = {
        "options": 3,
        "capacity": 5000,
        "alignment": 64,
        "mask": 0xFFFF,
        "task": KERNEL_TASK,
        "contiguous": 0,
    }
    return {**base, "factory": factory, **other}


INVALID = Refused(errno.EINVAL)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (call(WITH_OPTIONS, task=CURRENT_TASK, contiguous=1), Request(5000, 64)),
        (call(IN_TASK, task=CURRENT_TASK), Request(5000, 64, factory=IN_TASK, task=CURRENT_TASK)),
        (call(IN_TASK, task=NULL_TASK), Request(5000, 64, factory=IN_TASK, task=NULL_TASK)),
        (call(IN_TASK, task=3), INVALID),
        (call(WITH_OPTIONS, task=3), Request(5000, 64)),
        (call(TAGGED, task=NULL_TASK), Request(5000, 64, factory=TAGGED, task=NULL_TASK)),
        (call(WITH_MASK), Request(5000, 1, 0xFFFF, WITH_MASK)),
        (call(WITH_MASK, task=NULL_TASK), Request(5000, 1, 0xFFFF, WITH_MASK, task=NULL_TASK)),
        (call(INIT_MASK), Request(5000, 64, 0xFFFF, INIT_MASK)),
        (call(COPY, task=CURRENT_TASK), Request(5000, 1, factory=COPY, task=CURRENT_TASK)),
        (call(GUARD), Request(5000, PAGE, factory=GUARD)),
        (call(CREATE, options=1, task=NULL_TASK), Request(5000, 64, 0, CREATE, 1 | SHARED | THREAD_SAFE)),
        (call(WITH_CAPACITY), Request(5000, 1, factory=WITH_CAPACITY)),
        (call(WITH_CAPACITY, contiguous=1), Request(5000, 5000, 0, WITH_CAPACITY, 0x13)),
        (call(WITH_BYTES, capacity=0), Request(0, 1, factory=WITH_BYTES)),
        (call(WITH_BYTES, capacity=5), Request(5, 8, factory=WITH_BYTES)),
        (call(WITH_BYTES, capacity=3000), Request(3000, PAGE, factory=WITH_BYTES)),
        (call(WITH_BYTES, capacity=PAGE + 1), Request(PAGE + 1, PAGE, factory=WITH_BYTES)),
        (call(WITH_BYTES, capacity=TOP - 1, contiguous=1), Request(TOP - 1, PAGE, 0, WITH_BYTES, 0x13)),
        (call(10), INVALID),
        (call(WITH_OPTIONS, options=1 << 32), INVALID),
    ],
)
def test_factories(shim, arguments, expected):
    assert shim.request(**arguments) == expected
