# SPDX-License-Identifier: MIT
"""Many buffers at once must be told the same as each of them alone."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.oracle import (
    NOWHERE,
    MemoryType,
    Oracle,
    PhysRange,
    SurveyMismatch,
    Unmapped,
    ViewExpired,
    mask_of,
    types_in,
)
from harness.oracle.pagetypes import ranks
from harness.oracle.paging import Tables, walk
from harness.oracle.translate import translate
from harness.oracle.view import View

WC, WT, WB, UC = (MemoryType(name) for name in ("WC", "WT", "WB", "UC"))
PRESENT, WRITABLE, USER, PWT, PCD = 1, 2, 4, 8, 16
RW = PRESENT | WRITABLE
AS_WC, AS_UCM, AS_WT = PWT, PCD, PWT | PCD | 1 << 7
PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30
DIRECT = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}
VMALLOC = {4: 0xFFFF_C900_0000_0000, 5: 0xFFA0_0000_0000_0000}
USER_VA = 0x7000_0000_0000
TABLES, SECOND = 0xC0_0000, 0xA0_0000
SIZES = {1: PAGE, 2: 2 * MIB, 3: GIB}


@st.composite
def machines(draw, synthetic, levels):
    """RAM with a direct map and aliases of all sizes and types over the same memory, in two processes."""
    ram = synthetic.Ram((0, 16 * MIB))
    tables = synthetic.Paging(ram, levels, tables_at=TABLES)
    other = synthetic.Paging(ram, levels, tables_at=SECOND)
    tables.map_run(DIRECT[levels], 0, 2 * MIB)
    tables.map_run(DIRECT[levels] + 4 * MIB, 4 * MIB, 12 * MIB, 2)  # a hole before it
    types = st.sampled_from([0, AS_WC, AS_UCM, AS_WT])
    for page in draw(st.sets(st.integers(0, 40), min_size=8)):
        pa = (
            draw(st.sampled_from([0x8000, 0x9E000, 4 * MIB, 6 * MIB - 3 * PAGE]))
            + draw(st.integers(0, 6)) * PAGE
        )
        tables.map(VMALLOC[levels] + page * PAGE, pa, flags=RW | draw(types))
    large = st.sampled_from([0, PWT, PCD, PWT | 1 << 12])
    if draw(st.booleans()):
        tables.map(VMALLOC[levels] + 2 * MIB, draw(st.sampled_from([0, 4 * MIB])), 2, flags=RW | draw(large))
    if draw(st.booleans()):
        tables.map(VMALLOC[levels] + GIB, 0, 3, flags=RW | draw(large))
    ram.write(other.root + 2048, ram.read(tables.root + 2048, 2048))
    for process in (tables, other):
        for page in draw(st.sets(st.integers(0, 5))):
            pa = 0x8000 + draw(st.integers(0, 6)) * PAGE
            process.map(USER_VA + page * PAGE, pa, flags=RW | USER | draw(types))
    return tables, other


@st.composite
def asked(draw, levels):
    """Addresses and sizes, some of them in holes or across their edges."""
    places = [
        (VMALLOC[levels], 42 * PAGE),
        (VMALLOC[levels] + 2 * MIB - PAGE, 64 * PAGE),
        (VMALLOC[levels] + GIB, 64 * PAGE),
        (DIRECT[levels], 2 * MIB + 2 * PAGE),
        (DIRECT[levels] + 4 * MIB - PAGE, 3 * MIB),
        (USER_VA, 6 * PAGE),
        (1 << 62, PAGE),  # not canonical
    ]
    found = []
    for _ in range(draw(st.integers(0, 10))):
        base, span = draw(st.sampled_from(places))
        start = draw(st.integers(0, span))
        found.append((base + start, draw(st.sampled_from([0, 1, PAGE, 3 * PAGE, 5000, 70000]))))
    return [address for address, _ in found], [storage for _, storage in found]


def truth(view, address, storage):
    """One buffer by walks, page by page, and by the aliases of each of its bytes' ranges."""
    first = address & ~(PAGE - 1)
    pages = list(range(first, address + storage, PAGE)) if storage else []
    ranges, unmapped = [], 0
    for va in pages:
        low, high = max(va, address), min(va + PAGE, address + storage)
        try:
            (part,) = view.physical_of(low, high - low)
        except Unmapped:
            unmapped += 1
            ranges.append(None)
            continue
        if ranges and ranges[-1] is not None and ranges[-1].end == part.start:
            ranges[-1] = PhysRange(ranges[-1].start, ranges[-1].length + part.length)
        else:
            ranges.append(part)
    parts = [each for each in ranges if each is not None]
    leaves = view.aliases(parts)
    start = ranges[0].start if ranges and ranges[0] is not None else NOWHERE
    bits = 0
    for part in parts:
        for page in range(part.start & ~(PAGE - 1), part.end, PAGE):
            bits |= page
    return (
        {
            "physical": start,
            "alignment": 0 if start == NOWHERE else start & -start or 1 << 52,
            "address_bits": bits,
            "pieces": len(parts),
            "aliases": len(view._all.touching(parts)),  # a leaf with two types is two in `aliases`
            "effective": mask_of({leaf.effective for leaf in leaves}),
            "pat": mask_of({leaf.pat_type for leaf in leaves}),
            "mapped": unmapped == 0,
        },
        parts,
        leaves,
    )


@pytest.mark.parametrize("levels", [4, 5])
@given(data=st.data())
def test_a_survey_equals_the_single_path(synthetic, levels, data):
    tables, other = data.draw(machines(synthetic, levels))
    second = data.draw(st.sampled_from([{}, {"pat": 0x0007040600070406}, {"cr3": other.root}]))
    cpus = [
        synthetic.cpu_state(tables.root, levels),
        synthetic.cpu_state(**({"cr3": tables.root, "levels": levels, "index": 1} | second)),
    ]
    view = View(tables.ram, cpus)
    address, storage = data.draw(asked(levels))
    seen = view.survey(address, storage)
    assert len(seen) == len(address)
    pages_of = []
    for number, (start, length) in enumerate(zip(address, storage, strict=True)):
        expected, parts, leaves = truth(view, start, length)
        row = seen.rows[number]
        assert {name: row[name] for name in expected} == expected
        assert (row["address"], row["storage"]) == (start, length)
        assert seen.ranges(number) == tuple(parts)
        assert seen.leaves(number) == leaves
        assert seen.types(number) == {leaf.effective for leaf in leaves}
        assert seen.pat_types(number) == {leaf.pat_type for leaf in leaves}
        pages_of.append({page for part in parts for page in range(part.start >> 12, -(-part.end >> 12))})
    for number, pages in enumerate(pages_of):
        others = set().union(*(pages_of[:number] + pages_of[number + 1 :]))
        assert seen.rows["shared"][number] == len(pages & others)


@pytest.mark.parametrize("levels", [4, 5])
@given(data=st.data())
def test_many_translations_equal_single_walks(synthetic, levels, data):
    tables, other = data.draw(machines(synthetic, levels))
    places = [VMALLOC[levels], DIRECT[levels], DIRECT[levels] + 4 * MIB, USER_VA, VMALLOC[levels] + GIB]
    edges = st.sampled_from([0, 2 * MIB, 40 * PAGE, GIB, 1 << 39])
    near = st.builds(
        lambda a, b, c, d: (a + b + c) % 2**64 ^ d,
        st.sampled_from(places),
        edges,
        st.integers(-9, 9),
        st.sampled_from([0, 0, 1 << 60]),  # not canonical any more
    )
    va = data.draw(st.lists(st.one_of(near, st.integers(0, 2**64 - 1)), max_size=40))
    roots = data.draw(st.permutations([tables.root, other.root, 1 << 45]))
    memory = Tables(tables.ram)
    expected = []
    for each in va:
        walks = (walk(memory, root, levels, each) for root in roots)
        found = next((one for one in walks if one.mapped), None)
        expected.append(NOWHERE if found is None else found.pa + each - found.base)
    assert translate(memory, roots, levels, np.array(va, dtype=np.uint64)).tolist() == expected


@given(data=st.data())
def test_segments_equal_ranges_byte_by_byte(synthetic, data):
    tables, _ = data.draw(machines(synthetic, 4))
    view = View(tables.ram, [synthetic.cpu_state(tables.root)])
    address, storage = data.draw(asked(4))
    seen = view.survey(address, storage)
    offset = [data.draw(st.integers(0, size + 2)) for size in storage]
    length = [data.draw(st.integers(0, size + 2)) for size in storage]
    found = seen.segments(offset, length)
    for number, (start, size) in enumerate(zip(address, storage, strict=True)):
        end = min(size, length[number])
        expected = (NOWHERE, 0)
        if offset[number] < end:
            try:
                part = view.physical_of(start + offset[number], 1)[0]
                run = 1
                while offset[number] + run < end:
                    step = min(PAGE - (start + offset[number] + run) % PAGE, end - offset[number] - run)
                    (more,) = view.physical_of(start + offset[number] + run, step)
                    if more.start != part.start + run:
                        break
                    run += step
                expected = (part.start, run)
            except Unmapped as hole:
                if hole.va != start + offset[number]:
                    expected = (part.start, run)
        assert tuple(found[number].tolist()) == expected


@pytest.fixture
def small(synthetic):
    """Four buffers: contiguous WC, scattered, one that shares a page with it, and one that has a hole."""
    ram = synthetic.Ram((0, 16 * MIB))
    tables = synthetic.Paging(ram, tables_at=TABLES)
    tables.map_run(DIRECT[4], 0, 2 * MIB)
    tables.map_run(DIRECT[4] + 2 * MIB, 2 * MIB, 14 * MIB, 2)
    for page, pa in enumerate([0x10000, 0x11000, 0x30000, 0x20000, 0x20000, 0x50000]):
        tables.map(VMALLOC[4] + page * PAGE, pa, flags=RW | (AS_WC if page < 2 else 0))
    for pa in (0x10000, 0x11000):
        tables.map(DIRECT[4] + pa, pa, flags=RW | AS_WC)
    machine = synthetic.Machine(ram, [synthetic.cpu_state(tables.root)])
    address = np.array([0, 2, 4, 5], dtype=np.uint64) * np.uint64(PAGE) + np.uint64(VMALLOC[4])
    bufs = SimpleNamespace(address=address, storage=np.array([2, 2, 1, 2], dtype=np.uint64) * np.uint64(PAGE))
    return machine, bufs


def test_one_capture_for_all(small):
    machine, bufs = small
    seen = Oracle(machine).survey(bufs)
    assert machine.log == ["stop", "capture", "continue"]
    assert seen.rows["physical"].tolist() == [0x10000, 0x30000, 0x20000, 0x50000]
    assert seen.rows["pieces"].tolist() == [1, 2, 1, 1]
    assert seen.rows["aliases"].tolist() == [4, 5, 3, 2]
    assert seen.rows["shared"].tolist() == [0, 1, 1, 0]
    assert seen.rows["mapped"].tolist() == [True, True, True, False]
    assert seen.rows["alignment"].tolist() == [0x10000, 0x10000, 0x20000, 0x10000]
    assert seen.rows["address_bits"].tolist() == [0x11000, 0x30000, 0x20000, 0x50000]
    assert [seen.types(n) for n in range(4)] == [{WC}, {WB}, {WB}, {WB}]
    assert seen.unmapped_pages.tolist() == [0, 0, 0, 1]


def test_neighbours_are_not_one_buffer(small):
    """The slab of a thousand buffers made one after the other."""
    machine, _ = small
    start = np.arange(100, dtype=np.uint64) * np.uint64(PAGE) + np.uint64(DIRECT[4] + 4 * MIB)
    seen = Oracle(machine).survey(SimpleNamespace(address=start, storage=PAGE))
    seen.require(pieces=1, aliases=1, apart=True, physical=start - np.uint64(DIRECT[4]), types=WB)
    assert seen.segments()["length"].tolist() == [PAGE] * 100
    assert seen.ranges(7) == (PhysRange(4 * MIB + 7 * PAGE, PAGE),)


def test_anomalies_that_belong_to_no_buffer(small):
    machine, bufs = small
    with Oracle(machine).frozen() as view:
        seen = view.survey(bufs.address, bufs.storage)
        assert [leaf.pa for leaf in view.direct_map_anomalies()] == [0x10000, 0x11000]
        assert view.direct_map_anomalies(besides=seen) == ()
        half = view.survey(bufs.address[:1], PAGE)
        assert [leaf.pa for leaf in view.direct_map_anomalies(besides=half)] == [0x11000]
        table = view.cpus[0].cr3
        for level in (4, 3):
            table = machine.ram.u64(table + 8 * (DIRECT[4] >> (12 + 9 * (level - 1)) & 511)) & ~0xFFF
        view.write(table + 8, (2 * MIB | RW | PCD | 1 << 7).to_bytes(8, "little"))
        assert [leaf.pa for leaf in view.direct_map_anomalies(besides=seen)] == [2 * MIB]
        part = view.survey([DIRECT[4] + 2 * MIB], [2 * MIB - PAGE])
        assert [leaf.pa for leaf in view.direct_map_anomalies(besides=part)] == [0x10000, 0x11000, 2 * MIB]
        whole = view.survey([DIRECT[4] + 2 * MIB], [2 * MIB - PAGE + 1])
        assert [leaf.pa for leaf in view.direct_map_anomalies(besides=whole)] == [0x10000, 0x11000]


def test_any_way_to_name_buffers(small):
    machine, bufs = small
    oracle = Oracle(machine)
    singles = [
        SimpleNamespace(address=int(address), storage=int(storage))
        for address, storage in zip(bufs.address, bufs.storage, strict=True)
    ]
    wanted = oracle.survey(bufs).rows
    assert np.array_equal(oracle.survey(singles).rows, wanted)
    assert np.array_equal(oracle.survey(iter(singles)).rows, wanted)
    assert np.array_equal(oracle.survey(singles[0]).rows, wanted[:1])
    with oracle.frozen() as view:
        assert np.array_equal(
            view.survey(bufs.address.astype(np.int64).view("u8"), bufs.storage).rows, wanted
        )
        assert view.survey([], []).rows.shape == (0,)
        assert view.survey(bufs.address, PAGE).rows["storage"].tolist() == [PAGE] * 4
    with pytest.raises(ViewExpired):
        view.survey([], [])


def test_what_is_as_expected_raises_nothing(small):
    machine, bufs = small
    seen = Oracle(machine).survey(SimpleNamespace(address=bufs.address[:2], storage=bufs.storage[:2]))
    claims = np.array([(0x10000, 2 * PAGE), (0x30000, PAGE)], dtype=[("address", "<u8"), ("length", "<u8")])
    seen.require(
        types=np.array([mask_of(WC), mask_of({WB})], dtype=np.uint8),
        pat_types=np.array([mask_of(WC), mask_of({WB})], dtype=np.uint8),
        physical=claims["address"],
        pieces=[1, 2],
        aliases=[4, 4 + 1],
        alignment=0x10000,
        mask=[0x11000, 0x30000],
        segments=claims,
        apart=True,
    )
    later = np.array([(0x10800, 0x1000), (0x30800, 0x800)], dtype=claims.dtype)
    seen.require(segments=later, offset=0x800, length=0x1800)
    seen.require(segments=np.zeros(1, dtype=claims.dtype), offset=3 * PAGE)
    assert seen.mismatches(types=[WB, WC])[0].observed == "WC"
    assert seen.mismatches(types=iter([WC]))[0].number == 1


@pytest.mark.parametrize(
    ("expected", "number", "text"),
    [
        ({"types": WC}, 1, "effective types of all aliases: expected WC, observed WB"),
        ({"pat_types": [WC, UC]}, 0, "PAT types of all aliases: expected UC and WC, observed WC"),
        ({"physical": 0x10000}, 1, "physical address: expected 0x10000, observed 0x30000"),
        ({"pieces": 1}, 1, "contiguous pieces: expected 1, observed 2"),
        ({"aliases": [4, 6]}, 1, "leaves: expected 6, observed 5"),
        ({"alignment": 0x20000}, 0, "expected a physical address that 0x20000 divides, observed 0x10000"),
        ({"mask": 0x1F000}, 1, "expected physical addresses within 0x1f000, observed pages with the bits"),
        ({"apart": True}, 1, "memory of its own: expected no page that another buffer has too, observed 1"),
    ],
)
def test_every_expectation_can_fail(small, expected, number, text):
    machine, bufs = small
    mine = SimpleNamespace(address=bufs.address[:3], storage=bufs.storage[:3])
    seen = Oracle(machine).survey(mine)
    if "aliases" in expected or "alignment" in expected:
        mine = SimpleNamespace(address=bufs.address[:2], storage=bufs.storage[:2])
        seen = Oracle(machine).survey(mine)
    with pytest.raises(SurveyMismatch) as caught:
        seen.require(**expected)
    assert number in {each.number for each in caught.value.mismatches}
    address = int(bufs.address[number])
    assert any(
        f"buffer {number} at {address:#x}: " in line and text in line for line in caught.value.evidence
    )
    assert isinstance(caught.value, AssertionError)


def test_a_hole_is_always_a_mismatch(small):
    machine, bufs = small
    seen = Oracle(machine).survey(bufs)
    (only,) = seen.mismatches()
    assert (only.number, only.what, only.observed) == (3, "mapping", "1 pages that are not")
    nothing = Oracle(machine).survey(SimpleNamespace(address=[1 << 46], storage=PAGE))
    assert nothing.rows["physical"].tolist() == [NOWHERE]
    with pytest.raises(SurveyMismatch, match="no leaf maps it"):
        nothing.require()
    assert "observed nowhere" in str(nothing.mismatches(physical=0)[1])


def test_a_wrong_segment_is_named(small):
    machine, bufs = small
    seen = Oracle(machine).survey(bufs)
    claims = seen.segments()
    claims["length"][1] += 1
    wrong = [each for each in seen.mismatches(segments=claims) if each.what == "segment"]
    assert [str(each).partition(": ")[2] for each in wrong] == [
        "segment: expected 4097 bytes at 0x30000, observed 4096 bytes at 0x30000"
    ]


def test_the_failure_shows_the_leaves_and_not_ten_thousand_of_them(small):
    machine, bufs = small
    many = SimpleNamespace(address=np.repeat(bufs.address[:1], 100), storage=2 * PAGE)
    with pytest.raises(SurveyMismatch) as caught:
        Oracle(machine).survey(many).require(types=WB)
    assert caught.value.summary == "100 of 100 buffers are not as expected: effective types of all aliases"
    assert len(caught.value.mismatches) == 100
    lines = [line.strip() for line in caught.value.evidence]
    assert lines[1] == (
        "4 leaves of 4 KiB, kernel, rw, PAT 1 WC x MTRR WB = WC, first 0xffff888000010000 -> 0x10000"
    )
    assert lines[-1] == "... and 95 more buffers"
    assert len(lines) == 11


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ({"colour": 1}, "no colour to expect"),
        ({"types": 3}, "a MemoryType"),
        ({"types": ["WC"]}, "a MemoryType"),
        ({"pieces": [1, 2, 3]}, "3 values for 4 buffers"),
        ({"physical": -1}, "whole numbers"),
        ({"alignment": 0}, "divides nothing"),
        ({"segments": np.zeros(4)}, "columns"),
    ],
)
def test_expectations_that_are_none(small, expected, text):
    machine, bufs = small
    seen = Oracle(machine).survey(bufs)
    with pytest.raises(BadInput, match=text):
        seen.mismatches(**expected)


@pytest.mark.parametrize(
    ("address", "storage", "text"),
    [
        ([-1], [1], "address: whole numbers"),
        (np.array([-1]), [1], "address: int64"),
        (np.array([0.5]), [1], "address: float64"),
        (["x"], [1], "address: whole numbers"),
        ([1, 2], [1, 2, 3], "3 values for 2 buffers"),
        ([0, 2**64 - PAGE], [PAGE, PAGE + 1], "buffer 1 goes beyond the end"),
        ([PAGE], [2**52], "more than 16777216 pages"),
        (np.full(2**24 + 1, PAGE), PAGE, "buffers are more than"),
    ],
)
def test_buffers_that_cannot_be(small, address, storage, text):
    machine, _ = small
    with pytest.raises(BadInput, match=text), Oracle(machine).frozen() as view:
        view.survey(address, storage)


def test_the_last_page_of_all_addresses(synthetic):
    ram = synthetic.Ram((0, 16 * MIB))
    tables = synthetic.Paging(ram, tables_at=TABLES)
    tables.map_run(DIRECT[4], 0, 16 * MIB, 2)
    tables.map(2**64 - PAGE, 0x5000)
    seen = View(ram, [synthetic.cpu_state(tables.root)]).survey([2**64 - PAGE, 2**64 - 1], [PAGE, 1])
    assert seen.rows["physical"].tolist() == [0x5000, 0x5FFF]
    assert seen.rows["mapped"].all()
    assert [part.length for n in range(2) for part in seen.ranges(n)] == [PAGE, 1]


def test_tables_on_both_sides_of_the_hole_and_in_it(synthetic):
    ram = synthetic.Ram((0, MIB), (4 * GIB, MIB))
    tables = synthetic.Paging(ram, tables_at=MIB - PAGE)  # the top table below the hole
    tables.next = 4 * GIB  # all others above it
    va = DIRECT[4]
    tables.map(va, 0x5000)
    tables.map(va + PAGE, 4 * GIB + 0x6000)
    hole = tables.slot(tables.table_for(va + GIB, 3), va + GIB, 3)
    ram.put_u64(hole, 2 * GIB | RW)
    where = np.array([va, va + PAGE + 7, va + 2 * PAGE, va + GIB], dtype=np.uint64)
    found = translate(Tables(ram), [tables.root], 4, where)
    assert found.tolist() == [0x5000, 4 * GIB + 0x6007, NOWHERE, NOWHERE]


def test_bit_sets_of_types():
    for mask in range(64):
        assert mask_of(types_in(mask)) == mask
    assert types_in(mask_of([WC, WC, WB])) == {WC, WB}


@given(
    known=st.sets(st.integers(0, 300), max_size=60),
    at=st.lists(st.integers(0, 320), max_size=60),
    base=st.sampled_from([0, 1 << 39]),
    far=st.booleans(),
)
def test_ranks_are_those_of_a_binary_search(known, at, base, far):
    pages = np.array(sorted(known) + [1 << 30] * far, dtype=np.uint64) + np.uint64(base)
    wanted = np.array(at, dtype=np.uint64) + np.uint64(base)
    assert ranks(pages, wanted).tolist() == np.searchsorted(pages, wanted).tolist()
