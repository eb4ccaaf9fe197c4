# SPDX-License-Identifier: MIT
import pytest

from harness.oracle.paging import Tables, canonical, kernel_root, leaf_address, pat_index, process_roots, walk

PRESENT, WRITABLE, USER, PWT, PCD, PS = 1, 2, 4, 8, 16, 128
NX = 1 << 63
MIB, GIB = 1 << 20, 1 << 30
KERNEL = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}


@pytest.fixture
def ram(synthetic):
    return synthetic.Ram((0, 8 * MIB))


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize(("level", "size"), [(1, 4096), (2, 2 * MIB), (3, GIB)])
def test_walk_to_every_leaf_size(synthetic, ram, levels, level, size):
    tables = synthetic.Paging(ram, levels)
    va, pa = KERNEL[levels] + 5 * GIB, 7 * GIB
    tables.map(va, pa, level)
    for offset in (0, 1, size // 2, size - 1):
        found = walk(Tables(ram), tables.root, levels, va + offset)
        assert (found.mapped, found.level, found.size, found.pa, found.base) == (True, level, size, pa, va)
    for outside in (va - 1, va + size):
        assert not walk(Tables(ram), tables.root, levels, outside).mapped


@pytest.mark.parametrize("index", range(8))
def test_pat_bit_is_bit_7_in_small_leaves_and_bit_12_in_large_ones(index):
    low = (PWT if index & 1 else 0) | (PCD if index & 2 else 0) | PRESENT
    small = 0x1234_5000 | low | (1 << 7 if index & 4 else 0)
    assert pat_index(small, 1) == index
    assert leaf_address(small, 1) == 0x1234_5000  # bit 12 of a small leaf is an address bit
    for level, size in ((2, 2 * MIB), (3, GIB)):
        large = 3 * GIB | low | PS | (1 << 12 if index & 4 else 0)
        assert pat_index(large, level) == index
        assert leaf_address(large, level) == 3 * GIB
        assert leaf_address(large, level) % size == 0


def test_flags_above_bit_51_are_not_address(synthetic, ram):
    tables = synthetic.Paging(ram)
    entry_flags = PRESENT | NX | 0x7FF << 52
    tables.map(KERNEL[4], 0x000F_FFFF_FFFF_F000, flags=entry_flags)
    found = walk(Tables(ram), tables.root, 4, KERNEL[4])
    assert found.pa == 0x000F_FFFF_FFFF_F000


def test_five_levels_tell_addresses_apart_that_four_cannot(synthetic, ram):
    tables = synthetic.Paging(ram, 5)
    one, other = 0x0000_1000_0000_0000, 0x0011_1000_0000_0000  # same low 48 bits
    tables.map(one, 0x10000)
    tables.map(other, 0x20000)
    assert [walk(Tables(ram), tables.root, 5, va).pa for va in (one, other)] == [0x10000, 0x20000]


@pytest.mark.parametrize(("levels", "va"), [(4, 1 << 47), (4, 0xFF11_0000_0000_0000), (5, 1 << 56)])
def test_addresses_that_are_not_canonical_are_unmapped(synthetic, ram, levels, va):
    tables = synthetic.Paging(ram, levels)
    tables.map(canonical(va, levels), 0x10000)
    assert walk(Tables(ram), tables.root, levels, canonical(va, levels)).mapped
    found = walk(Tables(ram), tables.root, levels, va)
    assert (found.mapped, found.level) == (False, levels)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_level_at_which_a_walk_ends(synthetic, ram, level):
    tables = synthetic.Paging(ram)
    va = KERNEL[4]
    table = tables.table_for(va, level)
    ram.put_u64(tables.slot(table, va, level), 0xABC000 | WRITABLE)  # present bit clear, everything else set
    found = walk(Tables(ram), tables.root, 4, va)
    assert (found.mapped, found.level, found.entry) == (False, level, 0xABC000 | WRITABLE)


@pytest.mark.parametrize(("levels", "level"), [(4, 4), (5, 4), (5, 5)])
def test_size_bit_at_the_upper_levels_is_reserved(synthetic, ram, levels, level):
    tables = synthetic.Paging(ram, levels)
    va = KERNEL[levels]
    ram.put_u64(tables.slot(tables.table_for(va, level), va, level), 0x10000 | PRESENT | PS)
    found = walk(Tables(ram), tables.root, levels, va)
    assert (found.mapped, found.level) == (False, level)


def test_a_table_outside_ram_maps_nothing(synthetic, ram):
    tables = synthetic.Paging(ram)
    ram.put_u64(tables.slot(tables.root, KERNEL[4], 4), 0x7_0000_0000 | PRESENT)
    found = walk(Tables(ram), tables.root, 4, KERNEL[4])
    assert (found.mapped, found.level, found.entry) == (False, 3, 0)


def test_tables_in_ram_above_the_hole(synthetic):
    ram = synthetic.Ram((0, MIB), (4 * GIB, MIB))
    tables = synthetic.Paging(ram, tables_at=4 * GIB)
    tables.map(KERNEL[4], 0x5000)
    assert walk(Tables(ram), tables.root, 4, KERNEL[4]).pa == 0x5000


@pytest.mark.parametrize("upper", [2, 3, 4])
@pytest.mark.parametrize(
    ("clear", "right"), [(USER, "user"), (WRITABLE, "writable")], ids=["user", "writable"]
)
def test_one_level_is_enough_to_take_a_right_away(synthetic, ram, upper, clear, right):
    tables = synthetic.Paging(ram)
    va = 0x1000_0000
    tables.map(va, 0x10000, flags=PRESENT | WRITABLE | USER)
    assert getattr(walk(Tables(ram), tables.root, 4, va), right)
    slot = tables.slot(tables.table_for(va, upper), va, upper)
    ram.put_u64(slot, ram.u64(slot) & ~clear)
    assert not getattr(walk(Tables(ram), tables.root, 4, va), right)


@pytest.mark.parametrize("upper", [1, 2, 3, 4])
def test_no_execute_at_any_level(synthetic, ram, upper):
    tables = synthetic.Paging(ram)
    va = 0x1000_0000
    tables.map(va, 0x10000)
    assert walk(Tables(ram), tables.root, 4, va).executable
    slot = tables.slot(tables.table_for(va, upper), va, upper)
    ram.put_u64(slot, ram.u64(slot) | NX)
    assert not walk(Tables(ram), tables.root, 4, va).executable
    assert walk(Tables(ram), tables.root, 4, va, no_execute=False).executable


def isolated(synthetic, ram):
    """A pair of roots as page-table isolation keeps them: kernel's, and the user's one page above."""
    tables = synthetic.Paging(ram, tables_at=0x200000)
    assert tables.root % 0x2000 == 0
    user_root = tables.new_table()
    tables.map(0x1000_0000, 0x10000, flags=PRESENT | USER)
    tables.map(KERNEL[4], 0, 2)
    tables.map(0xFFFF_FE00_0000_0000, 0x20000)
    for index in (0, 508):
        ram.put_u64(user_root + 8 * index, ram.u64(tables.root + 8 * index) & ~NX)
    return tables, user_root


def test_a_user_root_of_page_table_isolation_leads_to_the_kernels(synthetic, ram):
    tables, user_root = isolated(synthetic, ram)
    assert kernel_root(Tables(ram), user_root | 0x800) == tables.root  # with a PCID
    assert kernel_root(Tables(ram), tables.root | 1 << 63) == tables.root


def test_bit_12_of_a_lone_root_is_just_an_address_bit(synthetic, ram):
    tables = synthetic.Paging(ram, tables_at=0x201000)
    tables.map(0x1000_0000, 0x10000, flags=PRESENT | USER)
    tables.map(KERNEL[4], 0, 2)
    assert tables.root & 0x1000
    ram.write(0x200000, bytes(range(1, 256, 2)) * 32)  # what lies below is something else
    assert kernel_root(Tables(ram), tables.root) == tables.root
    ram.write(0x200000, ram.read(tables.root, 4096))  # or another thread's root, alike in both halves
    assert kernel_root(Tables(ram), tables.root) == tables.root


def test_a_lone_root_of_a_kernel_thread_is_not_paired_with_whatever_lies_below(synthetic, ram):
    tables = synthetic.Paging(ram, tables_at=0x201000)
    for index in range(64):
        tables.map(KERNEL[4] + index * 512 * GIB, 0)
    used = b"\x01" + bytes(7)
    ram.write(0x200000 + 8 * 256, used * 40 + bytes(8 * 20) + used * 196)
    assert kernel_root(Tables(ram), tables.root) == tables.root


def test_roots_of_processes_that_are_on_no_cpu(synthetic):
    ram = synthetic.Ram((0, 8 * MIB))
    tables = synthetic.Paging(ram)
    for index in range(4):
        tables.map(KERNEL[4] + index * 512 * GIB, 0)
    tables.map(0xFFFF_FFFF_8000_0000, 0)
    kernel_half = ram.read(tables.root + 2048, 2048)
    sleeping, starter, dead = 0x400000, 0x9C000, 0x500000
    for root in (sleeping, starter):
        ram.write(root + 2048, kernel_half)
        ram.put_u64(root + 2048, ram.u64(root + 2048) ^ 0x20 if ram.u64(root + 2048) else 0)
    ram.write(dead + 2048 + 8 * 300 % 2048, b"\xff" * 64)
    last = 8 * 511
    ram.put_u64(sleeping + last, ram.u64(sleeping + last) | 0x60)  # accessed, dirty: no difference
    ram.put_u64(sleeping + 8 * 272, 0x123067)  # its LDT
    assert set(process_roots(Tables(ram), tables.root, ram.ranges)) == {tables.root, sleeping}
    assert process_roots(Tables(ram), tables.root, [(0, 3 * MIB)]) == (tables.root,)
