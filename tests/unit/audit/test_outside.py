# SPDX-License-Identifier: MIT
"""Live memory judged from outside, on machines made of page tables whose truth is known."""

import errno
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.audit import Book, Direction, Event, Flag, Kind, Outside, Piece
from harness.link import GuestOSError
from harness.oracle import Oracle

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30
DIRECT, VMALLOC, USER = 0xFFFF_8880_0000_0000, 0xFFFF_C900_0000_0000, 0x7F00_0000_0000
RW, PCD, PWT, US = 3, 1 << 4, 1 << 3, 1 << 2
WC, UC_MINUS, UC, WT = PWT, PCD, PCD | PWT, 1 << 7 | PCD | PWT
RAM = 64 * MIB
DEV, MEMBARRIER = 0x100, 324
TO, FROM, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BIDIRECTIONAL
ROOT, CONTEXT, TABLE, LAST = (RAM - (page + 1) * PAGE for page in range(4))
EDU = "0000:00:02.0"
M64 = (1 << 64) - 1


def _synthetic():
    path = Path(__file__).parents[1] / "oracle" / "conftest.py"
    spec = importlib.util.spec_from_file_location("oracle_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Synthetic


class Rig:
    """A machine with a direct map in small pages, and a book to write into."""

    def __init__(self, devices=(), cmdline=(), **cpu):
        synthetic = _synthetic()
        self.ram = synthetic.Ram((0, RAM))
        self.tables = synthetic.Paging(self.ram, tables_at=48 * MIB)
        self.tables.map_run(DIRECT, 0, 8 * MIB, 2)
        self.tables.map_run(DIRECT + 8 * MIB, 8 * MIB, 8 * MIB, 1)
        self.tables.map_run(DIRECT + 16 * MIB, 16 * MIB, RAM - 16 * MIB, 2)
        self.machine = synthetic.Machine(self.ram, [synthetic.cpu_state(self.tables.root, **cpu)])
        self.machine.spec = SimpleNamespace(devices=devices, cmdline=cmdline)
        self.machine.qmp = SimpleNamespace(hmp=self._monitor)
        self.enabled, self.waits, self.has_barriers = True, 0, True
        self.guest = SimpleNamespace(machine=self.machine, syscall=self._syscall)
        self.book = Book()
        self.number = 0
        self.events: list[Event] = []
        self.outside = Outside(self.guest, Oracle(self.machine), self._drain)
        self.after_wait = None

    def _syscall(self, number, *_, what):
        """Other processors have gone on when the kernel has waited for them, not when the agent answers."""
        if number != MEMBARRIER:
            return
        if not self.has_barriers:
            raise GuestOSError(errno.ENOSYS, what)
        self.waits += 1
        if self.after_wait:
            self.after_wait()

    def _drain(self):
        found, self.events = self.events, []
        return found

    def _monitor(self, line):
        at = int(line.split()[1], 16)
        status = 0x8000_0000 if self.enabled else 0
        return f"{at:016x}: { ({0xFED9001C: status, 0xFED90020: ROOT}[at]):#018x}\r\n"

    def event(self, kind, **fields):
        self.number += 1
        about = {"device": DEV, "name": EDU, "subsystem": "pci", "driver": "drv", "module": "drv"}
        masks = {"mask": M64, "coherent_mask": M64}
        one = Event(number=self.number, kind=kind, **{**about, **masks, **fields})
        self.events.append(one)
        return one

    def buffer(self, physical=8 * MIB, pages=1, **fields):
        made = {"bus": physical, "virtual": DIRECT + physical, "physical": physical, "size": pages * PAGE}
        return self.event(Kind.ALLOC, **{**made, **fields})

    def mapping(self, physical=9 * MIB + 256, size=1000, direction=TO, **fields):
        made = {"bus": physical, "virtual": DIRECT + physical, "physical": physical, "size": size}
        return self.event(Kind.MAP_PAGE, **{**made, "direction": direction, **fields})

    def typed(self, kind, physical=8 * MIB, pages=1, bits=0, **fields):
        """Change a type: the call, and what the tables say afterwards."""
        for at in range(physical, physical + pages * PAGE, PAGE):
            self.tables.map(DIRECT + at, at, flags=RW | bits)
        return self.event(kind, virtual=DIRECT + physical, physical=physical, size=pages, **fields)

    def look(self):
        return [(one.rule, one.event.number) for one in self.outside.look(self.book)]


class Translated(Rig):
    """The same behind a unit whose tables have room for bus addresses from 0xffe00000 on."""

    BUS = 0xFFE0_0000

    def __init__(self, **more):
        super().__init__(devices=("intel-iommu,intremap=off", "edu"), **more)
        self.ram.put_u64(ROOT, CONTEXT | 1)
        self.ram.put_u64(CONTEXT + 16 * 0x10, TABLE | 1)
        self.ram.put_u64(CONTEXT + 16 * 0x10 + 8, 1 | 4 << 8)
        self.ram.put_u64(TABLE + 8 * 3, (LAST - PAGE) | 3)
        self.ram.put_u64(LAST - PAGE + 8 * 511, LAST | 3)

    def enter(self, bus, physical, rights):
        self.ram.put_u64(LAST + 8 * (bus >> 12 & 511), physical | rights)


@pytest.fixture
def rig():
    return Rig()


@pytest.fixture
def unit():
    return Translated()


def test_nothing_alive_is_nothing_wrong(rig):
    assert rig.look() == []
    assert rig.machine.log == ["stop", "capture", "continue"]


def test_a_good_driver(rig):
    rig.buffer(pages=4)
    rig.mapping()
    rig.event(Kind.MAP_SG, pieces=(Piece(10 * MIB, 100, 10 * MIB, 100), Piece(11 * MIB, 9, 11 * MIB, 9)))
    rig.buffer(
        12 * MIB, pages=2, virtual=VMALLOC, pieces=(Piece(12 * MIB, PAGE), Piece(12 * MIB + PAGE, PAGE))
    )
    rig.tables.map(VMALLOC, 12 * MIB)
    rig.tables.map(VMALLOC + PAGE, 12 * MIB + PAGE)
    assert rig.look() == []


# ------------------------------------------------------------------------------------------- where memory is


def test_a_kernel_address_that_leads_elsewhere(rig):
    rig.tables.map(VMALLOC, 9 * MIB)
    made = rig.buffer(virtual=VMALLOC)
    assert rig.look() == [("not-where-claimed", made.number)]


def test_a_kernel_address_that_leads_nowhere(rig):
    made = rig.buffer(virtual=VMALLOC)
    (found,) = rig.outside.look(rig.book)
    assert (found.rule, found.event, found.entry.made) == ("not-where-claimed", made, made)
    assert "nowhere" in found.evidence


def test_the_last_page_counts(rig):
    for page in range(3):
        rig.tables.map(VMALLOC + page * PAGE, 8 * MIB + page * PAGE)
    good = rig.buffer(pages=3, virtual=VMALLOC)
    assert rig.look() == []
    rig.tables.map(VMALLOC + 2 * PAGE, 9 * MIB)
    assert rig.look() == [("not-where-claimed", good.number)]


def test_an_address_that_is_none_is_not_looked_up(rig):
    rig.buffer(attrs=1 << 4, virtual=0xDEAD, physical=0, bus=8 * MIB)
    rig.buffer(attrs=1 << 4, virtual=0xDEAD)
    assert rig.look() == []


def test_blocks_of_pools_are_looked_at(rig):
    rig.event(Kind.POOL_CREATE, owner=7, size=64)
    good = rig.event(Kind.POOL_ALLOC, owner=7, bus=8 * MIB, physical=8 * MIB, virtual=DIRECT + 8 * MIB)
    assert rig.look() == []
    rig.event(Kind.POOL_ALLOC, owner=7, bus=9 * MIB, physical=9 * MIB, virtual=DIRECT + 10 * MIB)
    assert rig.look() == [("not-where-claimed", good.number + 1)]


def test_a_bus_address_is_the_physical_one_where_nothing_translates(rig):
    made = rig.buffer(bus=9 * MIB)
    assert rig.look() == [("not-where-claimed", made.number)]


@pytest.mark.parametrize(
    ("mask", "cmdline", "wrong"),
    [(M64, (), True), ((1 << 23) - 1, (), False), (M64, ("swiotlb=force",), False), (0, (), True)],
)
def test_a_bounce_buffer_is_somewhere_else_and_has_to_be(mask, cmdline, wrong):
    rig = Rig(cmdline=cmdline)
    made = rig.mapping(bus=4 * MIB, mask=mask)
    assert rig.look() == ([("not-where-claimed", made.number)] if wrong else [])


# -------------------------------------------------------------------------------------------- memory types


@pytest.mark.parametrize(("kind", "bits"), [(Kind.MEMORY_WC, WC), (Kind.MEMORY_UC, UC_MINUS)])
def test_a_type_that_was_asked_for_and_set(rig, kind, bits):
    rig.buffer(pages=2)
    rig.typed(kind, pages=2, bits=bits)
    assert rig.look() == []


def test_a_type_that_was_asked_for_and_not_set(rig):
    rig.buffer()
    call = rig.typed(Kind.MEMORY_WC, bits=UC_MINUS)
    assert rig.look() == [("mixed-types", call.number)]


def test_a_type_that_was_asked_for_and_never_came(rig):
    made = rig.buffer()
    call = rig.event(Kind.MEMORY_WC, virtual=DIRECT + 8 * MIB, physical=8 * MIB, size=1)
    (found,) = rig.outside.look(rig.book)
    assert (found.rule, found.event, found.entry.made) == ("mixed-types", call, made)


def test_without_a_slot_for_it_write_combined_is_uncached():
    rig = Rig(pat=0x0007040600070406)
    rig.buffer()
    rig.typed(Kind.MEMORY_WC, bits=UC_MINUS)
    assert rig.look() == []


def test_half_a_buffer(rig):
    rig.buffer(pages=4)
    call = rig.typed(Kind.MEMORY_WC, pages=2, bits=WC)
    (found,) = rig.outside.look(rig.book)
    assert (found.rule, found.event) == ("mixed-types", call)
    assert "2 WB, 2 WC" in found.evidence


def test_half_a_buffer_in_pieces(rig):
    pieces = (Piece(8 * MIB, PAGE), Piece(9 * MIB, PAGE))
    made = rig.event(
        Kind.ALLOC_NONCONTIGUOUS, bus=8 * MIB, physical=8 * MIB, size=2 * PAGE, pieces=pieces, name="drv.0"
    )
    call = rig.typed(Kind.MEMORY_WC, bits=WC)
    found = [one for one in rig.outside.look(rig.book) if one.rule != "not-where-claimed"]
    assert [(one.rule, one.event, one.entry.made) for one in found] == [("mixed-types", call, made)]


def test_a_mapping_may_be_of_a_part_that_changes(rig):
    rig.mapping(8 * MIB, size=2 * PAGE)
    rig.typed(Kind.MEMORY_WC, bits=WC)
    assert rig.look() == []


def test_what_was_typed_before_it_was_handed_out_is_not_the_new_owners(rig):
    rig.typed(Kind.MEMORY_WC, bits=WC)
    rig.buffer(pages=2)
    assert rig.look() == []


def test_a_list_may_be_of_pages_of_several_types(rig):
    rig.event(Kind.MAP_SG, pieces=tuple(Piece(at, PAGE, at, PAGE) for at in (8 * MIB, 9 * MIB)))
    rig.typed(Kind.MEMORY_WC, bits=WC)
    assert rig.look() == []


def test_a_type_that_nobody_asked_for(rig):
    rig.tables.map(DIRECT + 8 * MIB, 8 * MIB, flags=RW | WC)
    made = rig.buffer()
    assert rig.look() == [("mixed-types", made.number)]


def test_a_type_from_before_the_ledger(rig):
    rig.book = Book(whole=False)
    rig.tables.map(DIRECT + 8 * MIB, 8 * MIB, flags=RW | WC)
    rig.buffer()
    assert rig.look() == []


def test_a_window_explains_a_type(rig):
    for at in (DIRECT + 8 * MIB, VMALLOC):
        rig.tables.map(at, 8 * MIB, flags=RW | WT)
    rig.buffer()
    assert rig.look() == []


def test_a_buffers_own_address_is_no_window(rig):
    for at in (DIRECT + 8 * MIB, VMALLOC):
        rig.tables.map(at, 8 * MIB, flags=RW | WT)
    made = rig.buffer(virtual=VMALLOC)
    assert rig.look() == [("mixed-types", made.number)]


@pytest.mark.parametrize("owned", [True, False])
def test_a_window_of_another_type(rig, owned):
    if owned:
        rig.buffer()
    rig.tables.map(VMALLOC, 8 * MIB)
    call = rig.typed(Kind.MEMORY_WC, bits=WC)
    (found,) = rig.outside.look(rig.book)
    assert (found.rule, found.event, found.entry is not None) == ("alias-conflict", call, owned)
    assert f"WB at {VMALLOC:#x}" in found.evidence


def test_uncached_of_both_kinds_is_one_type(rig):
    rig.buffer()
    rig.tables.map(VMALLOC, 8 * MIB, flags=RW | UC)
    rig.typed(Kind.MEMORY_UC, bits=UC_MINUS)
    assert rig.look() == []


def test_user_space_with_another_type(rig):
    rig.buffer()
    rig.typed(Kind.MEMORY_WC, bits=WC)
    rig.tables.map(USER + PAGE, 8 * MIB, flags=RW | US)
    call = rig.event(Kind.USER_PAGES, owner=USER, size=3 * PAGE)
    rig.event(Kind.USER_PAGE, owner=USER + 4 * PAGE, size=PAGE)
    assert rig.look() == [("user-mapping-type", call.number)]


def test_user_space_with_the_same_type(rig):
    rig.buffer()
    rig.typed(Kind.MEMORY_WC, bits=WC)
    rig.tables.map(USER, 8 * MIB, flags=RW | US | WC)
    assert rig.look() == []


def test_a_user_mapping_that_nobody_saw_made(rig):
    rig.buffer()
    call = rig.typed(Kind.MEMORY_WC, bits=WC)
    rig.tables.map(USER, 8 * MIB, flags=RW | US)
    assert rig.look() == [("user-mapping-type", call.number)]


@pytest.mark.parametrize("window", [False, True])
def test_a_call_that_was_accused_already_is_not_accused_of_what_came_of_it(rig, window):
    rig.buffer(pages=2)
    if window:
        rig.tables.map(VMALLOC, 8 * MIB)
    call = rig.typed(Kind.MEMORY_WC, bits=WC)
    rig.events[-1] = replace(call, virtual=call.virtual + 64, flags=Flag(0))
    assert rig.look() == []
    assert [one.rule for one in rig.book.violations] == ["unaligned-set-memory"]


def test_the_next_owner_is_not_accused_of_what_was_left(rig):
    rig.buffer(pages=2)
    rig.typed(Kind.MEMORY_WC, bits=WC)
    rig.event(Kind.FREE, bus=8 * MIB, virtual=DIRECT + 8 * MIB, size=2 * PAGE)
    rig.buffer(pages=2)
    assert rig.look() == []


# ---------------------------------------------------------------------------------------------- behind a unit


def test_ranges_and_memory_are_paired_byte_by_byte(unit):
    """Of three pages in two pieces the device sees two ranges, cut elsewhere."""
    pieces = (Piece(8 * MIB, 2 * PAGE, unit.BUS, PAGE), Piece(9 * MIB, PAGE, unit.BUS + 9 * PAGE, 2 * PAGE))
    for at, physical in ((0, 8 * MIB), (9, 8 * MIB + PAGE), (10, 9 * MIB)):
        unit.enter(unit.BUS + at * PAGE, physical, 3)
    unit.event(Kind.MAP_SG, direction=BOTH, bus=unit.BUS, physical=8 * MIB, size=3 * PAGE, pieces=pieces)
    assert unit.look() == []


def test_a_good_driver_behind_a_unit(unit):
    unit.enter(unit.BUS, 8 * MIB, 3)
    unit.enter(unit.BUS + PAGE, 9 * MIB, 1)
    unit.enter(unit.BUS + 2 * PAGE, 10 * MIB, 3)  # what Linux makes of it: reading comes with writing
    unit.buffer(bus=unit.BUS)
    unit.mapping(bus=unit.BUS + PAGE + 256)
    unit.mapping(10 * MIB, direction=FROM, bus=unit.BUS + 2 * PAGE)
    assert unit.look() == []


@pytest.mark.parametrize(
    ("direction", "rights", "rule"),
    [
        (TO, 0, "unreachable-bus-address"),
        (TO, 2, "wrong-iommu-permission"),
        (TO, 3, "wrong-iommu-permission"),
        (TO, 1, None),
        (FROM, 1, "wrong-iommu-permission"),
        (FROM, 2, None),
        (FROM, 3, None),
        (BOTH, 1, "wrong-iommu-permission"),
        (BOTH, 2, "wrong-iommu-permission"),
        (BOTH, 3, None),
    ],
)
def test_rights_are_those_of_the_direction(unit, direction, rights, rule):
    unit.enter(unit.BUS, 9 * MIB, rights)
    made = unit.mapping(bus=unit.BUS + 256, direction=direction)
    assert unit.look() == ([(rule, made.number)] if rule else [])


@pytest.mark.parametrize("wrong", [8 * MIB, 9 * MIB + PAGE, 1 << 40])
def test_a_bus_address_that_leads_elsewhere(unit, wrong):
    unit.enter(unit.BUS, wrong, 1)
    made = unit.mapping(bus=unit.BUS + 256)
    assert unit.look() == [("not-where-claimed", made.number)]


def test_a_bus_address_with_another_offset_than_its_memory(unit):
    unit.enter(unit.BUS, 9 * MIB, 1)
    made = unit.mapping(bus=unit.BUS + 257)
    assert unit.look() == [("not-where-claimed", made.number)]


def test_a_mapping_that_ends_on_the_next_page(unit):
    unit.enter(unit.BUS, 9 * MIB, 1)
    made = unit.mapping(9 * MIB, size=PAGE + 1, bus=unit.BUS)
    assert unit.look() == [("unreachable-bus-address", made.number)]
    unit.enter(unit.BUS + PAGE, 9 * MIB + PAGE, 1)
    assert unit.look() == []


def test_entries_of_a_list_that_the_unit_has_joined(unit):
    """Three pieces of memory, one range of addresses: in order, they are the same bytes."""
    where = (8 * MIB, 10 * MIB, 9 * MIB)
    for number, physical in enumerate(where):
        unit.enter(unit.BUS + number * PAGE, physical, 1)
    first = Piece(where[0], PAGE, unit.BUS, 3 * PAGE)
    rest = [Piece(physical, PAGE) for physical in where[1:]]
    made = unit.event(
        Kind.MAP_SG, direction=TO, bus=unit.BUS, physical=where[0], size=3 * PAGE, pieces=(first, *rest)
    )
    assert unit.look() == []
    unit.enter(unit.BUS + PAGE, where[2], 1)
    assert unit.look() == [("not-where-claimed", made.number)]


def test_a_device_that_the_unit_refuses(unit):
    made = unit.buffer(name="0000:00:03.0")
    (found,) = unit.outside.look(unit.book)
    assert (found.rule, found.event) == ("unreachable-bus-address", made)
    assert "refuses" in found.evidence


def test_what_is_no_pci_device_is_not_behind_the_unit(unit):
    unit.buffer(name="drv.0", subsystem="platform")
    assert unit.look() == []


def test_a_unit_that_is_off_translates_nothing(unit):
    unit.enabled = False
    unit.buffer()
    made = unit.mapping(bus=unit.BUS)
    assert unit.look() == [("not-where-claimed", made.number)]


def test_pass_through_is_no_translation(unit):
    unit.ram.put_u64(CONTEXT + 16 * 0x10, 2 << 2 | 1)
    unit.buffer()
    made = unit.mapping(bus=unit.BUS)
    assert unit.look() == [("not-where-claimed", made.number)]


def test_virtios_unit_is_left_to_the_device():
    rig = Rig(devices=("virtio-iommu-pci", "edu"))
    rig.mapping(bus=0xFFFF_0000)
    assert rig.look() == []


def test_what_is_unmapped_is_gone(unit):
    unit.enter(unit.BUS, 9 * MIB, 1)
    unit.mapping(bus=unit.BUS + 256)
    ended = unit.event(Kind.UNMAP_PAGE, bus=unit.BUS + 256, size=1000, direction=TO)
    (found,) = unit.outside.look(unit.book)
    assert (found.rule, found.event) == ("wrong-iommu-permission", ended)
    assert "still leads" in found.evidence
    unit.enter(unit.BUS, 0, 0)
    assert unit.look() == []


def test_a_page_that_is_in_use_again_is_not_left_over(unit):
    unit.enter(unit.BUS, 9 * MIB, 1)
    unit.mapping(bus=unit.BUS + 256)
    unit.event(Kind.UNMAP_PAGE, bus=unit.BUS + 256, size=1000, direction=TO)
    unit.mapping(9 * MIB, size=64, bus=unit.BUS)
    assert unit.look() == []


def test_what_was_unmapped_wrongly_is_that_calls_fault(unit):
    for page in range(2):
        unit.enter(unit.BUS + page * PAGE, 9 * MIB + page * PAGE, 1)
    unit.mapping(9 * MIB, size=2 * PAGE, bus=unit.BUS)
    unit.event(Kind.UNMAP_PAGE, bus=unit.BUS, size=PAGE, direction=TO)
    assert unit.look() == []
    assert [one.rule for one in unit.book.violations] == ["unmap-size"]


# ------------------------------------------------------------------------------------looks, and what is left


def test_what_is_seen_once_only_was_on_its_way(rig):
    rig.buffer(pages=2)
    rig.tables.map(DIRECT + 8 * MIB, 8 * MIB, flags=RW | WC)
    rig.after_wait = lambda: rig.typed(Kind.MEMORY_WC, pages=2, bits=WC)
    assert rig.look() == []
    assert rig.waits == 1


def test_a_kernel_without_barriers_is_looked_at_as_well(rig):
    rig.has_barriers = False
    made = rig.buffer(bus=9 * MIB)
    assert rig.look() == [("not-where-claimed", made.number)]


def test_what_is_new_in_a_second_look_is_not_told_by_it(rig):
    first = rig.buffer(virtual=VMALLOC)

    def change() -> None:
        rig.tables.map(VMALLOC, first.physical)
        rig.buffer(9 * MIB, virtual=VMALLOC + PAGE)

    rig.after_wait = change
    assert rig.look() == []


def test_thousands_are_one_look(unit):
    for number in range(3000):
        unit.buffer(8 * MIB + number % 1000 * PAGE, name="drv.0", device=number)
    assert unit.look() == []
    assert unit.machine.log.count("capture") == 1


def test_a_book_may_be_kept_by_somebody_else(rig):
    rig.outside.drain_by(lambda: rig.book.replay(rig._drain()))
    made = rig.buffer(bus=9 * MIB)
    assert rig.look() == [("not-where-claimed", made.number)]


def left(rig, module="") -> Iterator[tuple[str, int, str]]:
    return [(one.rule, one.event.number, one.event.module) for one in rig.outside.leftovers(rig.book, module)]


def test_a_type_that_is_left(rig):
    assert left(rig) == []
    call = rig.typed(Kind.MEMORY_WC, bits=WC)
    assert left(rig) == [("type-not-restored", call.number, "drv")]


def test_a_type_that_is_still_used_is_not_left(rig):
    rig.buffer(pages=2)
    rig.typed(Kind.MEMORY_WC, pages=2, bits=WC)
    assert left(rig) == []


def test_a_type_that_was_seen_freed_is_not_told_twice(rig):
    rig.buffer()
    rig.typed(Kind.MEMORY_WC, bits=WC)
    rig.event(Kind.FREE, bus=8 * MIB, virtual=DIRECT + 8 * MIB, size=PAGE)
    assert left(rig) == []
    assert [one.rule for one in rig.book.violations] == ["type-not-restored"]


def test_a_type_from_before_the_beginning_is_nobodys(rig):
    rig.tables.map(DIRECT + 8 * MIB, 8 * MIB, flags=RW | WC)
    rig.outside.begin()
    assert left(rig) == []
    rig.tables.map(DIRECT + 9 * MIB, 9 * MIB, flags=RW | WC)
    assert left(rig, "drv") == [("type-not-restored", -1, "drv")]


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 300), st.sampled_from([TO, FROM, BOTH]), st.sampled_from(["", *"pwr"])),
        max_size=25,
    )
)
def test_every_spoiled_mapping_is_found_and_no_other(rows):
    """p: another page; w: the right to write turned over; r: no entry at all."""
    unit, expected = Translated(), []
    for slot, (frame, direction, spoil) in enumerate(rows):
        bus, physical = unit.BUS + slot * PAGE, 8 * MIB + frame * PAGE
        rights = {TO: 1, FROM: 3, BOTH: 3}[direction]
        entry = {
            "": physical | rights,
            "p": physical ^ PAGE | rights,
            "w": physical | rights ^ 2,
            "r": physical,
        }[spoil]
        unit.ram.put_u64(LAST + 8 * (bus >> 12 & 511), entry)
        made = unit.mapping(physical + 8, size=PAGE - 8, direction=direction, bus=bus + 8)
        rule = {"p": "not-where-claimed", "w": "wrong-iommu-permission", "r": "unreachable-bus-address"}
        if spoil:
            expected.append((rule[spoil], made.number))
    assert sorted(unit.look()) == sorted(expected)
