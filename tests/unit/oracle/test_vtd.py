# SPDX-License-Identifier: MIT
"""The tables of a DMA remapping unit, against a model that remembers what was written into them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.oracle import (
    NOWHERE,
    Domain,
    Mode,
    OracleError,
    Remapping,
    StoppedTransfer,
    ViewExpired,
    read_fault,
    read_root,
    requester,
)
from harness.oracle.paging import Tables

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30
READ, WRITE, LARGE = 1, 2, 1 << 7
ROOT, CONTEXT, DIRECTORY, PASIDS, TABLES = (page * PAGE for page in (1, 2, 3, 4, 16))
SCALABLE = 1 << 10
BUS, DEVFN = 0, 3 << 3
NUMBER = 7
PASID = 64 + 40  # neither in the first table nor in the first half of its own
ENTRY = PASIDS + 40 * 64


class Unit:
    """Writes a unit's tables into RAM."""

    def __init__(self, synthetic, levels=3, *, scalable=False, first=False, through=False):
        self.ram = synthetic.Ram((0, 8 * MIB))
        self.levels, self.first, self.next = levels, first, TABLES + PAGE
        self.root = ROOT | (SCALABLE if scalable else 0)
        self.ram.put_u64(ROOT + 16 * BUS, CONTEXT | 1)
        if scalable:
            self._scalable(through)
        else:
            kind = 2 << 2 if through else 0
            self.ram.put_u64(CONTEXT + 16 * DEVFN, TABLES | kind | 1)
            self.ram.put_u64(CONTEXT + 16 * DEVFN + 8, NUMBER << 8 | levels - 2)

    def _scalable(self, through):
        pasid = PASID
        self.ram.put_u64(CONTEXT + 32 * DEVFN, DIRECTORY | 1)
        self.ram.put_u64(CONTEXT + 32 * DEVFN + 8, pasid)
        self.ram.put_u64(DIRECTORY + 8, PASIDS | 1)
        kind = 4 if through else 1 if self.first else 2
        width = 0 if self.first else self.levels - 2
        self.ram.put_u64(ENTRY, (0 if self.first else TABLES) | kind << 6 | width << 2 | 1)
        self.ram.put_u64(ENTRY + 8, NUMBER)
        self.ram.put_u64(ENTRY + 16, TABLES | (self.levels - 4) << 2 if self.first else 0)

    def slot(self, address, level):
        table = TABLES
        for upper in range(self.levels, level, -1):
            slot = table + 8 * (address >> 12 + 9 * (upper - 1) & 511)
            if not self.ram.u64(slot):
                self.ram.put_u64(slot, self.next | READ | WRITE)
                self.next += PAGE
            table = self.ram.u64(slot) & ~0xFFF
        return table + 8 * (address >> 12 + 9 * (level - 1) & 511)

    def map(self, address, physical, rights, level=1):
        entry = physical | rights | (LARGE if level > 1 else 0)
        self.ram.put_u64(self.slot(address, level), entry)

    @property
    def remapping(self):
        return Remapping(Tables(self.ram), self.root)

    def reach(self, *addresses):
        unit = self.remapping
        return unit.translate(unit.domain(BUS, DEVFN), addresses)


KINDS = [
    *({"levels": levels} for levels in (3, 4, 5)),
    *({"levels": levels, "scalable": True} for levels in (3, 4)),
    *({"levels": levels, "scalable": True, "first": True} for levels in (4, 5)),
]


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def unit(request, synthetic):
    return Unit(synthetic, **request.param)


def test_the_domain_is_what_was_written(unit):
    mode = Mode.FIRST_LEVEL if unit.first else Mode.SECOND_LEVEL
    assert unit.remapping.domain(BUS, DEVFN) == Domain(mode, TABLES, unit.levels, NUMBER)


@pytest.mark.parametrize(("bus", "devfn"), [(BUS, DEVFN + 1), (BUS, DEVFN | 128), (BUS + 1, DEVFN)])
def test_another_device_has_none(unit, bus, devfn):
    assert unit.remapping.domain(bus, devfn) is None


def test_an_address_leads_where_its_entry_says(unit):
    address = 0xFFFF_E000
    unit.map(address, 5 * MIB, READ | WRITE)
    reach = unit.reach(address, address + 0x123, address + PAGE - 1)
    assert reach.physical.tolist() == [5 * MIB, 5 * MIB + 0x123, 5 * MIB + PAGE - 1]
    assert reach.read.all()
    assert reach.write.all()


def test_addresses_that_only_look_right_lead_nowhere(unit):
    address = 0xFFFF_E000
    unit.map(address, 5 * MIB, READ | WRITE)
    wide = address + (1 << 12 + 9 * unit.levels)  # the same in all the bits that are translated
    reach = unit.reach(address - 1, address + PAGE, 5 * MIB, address ^ GIB, wide, (1 << 63) | address)
    assert set(reach.physical.tolist()) == {NOWHERE}
    assert not (reach.read | reach.write).any()


@pytest.mark.parametrize(("rights", "read", "write"), [(READ, True, False), (READ | WRITE, True, True)])
def test_rights_are_the_entrys(unit, rights, read, write):
    unit.map(PAGE, 2 * MIB, rights)
    reach = unit.reach(PAGE)
    assert (reach.read.tolist(), reach.write.tolist()) == ([read], [write])


def test_rights_are_no_more_than_every_level_gives(unit):
    unit.map(PAGE, 2 * MIB, READ | WRITE)
    slot = unit.slot(PAGE, 2)
    unit.ram.put_u64(slot, unit.ram.u64(slot) & ~WRITE)
    reach = unit.reach(PAGE)
    assert (reach.read.tolist(), reach.write.tolist()) == ([True], [False])


def test_write_only_is_a_right_of_the_second_level_only(unit):
    unit.map(PAGE, 2 * MIB, WRITE)
    reach = unit.reach(PAGE)
    present = not unit.first  # the first level's bit 0 is "present"
    assert (reach.read.tolist(), reach.write.tolist()) == ([False], [present])
    assert reach.physical.tolist() == [2 * MIB if present else NOWHERE]


@pytest.mark.parametrize("level", [2, 3])
def test_large_entries(unit, level):
    size = 1 << 12 + 9 * (level - 1)
    unit.map(size, 2 * size, READ, level)
    reach = unit.reach(size, 2 * size - 1, 2 * size)
    assert reach.physical.tolist() == [2 * size, 3 * size - 1, NOWHERE]
    unit.map(size, 2 * size | 1 << 12, READ, level)  # a flag there, as the processor's PAT bit
    assert unit.reach(size, size + PAGE).physical.tolist() == [2 * size, 2 * size + PAGE]


def test_a_table_outside_ram_is_not_present(unit):
    unit.ram.put_u64(unit.slot(PAGE, 2), 64 * GIB | READ | WRITE)
    assert unit.reach(PAGE).physical.tolist() == [NOWHERE]


@pytest.mark.parametrize("scalable", [False, True])
def test_pass_through_is_the_same_address(synthetic, scalable):
    unit = Unit(synthetic, scalable=scalable, through=True)
    assert unit.remapping.domain(BUS, DEVFN) == Domain(Mode.UNTRANSLATED, 0, 0, NUMBER)
    assert unit.reach(0x1234).physical.tolist() == [0x1234]


def test_a_reserved_width_is_no_domain(synthetic):
    unit = Unit(synthetic)
    unit.ram.put_u64(CONTEXT + 16 * DEVFN + 8, 6)
    with pytest.raises(OracleError, match="address width 6"):
        unit.remapping.domain(BUS, DEVFN)


def test_nested_translation_is_not_guessed_at(synthetic):
    unit = Unit(synthetic, scalable=True)
    unit.ram.put_u64(ENTRY, TABLES | 3 << 6 | 1)
    with pytest.raises(OracleError, match="type 3"):
        unit.remapping.domain(BUS, DEVFN)


@pytest.mark.parametrize("at", [CONTEXT + 32 * DEVFN, DIRECTORY + 8, ENTRY])
def test_scalable_mode_needs_every_entry_to_be_present(synthetic, at):
    unit = Unit(synthetic, scalable=True)
    unit.ram.put_u64(at, unit.ram.u64(at) & ~1)
    assert unit.remapping.domain(BUS, DEVFN) is None


def test_closed_tables_let_go_of_ram(unit):
    remapping = unit.remapping
    domain = remapping.domain(BUS, DEVFN)
    remapping.close()
    for ask in (lambda: remapping.domain(BUS, DEVFN), lambda: remapping.translate(domain, [0])):
        with pytest.raises(ViewExpired):
            ask()


PAGES = st.integers(0, (1 << 27) - 1)


@given(
    kind=st.sampled_from(KINDS),
    mapped=st.dictionaries(
        PAGES, st.tuples(st.integers(0, (1 << 40) - 1), st.sampled_from([1, 2, 3])), max_size=30
    ),
    others=st.lists(PAGES, max_size=30),
    inside=st.integers(0, PAGE - 1),
)
def test_many_addresses_at_once_are_as_a_model_says(synthetic, kind, mapped, others, inside):
    unit = Unit(synthetic, **kind)
    for page, (frame, rights) in mapped.items():
        unit.map(page * PAGE, frame * PAGE, rights)
    asked = [*mapped, *others]
    reach = unit.reach(*(page * PAGE + inside for page in asked))
    for number, page in enumerate(asked):
        frame, rights = mapped.get(page, (0, 0))
        if unit.first and not rights & READ:
            rights = 0
        where = frame * PAGE + inside if rights else NOWHERE
        assert int(reach.physical[number]) == where
        assert (bool(reach.read[number]), bool(reach.write[number])) == (bool(rights & 1), bool(rights & 2))
    assert len(reach) == len(asked)
    assert reach.physical.dtype == np.uint64


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("0000:00:03.0", (0, 0x18)),
        ("0000:02:1f.7", (2, 0xFF)),
        ("0000:00:3f.0", None),
        ("virtio0", None),
        ("iobmd.0", None),
        ("0000:00:03.0x", None),
    ],
)
def test_requesters(name, found):
    assert requester(name) == found


class Monitor:
    """Answers as QEMU 7.2 does."""

    def __init__(self, **registers):
        self.registers = {int(name[1:], 16): value for name, value in registers.items()}

    def __call__(self, line):
        command, address = line.split()
        size = {"xp/1wx": 8, "xp/1gx": 16}[command]
        at = int(address, 16)
        if at not in self.registers:
            return f"{at:016x}: Cannot access memory\r\n"
        return f"{at:016x}: 0x{self.registers[at]:0{size}x}\r\n"


def test_the_root_is_read_where_the_unit_is_on():
    on = Monitor(xfed9001c=0xC400_0000, xfed90020=0x51EF400)
    assert read_root(on) == 0x51EF400
    assert read_root(Monitor(xfed9001c=0x4400_0000, xfed90020=0x51EF000)) is None


def test_a_machine_without_a_unit_has_no_root():
    with pytest.raises(OracleError, match="no register at 0xfed9001c"):
        read_root(Monitor())


CAP = 0xD2008C22260206
FAULT = [
    (0xFFFF0500000010, StoppedTransfer(0x10, 0xFFFF_F000, True, 5)),
    (0x40FFFF0600000010, StoppedTransfer(0x10, 0xFFFF_F000, False, 6)),
    (0xC0FFFF0600000210, StoppedTransfer(0x210, 0xFFFF_F000, False, 6)),
    (0, None),
]


@pytest.mark.parametrize(("high", "fault"), FAULT)
def test_the_last_fault(high, fault):
    said = Monitor(xfed90008=CAP, xfed90220=0xFFFF_F000, xfed90228=high)
    assert read_fault(said) == fault
