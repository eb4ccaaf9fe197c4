# SPDX-License-Identifier: MIT
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.oracle import scan as scanning
from harness.oracle.aliases import LeafTable, PhysRange
from harness.oracle.errors import OracleError
from harness.oracle.paging import Tables, canonical, pat_index, walk
from harness.oracle.scan import scan

PRESENT, WRITABLE, USER, PWT, PCD = 1, 2, 4, 8, 16
NX = 1 << 63
MIB, GIB = 1 << 20, 1 << 30
SIZES = {1: 4096, 2: 2 * MIB, 3: GIB}


@st.composite
def mappings(draw, levels):
    """Leaves of all sizes at random addresses, which never lie inside each other, with random flags."""
    found, taken = [], set()
    bits = 48 if levels == 4 else 57
    for _ in range(draw(st.integers(1, 24))):
        level = draw(st.sampled_from([1, 1, 1, 2, 2, 3]))
        top = draw(st.sampled_from([0, 1, 255, 256, 300, 511]))
        rest = draw(st.integers(0, 3)) << 30 | draw(st.integers(0, 3)) << 21 | draw(st.integers(0, 511)) << 12
        va = canonical((top << (bits - 9) | rest) & ~(SIZES[level] - 1), levels)
        spot = [(va >> 30, None, None), (va >> 30, va >> 21, None), (va >> 30, va >> 21, va >> 12)]
        key = spot[3 - level]
        if (
            any(k[: 4 - level] == key[: 4 - level] or k == spot[0] or k == spot[1] for k in taken)
            or key in taken
        ):
            continue
        taken.add(key)
        pa = draw(st.integers(0, (1 << 40) // SIZES[level])) * SIZES[level]
        flags = PRESENT | draw(st.sampled_from([0, WRITABLE, USER, WRITABLE | USER]))
        flags |= draw(st.sampled_from([0, NX])) | draw(st.sampled_from([0, PWT, PCD, PWT | PCD]))
        flags |= draw(st.sampled_from([0, 1 << 7 if level == 1 else 1 << 12]))
        found.append((va, pa, level, flags))
    return found


def build(synthetic, levels, mapped):
    ram = synthetic.Ram((0, 3 * MIB))
    tables = synthetic.Paging(ram, levels, tables_at=0x100000)
    for va, pa, level, flags in mapped:
        tables.map(va, pa, level, flags)
    return ram, tables


@pytest.mark.parametrize("levels", [4, 5])
@given(data=st.data())
def test_scan_finds_what_was_mapped_and_agrees_with_the_walk(synthetic, levels, data):
    ram, tables = build(synthetic, levels, data.draw(mappings(levels)))
    for va, _, size, _ in tables.mapped:  # upper levels take rights away
        upper = data.draw(st.integers({4096: 2, 2 * MIB: 3, GIB: 4}[size], levels))
        slot = tables.slot(tables.table_for(va, upper), va, upper)
        change = data.draw(st.sampled_from([0, WRITABLE, USER, NX]))
        ram.put_u64(slot, (ram.u64(slot) & ~change) | (change & NX))
    found = scan(Tables(ram), [tables.root], levels)
    seen = sorted(zip(*(c.tolist() for c in (found.va, found.pa, found.size, found.entry)), strict=True))
    assert seen == sorted(tables.mapped)
    for n in range(len(found)):
        walked = walk(Tables(ram), tables.root, levels, int(found.va[n]))
        assert walked.mapped
        assert (walked.entry, walked.level, walked.pa) == (found.entry[n], found.level[n], found.pa[n])
        assert found.pat[n] == pat_index(walked.entry, walked.level)
        assert found.flags[n] == walked.user | walked.writable << 1 | walked.executable << 2


@given(data=st.data())
def test_touching_agrees_with_comparing_everything(synthetic, data):
    ram, tables = build(synthetic, 4, data.draw(mappings(4)))
    found = scan(Tables(ram), [tables.root], 4)
    edges = [
        edge + delta for _, pa, size, _ in tables.mapped for edge in (pa, pa + size) for delta in (-1, 0, 1)
    ]
    starts = st.one_of(st.sampled_from([max(edge, 0) for edge in edges]), st.integers(0, 1 << 40))
    lengths = st.one_of(st.integers(0, 3), st.integers(0, 1 << 32))
    ranges = [PhysRange(*pair) for pair in data.draw(st.lists(st.tuples(starts, lengths), max_size=12))]
    expected = [
        n
        for n in range(len(found))
        if any(r.length and r.start < found.pa[n] + found.size[n] and found.pa[n] < r.end for r in ranges)
    ]
    assert found.touching(ranges).tolist() == expected


def test_what_two_roots_share_comes_once(synthetic):
    ram = synthetic.Ram((0, 4 * MIB))
    one = synthetic.Paging(ram, tables_at=0x100000)
    one.map_run(0xFFFF_8880_0000_0000, 0, 64 * 4096)
    one.map(0x40_0000, 0x5000, flags=PRESENT | USER)
    other = synthetic.Paging(ram, tables_at=0x200000)
    ram.write(other.root + 2048, ram.read(one.root + 2048, 2048))
    other.map(0x40_0000, 0x6000, flags=PRESENT | USER)  # the same address, another page
    found = scan(Tables(ram), [one.root, other.root, one.root], 4)
    assert np.count_nonzero(found.va >= np.uint64(1 << 63)) == 64
    assert sorted(found.pa[found.va == 0x40_0000].tolist()) == [0x5000, 0x6000]
    assert len(found) == 66


def test_a_table_mapped_everywhere_is_folded_but_its_types_are_not_lost(synthetic):
    """KASAN's shadow: one table at every level, 512 times over."""
    ram = synthetic.Ram((0, 4 * MIB))
    tables = synthetic.Paging(ram, tables_at=0x100000)
    level3, level2, level1 = (tables.new_table() for _ in range(3))
    for index in range(512):
        ram.put_u64(level3 + 8 * index, level2 | PRESENT)
        ram.put_u64(level2 + 8 * index, level1 | PRESENT)
        ram.put_u64(level1 + 8 * index, 0x5000 | PRESENT | PWT)
    for index in range(300, 400):
        ram.put_u64(tables.root + 8 * index, level3 | PRESENT)
    found = scan(Tables(ram), [tables.root], 4)
    assert len(found) == 512 * scanning.MAX_PATHS
    assert found.folded > 0
    assert set(found.pat.tolist()) == {1}
    assert found.va.min() == canonical(300 << 39, 4)


def test_tables_that_point_at_themselves_end(synthetic):
    ram = synthetic.Ram((0, MIB))
    tables = synthetic.Paging(ram, tables_at=0x10000)
    for index in range(0, 512, 3):
        ram.put_u64(tables.root + 8 * index, tables.root | PRESENT | WRITABLE)
    for levels in (4, 5):
        found = scan(Tables(ram), [tables.root], levels)
        assert set(found.pa.tolist()) == {tables.root}
        assert found.folded > 0


@given(seed=st.integers(0, 2**32), levels=st.sampled_from([4, 5]), local=st.booleans())
def test_garbage_ends_and_agrees_with_the_walk(synthetic, seed, levels, local):
    random = np.random.default_rng(seed)
    size = MIB // 8  # 32 tables, all of which may point at each other
    ram = synthetic.Ram((0, size))
    words = ram.array(0, size).view("<u8")
    words[:] = random.integers(0, 2**64, len(words), dtype=np.uint64)
    if local:  # everything points into RAM
        words &= np.uint64(0xFFF0_0000_0001_FFFF)
    try:
        found = scan(Tables(ram), [0x3000], levels)
    except OracleError:
        return
    for n in random.integers(0, max(len(found), 1), 20):
        if len(found):
            walked = walk(Tables(ram), 0x3000, levels, int(found.va[n]))
            assert walked.mapped
            assert walked.entry == found.entry[n]


def test_too_many_tables_are_garbage(synthetic, monkeypatch):
    ram, tables = build(synthetic, 4, [(n << 30, 0, 1, PRESENT) for n in range(20)])
    monkeypatch.setattr(scanning, "MAX_TABLES", 19)  # 20 gigabytes need 20 tables of the last level
    with pytest.raises(OracleError, match="garbage"):
        scan(Tables(ram), [tables.root], 4)


def test_a_root_outside_ram_shows_nothing(synthetic):
    found = scan(Tables(synthetic.Ram((0, MIB))), [0x7_0000_0000], 4)
    assert isinstance(found, LeafTable)
    assert len(found) == 0
    assert found.touching([PhysRange(0, 1 << 50)]).tolist() == []
