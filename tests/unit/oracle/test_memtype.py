# SPDX-License-Identifier: MIT
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.oracle import EFFECTIVE, MemoryType, MtrrMap, ReservedType, TypeRules, decode_pat
from harness.oracle.errors import OracleError
from harness.oracle.memtype import PAT_RESET

UC, WC, WT, WP, WB, UCM = (MemoryType(name) for name in ("UC", "WC", "WT", "WP", "WB", "UC-"))

# Rows: MTRR type. Columns: PAT type. Typed in a second time on purpose, in the order of Intel's table.
SDM_TABLE_12_7 = """
MTRR  UC  UC-  WC  WT  WB  WP
UC    UC  UC   WC  UC  UC  UC
WC    UC  WC   WC  UC  WC  UC
WT    UC  UC   WC  WT  WT  WP
WB    UC  UC   WC  WT  WB  WP
WP    UC  WC   WC  WT  WP  WP
"""


def cells():
    lines = [line.split() for line in SDM_TABLE_12_7.strip().splitlines()]
    for mtrr, *row in lines[1:]:
        for pat, effective in zip(lines[0][1:], row, strict=True):
            yield pytest.param(mtrr, pat, effective, id=f"mtrr-{mtrr}-pat-{pat}")


@pytest.mark.parametrize(("mtrr", "pat", "effective"), list(cells()))
def test_effective_type(mtrr, pat, effective):
    assert EFFECTIVE[MemoryType(mtrr), MemoryType(pat)] is MemoryType(effective)


def test_effective_table_has_no_other_cells():
    assert len(EFFECTIVE) == 30


@pytest.mark.parametrize(
    ("value", "names"),
    [
        pytest.param(PAT_RESET, "WB WT UC- UC WB WT UC- UC", id="reset"),
        pytest.param(0x0407050600070106, "WB WC UC- UC WB WP UC- WT", id="linux"),
        pytest.param(0x0007010600070106, "WB WC UC- UC WB WC UC- UC", id="linux-four-slots"),
    ],
)
def test_pat(value, names):
    assert [kind.value for kind in decode_pat(value)] == names.split()


@pytest.mark.parametrize("code", [2, 3, 8, 0x86, 0xFF])
def test_reserved_pat_encoding_is_named(code):
    with pytest.raises(ReservedType, match=r"slot 3 of IA32_PAT"):
        decode_pat(0x0407050600070106 & ~(0xFF << 24) | code << 24)


def mtrr(def_type=0xC06, fixed=(0x0606060606060606,) * 11, var=()):
    return MtrrMap.from_registers(def_type, fixed, var)


def var(base, size, kind, bits=40, valid=True):
    mask = ((1 << bits) - 1) & ~(size - 1)
    return base | kind, mask | (0x800 if valid else 0)


def test_mtrrs_off_is_uncached_everywhere():
    off = mtrr(def_type=0x406, var=[var(0, 1 << 30, 6)])
    assert {off.at(0), off.at(0x100000), off.at(1 << 40)} == {UC}


def test_default_type_where_nothing_matches():
    assert mtrr(def_type=0x804).at(0x12345000) is WT


def test_fixed_ranges_beat_variable_ones():
    fixed = (0x0606060606060606, 0x0101010101010101, 0, *[0x0505050505050505] * 8)
    found = mtrr(fixed=fixed, var=[var(0, 1 << 30, 0)])
    # A UC variable range wins against every other variable range, but not against a fixed one.
    assert [found.at(pa) for pa in (0, 0x7FFFF, 0x80000, 0x9FFFF, 0xA0000, 0xBFFFF, 0xC0000, 0xFFFFF)] == [
        WB, WB, WC, WC, UC, UC, WP, WP,
    ]  # fmt: skip
    assert found.at(0x100000) is UC
    assert found.at((1 << 30) - 1) is UC
    assert found.at(1 << 30) is WB


def test_fixed_ranges_need_their_enable_bit():
    found = mtrr(def_type=0x806, fixed=(0,) * 11, var=[var(0, 1 << 20, 4)])
    assert found.at(0xA0000) is WT
    assert found.at(1 << 20) is WB


def test_each_fixed_register_governs_its_own_granules():
    for register, (start, granule) in enumerate(
        [
            (0, 0x10000),
            (0x80000, 0x4000),
            (0xA0000, 0x4000),
            *[(0xC0000 + 0x8000 * n, 0x1000) for n in range(8)],
        ]
    ):
        for byte in range(8):
            fixed = [0x0606060606060606] * 11
            fixed[register] = fixed[register] & ~(0xFF << 8 * byte) | 0x04 << 8 * byte
            found = mtrr(fixed=fixed)
            first = start + byte * granule
            assert found.at(first) is found.at(first + granule - 1) is WT
            assert found.at(first + granule) is WB
            if first:
                assert found.at(first - 1) is WB


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((0, 6), UC), ((6, 0), UC), ((0, 1), UC), ((0, 4, 6), UC),
        ((4, 6), WT), ((6, 4), WT), ((6, 6), WB), ((1, 1), WC),
        ((1, 6), UC), ((5, 6), UC), ((1, 4), UC),
    ],
)  # fmt: skip
def test_overlap(kinds, expected):
    found = mtrr(var=[var(1 << 30, 1 << 30, kind) for kind in kinds])
    assert found.at(3 << 29) is expected


def test_invalid_ranges_do_not_count():
    assert mtrr(var=[var(1 << 30, 1 << 30, 0, valid=False)]).at(3 << 29) is WB
    assert mtrr(var=[(0x3, 0)]).at(0) is WB  # its reserved type is nobody's business either


def test_reserved_mtrr_types_are_named():
    with pytest.raises(ReservedType, match="variable MTRR"):
        mtrr(var=[var(1 << 30, 1 << 30, 7)])
    with pytest.raises(ReservedType, match="IA32_MTRR_DEF_TYPE"):
        mtrr(def_type=0x807)
    with pytest.raises(ReservedType, match="fixed MTRR for 0xa0000"):
        mtrr(fixed=(0, 0, 0x02, *[0] * 8))


def test_a_mask_full_of_holes_is_refused():
    with pytest.raises(OracleError, match="holes"):
        mtrr(var=[(6, 0x5555555000 | 0x800)])


def test_a_range_that_covers_everything():
    assert mtrr(var=[(0, 0x800)]).at(1 << 45) is UC


def test_over_lists_what_it_crosses():
    found = mtrr(var=[var(0xC0000000, 1 << 30, 0)])
    assert found.over(0xBFFFF000, 0x1000) == (WB,)
    assert found.over(0xBFFFF000, 0x1001) == (WB, UC)
    assert found.over(0xC0000000, 1 << 30) == (UC,)
    assert found.over(0, 1 << 33) == (WB, UC)


def naive(pa, def_type, fixed, variable):
    """The rules once more, one address at a time."""
    codes = {0: UC, 1: WC, 4: WT, 5: WP, 6: WB}
    if pa < 1 << 20 and def_type & 0x400:
        if pa < 0x80000:
            return codes[fixed[0] >> 8 * (pa >> 16) & 0xFF]
        if pa < 0xC0000:
            return codes[fixed[1 + (pa - 0x80000 >> 17)] >> 8 * (pa >> 14 & 7) & 0xFF]
        return codes[fixed[3 + (pa - 0xC0000 >> 15)] >> 8 * (pa >> 12 & 7) & 0xFF]
    hit = {codes[base & 0xFF] for base, mask in variable if pa & (mask & ~0xFFF) == base & (mask & ~0xFFF)}
    if not hit:
        return codes[def_type & 0xFF]
    if len(hit) == 1:
        return hit.pop()
    return WT if hit == {WT, WB} else UC


kinds = st.sampled_from([0, 1, 4, 5, 6])
fixed_registers = st.lists(st.lists(kinds, min_size=8, max_size=8).map(bytes), min_size=11, max_size=11).map(
    lambda rows: tuple(int.from_bytes(row, "little") for row in rows)
)


@st.composite
def variable_ranges(draw):
    found = []
    for _ in range(draw(st.integers(0, 8))):
        size = 1 << draw(st.integers(12, 33))
        mask = ((1 << 40) - 1) & ~(size - 1)
        if draw(st.booleans()) and size < 1 << 33:
            mask &= ~(size << draw(st.integers(1, 3)))  # a hole: the range repeats
        found.append(
            (draw(st.integers(0, (1 << 34) // size)) * size & ((1 << 40) - 1) | draw(kinds), mask | 0x800)
        )
    return found


@given(kinds, st.booleans(), fixed_registers, variable_ranges(), st.data())
def test_map_agrees_with_the_rules_address_by_address(default, fixed_on, fixed, variable, data):
    def_type = 0x800 | default | (0x400 if fixed_on else 0)
    found = MtrrMap.from_registers(def_type, fixed, variable)
    near = [edge + delta for edge in found.starts for delta in (-1, 0, 1) if edge + delta >= 0]
    anywhere = data.draw(st.lists(st.integers(0, (1 << 36) - 1), min_size=4, max_size=20))
    low = data.draw(st.lists(st.integers(0, (1 << 20) - 1), min_size=4, max_size=8))
    for pa in [*near, *anywhere, *low]:
        if pa < 1 << 40:
            assert found.at(pa) is naive(pa, def_type, fixed, variable), hex(pa)


def test_disabled_caches_win():
    rules = TypeRules(decode_pat(PAT_RESET), mtrr(), cache_disabled=True)
    assert rules.effective(WB, WB) is UC
