# SPDX-License-Identifier: MIT
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.oracle import MemoryType, NotLongMode, OracleError, PhysRange, ReservedType, Unmapped
from harness.oracle.view import View

WC, WT, WP, WB, UC = (MemoryType(name) for name in ("WC", "WT", "WP", "WB", "UC"))
PRESENT, WRITABLE, USER, PWT, PCD = 1, 2, 4, 8, 16
RW, NX = PRESENT | WRITABLE, 1 << 63
AS_WC, AS_UCM, AS_WT = PWT, PCD, PWT | PCD | 1 << 7  # Linux's slots 1, 2 and 7 in a 4 KiB leaf
MIB, GIB = 1 << 20, 1 << 30
DIRECT = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}
VMALLOC = 0xFFFF_C900_0000_0000
TEXT = 0xFFFF_FFFF_8100_0000
USER_VA = 0x7000_0000_0000
TABLES = 0xC0_0000


def kernel(synthetic, levels=4, base=None, ram=None):
    """A small Linux: 16 MiB of RAM, all of it in the direct map, the image mapped once more."""
    ram = ram or synthetic.Ram((0, 16 * MIB))
    tables = synthetic.Paging(ram, levels, tables_at=TABLES)
    base = DIRECT[levels] if base is None else base
    tables.map_run(base, 0, 2 * MIB, flags=RW | NX)  # split, as after set_memory_*
    tables.map_run(base + 2 * MIB, 2 * MIB, 14 * MIB, 2, flags=RW | NX)
    tables.map(TEXT & ~(2 * MIB - 1), 4 * MIB, 2, flags=PRESENT)
    return tables


def view_of(synthetic, tables, **changes):
    return View(tables.ram, [synthetic.cpu_state(tables.root, tables.levels, **changes)])


def buffer(address, storage):
    return SimpleNamespace(address=address, storage=storage)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("moved", [0, 0x3F * GIB], ids=["nokaslr", "kaslr"])
def test_direct_map_is_found_wherever_it_is(synthetic, levels, moved):
    tables = kernel(synthetic, levels, DIRECT[levels] + moved)
    view = view_of(synthetic, tables)
    assert view.levels == levels
    assert (view.direct_map.base, view.direct_map.coverage) == (DIRECT[levels] + moved, 16 * MIB)
    assert view.direct_map_anomalies() == ()


def test_the_image_and_device_memory_are_not_taken_for_the_direct_map(synthetic):
    tables = kernel(synthetic)
    tables.map_run(0xFFFF_FFFF_8000_0000, 0, 32 * MIB, 2)  # larger than RAM
    tables.map(DIRECT[4] + 6 * MIB, 6 * MIB, 2, flags=0)  # pages may be missing from the direct map
    tables.map(VMALLOC, 3 * GIB, 3)  # a gigabyte of somebody's BAR
    view = view_of(synthetic, tables)
    assert (view.direct_map.base, view.direct_map.coverage) == (DIRECT[4], 14 * MIB)


def test_no_direct_map_is_an_error(synthetic):
    tables = synthetic.Paging(synthetic.Ram((0, 16 * MIB)), tables_at=TABLES)
    tables.map(TEXT & ~(2 * MIB - 1), 4 * MIB, 2)
    view = view_of(synthetic, tables)
    with pytest.raises(OracleError, match="no direct map"):
        _ = view.direct_map


def test_anomalies_are_the_direct_maps_and_over_ram_only(synthetic):
    tables = kernel(synthetic)
    tables.map(DIRECT[4] + 0x5000, 0x5000, flags=RW | AS_WC)
    tables.map(DIRECT[4] + 6 * MIB, 6 * MIB, 2, flags=RW | AS_UCM)
    tables.map(DIRECT[4] + 8 * MIB, 8 * MIB, 2, flags=RW | 1 << 12)  # slot 4 is WB too, and still not index 0
    tables.map(DIRECT[4] + 3 * GIB, 3 * GIB, 2, flags=RW | AS_WC)  # not RAM
    tables.map(VMALLOC, 0x5000, flags=RW | AS_WC)  # not the direct map
    view = view_of(synthetic, tables)
    found = view.direct_map_anomalies()
    assert [(leaf.range, leaf.pat_index, leaf.pat_type) for leaf in found] == [
        (PhysRange(0x5000, 4096), 1, WC),
        (PhysRange(6 * MIB, 2 * MIB), 2, MemoryType.UC_MINUS),
        (PhysRange(8 * MIB, 2 * MIB), 4, WB),
    ]


def test_walk_gives_a_typed_leaf(synthetic):
    tables = kernel(synthetic)
    tables.map(VMALLOC, 0x7000, flags=RW | NX | AS_WT)
    leaf = view_of(synthetic, tables).walk(VMALLOC + 0x123)
    assert (leaf.va, leaf.pa, leaf.size, leaf.level, leaf.pat_index) == (VMALLOC, 0x7000, 4096, 1, 7)
    assert (leaf.pat_type, leaf.mtrr_type, leaf.effective) == (WT, WB, WT)
    assert (leaf.user, leaf.writable, leaf.executable, leaf.cpus) == (False, True, False, (0,))
    assert view_of(synthetic, tables).walk(VMALLOC + 0x1000) is None


def test_mtrrs_count_byte_by_byte_in_a_leaf_that_spans_several(synthetic):
    ram = synthetic.Ram((0, 16 * MIB))
    tables = synthetic.Paging(ram, tables_at=TABLES)
    tables.map_run(DIRECT[4], 0, 16 * MIB, 2)
    view = view_of(synthetic, tables)
    assert view.walk(DIRECT[4] + 0x1000).mtrr_type is WB
    assert view.walk(DIRECT[4] + 0xA0000).effective is UC
    assert view.walk(DIRECT[4] + 0xC0000).effective is WP
    assert [leaf.effective for leaf in view.aliases([PhysRange(0x1000, 4096)])] == [WB]
    assert [leaf.effective for leaf in view.aliases([PhysRange(0xA0000, 4096)])] == [UC]
    both = view.aliases([PhysRange(0x9F000, 4096), PhysRange(0xFF000, 4096)])
    assert [leaf.effective for leaf in both] == [WB, WP]
    assert view.types_of(buffer(DIRECT[4] + 0x9F000, 0x2000)) == {WB, UC}
    assert view.mtrr_type(0xA0000) is UC


def test_physical_of_joins_what_is_contiguous(synthetic):
    tables = kernel(synthetic)
    for page, pa in enumerate([0x8000, 0x9000, 0x4000, 0x5000, 0x7000]):
        tables.map(VMALLOC + page * 4096, pa)
    view = view_of(synthetic, tables)
    assert view.physical_of(VMALLOC + 0x10, 0x4FF0) == (
        PhysRange(0x8010, 0x1FF0),
        PhysRange(0x4000, 0x2000),
        PhysRange(0x7000, 0x1000),
    )
    assert view.physical_of(DIRECT[4] + 0x1FF000, 0x300001) == (PhysRange(0x1FF000, 0x300001),)
    assert view.physical_of(VMALLOC, 0) == ()


def test_unmapped_names_the_address_and_the_level(synthetic):
    tables = kernel(synthetic)
    tables.map(VMALLOC, 0x8000)
    view = view_of(synthetic, tables)
    with pytest.raises(
        Unmapped, match=r"0xffffc90000001000 is not mapped: the walk ends at level 1"
    ) as caught:
        view.physical_of(VMALLOC + 0x800, 0x1000)
    assert (caught.value.va, caught.value.level) == (VMALLOC + 0x1000, 1)
    with pytest.raises(Unmapped) as caught:
        view.types_of(buffer(VMALLOC + 2 * MIB, 8))
    assert caught.value.level == 2
    with pytest.raises(Unmapped) as caught:
        view.physical_of(0xFFFF_9000_0000_0000, 1)
    assert caught.value.level == 4


def test_aliases_from_everywhere(synthetic):
    tables = kernel(synthetic)
    tables.map(VMALLOC, 0x8000, flags=RW | AS_WC)
    tables.map(USER_VA, 0x8000, flags=RW | USER | AS_UCM)
    view = view_of(synthetic, tables)
    found = view.aliases([PhysRange(0x8FFF, 1)])
    assert [(leaf.va, leaf.user, leaf.effective) for leaf in found] == [
        (USER_VA, True, UC),
        (DIRECT[4] + 0x8000, False, WB),
        (VMALLOC, False, WC),
    ]
    assert view.aliases([PhysRange(0x9000, 1), PhysRange(0x8000, 0)]) == view.aliases([PhysRange(0x9000, 1)])
    assert view.types_of(buffer(DIRECT[4] + 0x8FFF, 1)) == {UC, WB, WC}
    assert view.pat_types_of(buffer(DIRECT[4] + 0x8FFF, 1)) == {MemoryType.UC_MINUS, WB, WC}
    assert view.types_of(buffer(DIRECT[4] + 0x9000, 1)) == {WB}
    assert view.types_of(buffer(DIRECT[4] + 0x9000, 0)) == set()


def test_a_process_that_is_not_running_has_aliases_too(synthetic):
    tables = kernel(synthetic)
    sleeper = synthetic.Paging(tables.ram, tables_at=0xA0_0000)
    tables.ram.write(sleeper.root + 2048, tables.ram.read(tables.root + 2048, 2048))
    sleeper.map(USER_VA, 0x8000, flags=RW | USER | AS_WC)
    view = view_of(synthetic, tables)
    assert view.types_of(buffer(DIRECT[4] + 0x8000, 4096)) == {WB, WC}
    assert view.address_spaces == (tables.root, sleeper.root)
    assert view.walk(USER_VA) is None
    assert view.walk(USER_VA, cr3=sleeper.root).pa == 0x8000
    assert view.physical_of(USER_VA, 4096, cr3=sleeper.root) == (PhysRange(0x8000, 4096),)


def test_ram_that_was_never_touched_is_not_searched_when_the_machine_can_tell(synthetic):
    tables = kernel(synthetic)
    sleeper = synthetic.Paging(tables.ram, tables_at=0xA0_0000)
    tables.ram.write(sleeper.root + 2048, tables.ram.read(tables.root + 2048, 2048))
    sleeper.map(USER_VA, 0x8000, flags=RW | USER)
    tables.ram.populated = lambda: ((TABLES, MIB),)
    assert len(view_of(synthetic, tables).aliases([PhysRange(0x8000, 1)])) == 1
    tables.ram.populated = lambda: ((0xA0_0000, 4096), (TABLES, MIB))
    assert len(view_of(synthetic, tables).aliases([PhysRange(0x8000, 1)])) == 2


def two_cpus(synthetic, tables, **second):
    other = synthetic.cpu_state(**({"cr3": tables.root, "index": 1} | second))
    return View(tables.ram, [synthetic.cpu_state(tables.root), other])


def test_a_pat_set_on_one_cpu_only_is_caught(synthetic):
    tables = kernel(synthetic)
    tables.map(VMALLOC, 0x8000, flags=RW | AS_WC)
    tables.map(DIRECT[4] + 0x8000, 0x8000, flags=RW | AS_WC)
    assert two_cpus(synthetic, tables).uniform
    assert two_cpus(synthetic, tables).types_of(buffer(VMALLOC, 4096)) == {WC}
    view = two_cpus(synthetic, tables, pat=0x0007040600070406)  # slot 1 is WT there
    assert not view.uniform
    assert view.types_of(buffer(VMALLOC, 4096)) == {WC, WT}
    assert view.pat_types_of(buffer(VMALLOC, 4096)) == {WC, WT}
    found = [leaf for leaf in view.aliases([PhysRange(0x8000, 1)]) if leaf.va == VMALLOC]
    assert [(leaf.effective, leaf.cpus) for leaf in found] == [(WC, (0,)), (WT, (1,))]


def test_mtrrs_or_cache_disable_on_one_cpu_only(synthetic):
    tables = kernel(synthetic)
    assert two_cpus(synthetic, tables, mtrr_def_type=0).types_of(buffer(DIRECT[4], 1)) == {WB, UC}
    assert two_cpus(synthetic, tables, cr0=0xC0050033).types_of(buffer(DIRECT[4], 1)) == {WB, UC}


def test_a_vcpu_that_was_never_started_is_left_out(synthetic):
    tables = kernel(synthetic)
    view = two_cpus(synthetic, tables, cr0=0x60000010, cr3=0, cr4=0, efer=0, pat=0x0007040600070406)
    assert view.uniform
    assert len(view.cpus) == 2
    assert view.types_of(buffer(DIRECT[4], 1)) == {WB}


def test_machines_that_cannot_be_judged(synthetic):
    tables = kernel(synthetic)
    with pytest.raises(NotLongMode):
        view_of(synthetic, tables, cr0=0x60000010, efer=0)
    with pytest.raises(NotLongMode, match="vCPU 1"):
        two_cpus(synthetic, tables, efer=0)  # paging, but as a 32-bit processor
    with pytest.raises(OracleError, match="different numbers of levels"):
        two_cpus(synthetic, tables, cr4=0x750EB0 | 1 << 12)
    with pytest.raises(ReservedType, match="IA32_PAT"):
        two_cpus(synthetic, tables, pat=0x0407050600070206)


def test_a_wrong_cr3_is_an_error_not_an_empty_answer(synthetic):
    tables = kernel(synthetic)
    view = View(tables.ram, [synthetic.cpu_state(0x3000)])
    with pytest.raises(OracleError, match="maps nothing in the kernel half"):
        view.aliases([PhysRange(0, 1)])
    outside = View(tables.ram, [synthetic.cpu_state(0x7_0000_0000)])
    with pytest.raises(OracleError, match="not in RAM"):
        outside.aliases([PhysRange(0, 1)])


def test_memory_is_read_and_written_by_physical_address(synthetic):
    tables = kernel(synthetic)
    view = view_of(synthetic, tables)
    view.write(0x5001, b"abc")
    assert view.read(0x5000, 5) == b"\0abc\0"
    with pytest.raises(BadInput):
        view.read(1 << 40, 1)


def test_writing_a_page_table_is_seen_at_once(synthetic):
    tables = kernel(synthetic)
    view = view_of(synthetic, tables)
    assert view.direct_map_anomalies() == ()
    va = DIRECT[4] + 0x5000
    slot = tables.slot(tables.table_for(va, 1), va, 1)
    view.write(slot, (0x5000 | RW | AS_WC).to_bytes(8, "little"))
    assert len(view.direct_map_anomalies()) == 1
    assert view.types_of(buffer(va, 1)) == {WC}


@given(data=st.data())
def test_bulk_answers_equal_single_ones(synthetic, data):
    """Many buffers at once, against the aliases of each page asked for one by one."""
    tables = kernel(synthetic)
    flags = st.sampled_from([RW, RW | AS_WC, RW | AS_UCM, RW | AS_WT])
    for page in range(data.draw(st.integers(4, 24))):
        pa = data.draw(st.integers(0, 32)) * 4096 + data.draw(st.sampled_from([0, 0x90000, 4 * MIB]))
        tables.map(VMALLOC + page * 4096, pa, flags=data.draw(flags))
        last = page
    tables.map(USER_VA, 0x3000, flags=data.draw(flags) | USER)
    tables.map(USER_VA + 2 * MIB, 4 * MIB, 2, flags=RW | USER | PWT)
    second = data.draw(st.sampled_from([{}, {"pat": 0x0007040600070406}, {"mtrr_def_type": 0}]))
    view = two_cpus(synthetic, tables, **second)
    bufs = []
    for _ in range(data.draw(st.integers(0, 8))):
        spans = [(VMALLOC, last * 4096 + 4096), (DIRECT[4], 5 * MIB), (USER_VA, 4096)]
        base, span = data.draw(st.sampled_from(spans))
        start = data.draw(st.integers(0, span))
        bufs.append(buffer(base + start, data.draw(st.integers(0, min(span - start, 20000)))))
    expected, expected_pat = [], []
    for buf in bufs:
        first, end = buf.address & ~4095, buf.address + buf.storage
        pages = np.arange(first, end if buf.storage else first, 4096, dtype=object)
        leaves = [leaf for page in pages for leaf in view.aliases(view.physical_of(page, 4096))]
        expected.append({leaf.effective for leaf in leaves})
        expected_pat.append({leaf.pat_type for leaf in leaves})
    assert view.types_of_many(bufs) == expected
    assert view.pat_types_of_many(bufs) == expected_pat
    assert [view.types_of(buf) for buf in bufs] == expected


def test_kernel_addresses_that_differ_between_processes_are_taken_from_the_cpu(synthetic):
    """The LDT slot of the kernel half is per process; the bulk translation must not mix them up."""
    tables = kernel(synthetic)
    ldt = 0xFFFF_8800_0000_0000
    other = synthetic.Paging(tables.ram, tables_at=0xA0_0000)
    tables.ram.write(other.root + 2048, tables.ram.read(tables.root + 2048, 2048))
    tables.map(ldt, 0x8000)
    other.map(ldt, 0x9000, flags=RW | AS_WC)
    view = view_of(synthetic, tables)
    assert view.physical_of(ldt, 4096) == (PhysRange(0x8000, 4096),)
    assert view.types_of(buffer(ldt, 4096)) == {WB}
