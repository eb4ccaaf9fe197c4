# SPDX-License-Identifier: MIT
"""The placement function, compiled for the host, against the rules told a second time in Python.

The second telling follows the contract's description of initWithPhysicalMask (clauses A05-A09, A17, C01-C13,
D05-D08, D21, F01-F06, F15) with Python's unbounded integers, so that every 64-bit wrap is written out where
it is meant.
"""

import ctypes
import errno
import itertools
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[3]
SHIM = ROOT / "kext_shim"

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
TOP = 1 << 64

PHYSICALLY_CONTIGUOUS = 0x10
PAGEABLE = 0x20
PURGEABLE = 0x40
HOST_CONTIGUOUS = 0x80
MAPPER_NONE = 0x800
SHARED = 0x10000
CLEAR_ENCRYPT = 0x200000

NULL_TASK, KERNEL_TASK, CURRENT_TASK = range(3)
WITH_OPTIONS, IN_TASK, WITH_CAPACITY, WITH_BYTES = range(4)
WB, WC, UC_MINUS, WT = range(4)

TYPE_OF_MODE = {1: UC_MINUS, 2: WT, 4: WC, 6: UC_MINUS, 7: WC}


@dataclass(frozen=True)
class Limits:
    memory: int = 8 * GIB
    run: int = 4 * MIB
    wired: int = 2 * GIB


@dataclass(frozen=True)
class Plan:
    storage: int
    alignment: int
    contiguous: bool
    address_bits: int
    memory_type: int


@dataclass(frozen=True)
class Refused:
    code: int


DEBIAN = Limits()
# CMA has no power of two for its limit.
WITH_CMA = Limits(memory=8 * GIB - 64 * MIB, run=8 * GIB - 64 * MIB, wired=2 * GIB)
SMALL = Limits(memory=512 * MIB, run=4 * MIB, wired=2 * GIB)
HUGE = Limits(memory=256 * GIB, run=4 * MIB, wired=4 * GIB)


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("placement") / "placement.so"
    argv = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-shared", "-fPIC"]
    # A trap needs no sanitizer runtime inside Python.
    argv += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", f"-I{SHIM}", "-o", str(library)]
    argv += [str(SHIM / "iobmd_placement.c"), str(Path(__file__).with_name("placement_probe.c"))]
    subprocess.run(argv, check=True)
    loaded = ctypes.CDLL(str(library))
    u32, u64 = ctypes.c_uint32, ctypes.c_uint64
    loaded.probe_place.argtypes = [
        *(u64, u64, u32, u32, u64, u64, u64),
        ctypes.POINTER(u64 * 5),
        ctypes.POINTER(ctypes.c_char_p),
    ]
    loaded.probe_request.argtypes = [u32, u32, u64, u64, u32, u32, ctypes.POINTER(u64 * 4)]
    return loaded


def ask(shim, capacity, alignment=1, *, options=3, task=KERNEL_TASK, limits=DEBIAN):
    out = (ctypes.c_uint64 * 5)()
    reason = ctypes.c_char_p()
    result = shim.probe_place(
        *(capacity, alignment, options, task),
        *(limits.memory, limits.run, limits.wired),
        ctypes.byref(out),
        ctypes.byref(reason),
    )
    if result == 0:
        assert reason.value == b""
        return Plan(out[0], out[1], bool(out[2]), out[3], out[4])
    assert result < 0
    assert 10 < len(reason.value) < shim.probe_reason_max()
    return Refused(-result)


def up_to(unit, n):
    return -(-n // unit) * unit


def power_at_least(n):
    return 1 << max(n - 1, 0).bit_length()


def rules(capacity, alignment, options, task, limits):  # noqa: PLR0911 - one return per rule
    """The second telling."""
    if capacity == 0:
        return Refused(errno.EINVAL)
    align = alignment
    if options & (0xF0000 | 0xF00 | CLEAR_ENCRYPT):
        align = max(align, PAGE)
    size = capacity
    if align >= PAGE:
        size = up_to(PAGE, capacity)
        if size >= TOP:
            return Refused(errno.EOVERFLOW)
    if (size + align) % TOP < capacity:
        return Refused(errno.EOVERFLOW)
    if options & PAGEABLE:
        return Refused(errno.EOPNOTSUPP)
    if task != KERNEL_TASK:
        return Refused(errno.EINVAL)

    memory_type = TYPE_OF_MODE.get((options >> 8) & 7, WB)
    power = power_at_least(align)
    pages = up_to(PAGE, size)
    if not (options & (PHYSICALLY_CONTIGUOUS | HOST_CONTIGUOUS)) and align <= PAGE:
        if size > min(limits.wired, limits.memory):
            return Refused(errno.ENOMEM)
        return Plan(pages, power, False, 64, memory_type)
    if max(pages, power) > limits.run:
        return Refused(errno.ENOMEM)
    low = align <= PAGE and 2 * size + 16 > PAGE and size <= PAGE
    return Plan(max(pages, power), power, True, 32 if low else 64, memory_type)


EDGES = sorted(
    {
        edge + delta
        for edge in (
            0,
            8,
            100,
            128,
            2040,
            PAGE,
            2 * PAGE,
            5000,
            65536,
            MIB,
            3 * MIB,
            4 * MIB,
            8 * MIB,
            512 * MIB,
        )
        for delta in (-1, 0, 1)
    }
    | {2 * GIB - 1, 2 * GIB, 2 * GIB + 1, 4 * GIB, 4 * GIB + 1, 8 * GIB, 8 * GIB + 1, 1 << 33, 1 << 40}
    | {
        TOP // 2 - 1,
        TOP // 2,
        TOP // 2 + 1,
        TOP - 2 * PAGE,
        TOP - PAGE - 1,
        TOP - PAGE,
        TOP - PAGE + 1,
        TOP - 2,
    }
    | {TOP - 1}
)
EDGES = [edge for edge in EDGES if 0 <= edge < TOP]
FLAGS = (
    *(
        0,
        PHYSICALLY_CONTIGUOUS,
        HOST_CONTIGUOUS,
        PAGEABLE,
        PURGEABLE,
        MAPPER_NONE,
        SHARED,
        0x40000,
        CLEAR_ENCRYPT,
    ),
    *(0x100, 0x400 | PHYSICALLY_CONTIGUOUS, 0x100000, 0x800000, 0xFFFFFFFF),
)


@pytest.mark.parametrize("limits", [DEBIAN, WITH_CMA, SMALL, HUGE])
def test_every_edge_against_the_second_telling(shim, limits):
    for capacity, alignment, options in itertools.product(EDGES, EDGES, FLAGS):
        expected = rules(capacity, alignment, options, KERNEL_TASK, limits)
        assert ask(shim, capacity, alignment, options=options, limits=limits) == expected, (
            f"capacity {capacity:#x} alignment {alignment:#x} options {options:#x}"
        )


@given(
    capacity=st.one_of(st.integers(0, TOP - 1), st.integers(0, 3 * PAGE), st.sampled_from(EDGES)),
    alignment=st.one_of(st.integers(0, TOP - 1), st.integers(0, 3 * PAGE), st.sampled_from(EDGES)),
    options=st.integers(0, (1 << 32) - 1),
    task=st.sampled_from([NULL_TASK, KERNEL_TASK, CURRENT_TASK]),
    limits=st.sampled_from([DEBIAN, WITH_CMA, SMALL, HUGE]),
)
def test_anything_against_the_second_telling(shim, *, capacity, alignment, options, task, limits):
    assert ask(shim, capacity, alignment, options=options, task=task, limits=limits) == rules(
        capacity, alignment, options, task, limits
    )


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
    plan = ask(shim, 16, options=3 | mode << 8)
    assert plan.memory_type == expected
    assert plan.alignment == (PAGE if mode else 1)


@pytest.mark.parametrize(
    ("clause", "capacity", "alignment", "options", "expected"),
    [
        ("C01", 100, 256, 3, Plan(PAGE, 256, False, 64, WB)),
        ("C03", 100, 0, 3, Plan(PAGE, 1, False, 64, WB)),
        ("C05", 16, 100, 3, Plan(PAGE, 128, False, 64, WB)),
        ("C06", 5000, PAGE, 3, Plan(2 * PAGE, PAGE, False, 64, WB)),
        ("C07", 16, 65536, 3, Plan(65536, 65536, True, 64, WB)),
        ("C09", 5000, 5000, 3, Plan(2 * PAGE, 8192, True, 64, WB)),
        ("C12", 16, 1, 3 | SHARED, Plan(PAGE, PAGE, False, 64, WB)),
        ("C13", 16, 1, 3 | MAPPER_NONE, Plan(PAGE, PAGE, False, 64, WB)),
        ("D07", 5000, 1, 3 | PHYSICALLY_CONTIGUOUS, Plan(2 * PAGE, 1, True, 64, WB)),
        ("D21", 2040, 1, 3 | PHYSICALLY_CONTIGUOUS, Plan(PAGE, 1, True, 64, WB)),
        ("D21", 2041, 1, 3 | PHYSICALLY_CONTIGUOUS, Plan(PAGE, 1, True, 32, WB)),
        ("D21", 4096, 1, 3 | PHYSICALLY_CONTIGUOUS, Plan(PAGE, 1, True, 32, WB)),
        ("D21", 4097, 1, 3 | PHYSICALLY_CONTIGUOUS, Plan(2 * PAGE, 1, True, 64, WB)),
        ("E07", 16, 1, 3 | PURGEABLE, Plan(PAGE, 1, False, 64, WB)),
    ],
)
def test_worked_examples(shim, *, clause, capacity, alignment, options, expected):
    assert ask(shim, capacity, alignment, options=options) == expected, clause


@pytest.mark.parametrize(
    ("clause", "capacity", "alignment", "options", "task", "code"),
    [
        ("A05", 0, 1, 3, KERNEL_TASK, errno.EINVAL),
        ("A06", TOP - 1, 1, 2, KERNEL_TASK, errno.EOVERFLOW),
        ("A06", TOP - 1, 1, 2 | PAGEABLE, KERNEL_TASK, errno.EOVERFLOW),
        ("A07", TOP - PAGE + 1, PAGE, 3, KERNEL_TASK, errno.EOVERFLOW),
        ("A08", 8192, TOP - 8192, 3, KERNEL_TASK, errno.EOVERFLOW),
        # A page and this alignment wrap to 4095, not below the capacity: the alignment itself is refused.
        ("A08", 16, TOP - 1, 3, KERNEL_TASK, errno.ENOMEM),
        ("A09", 16, 1, 3, NULL_TASK, errno.EINVAL),
        ("A09", 16, 1, 3, CURRENT_TASK, errno.EINVAL),
        ("A17", 2 * GIB + 1, 1, 3, KERNEL_TASK, errno.ENOMEM),
        ("C11", 16, 1 << 33, 3, KERNEL_TASK, errno.ENOMEM),
        ("D02", 4 * MIB + 1, 1, 3 | PHYSICALLY_CONTIGUOUS, KERNEL_TASK, errno.ENOMEM),
    ],
)
def test_refusals(shim, *, clause, capacity, alignment, options, task, code):
    assert ask(shim, capacity, alignment, options=options, task=task) == Refused(code), clause


def factory(shim, number, *, options=3, capacity=5000, alignment=64, task=NULL_TASK, contiguous=0):
    out = (ctypes.c_uint64 * 4)()
    result = shim.probe_request(number, options, capacity, alignment, task, contiguous, ctypes.byref(out))
    return tuple(out) if result == 0 else result


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"number": WITH_OPTIONS, "task": CURRENT_TASK, "contiguous": 1}, (5000, 64, 3, KERNEL_TASK)),
        ({"number": IN_TASK, "task": CURRENT_TASK}, (5000, 64, 3, CURRENT_TASK)),
        ({"number": IN_TASK, "task": NULL_TASK}, (5000, 64, 3, NULL_TASK)),
        ({"number": IN_TASK, "task": 3}, -errno.EINVAL),
        ({"number": WITH_CAPACITY}, (5000, 1, 3, KERNEL_TASK)),
        ({"number": WITH_CAPACITY, "contiguous": 1}, (5000, 5000, 0x13, KERNEL_TASK)),
        ({"number": WITH_BYTES, "capacity": 0}, (0, 1, 3, KERNEL_TASK)),
        ({"number": WITH_BYTES, "capacity": 5}, (5, 8, 3, KERNEL_TASK)),
        ({"number": WITH_BYTES, "capacity": 3000}, (3000, PAGE, 3, KERNEL_TASK)),
        ({"number": WITH_BYTES, "capacity": PAGE + 1}, (PAGE + 1, PAGE, 3, KERNEL_TASK)),
        ({"number": WITH_BYTES, "capacity": TOP - 1, "contiguous": 1}, (TOP - 1, PAGE, 0x13, KERNEL_TASK)),
        ({"number": 4}, -errno.EINVAL),
    ],
)
def test_factories(shim, arguments, expected):
    assert factory(shim, **arguments) == expected
