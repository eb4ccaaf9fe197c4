# SPDX-License-Identifier: MIT
"""What is remembered between captures must never be seen: every look equals one that remembers nothing."""

import gc
import mmap
import os
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.oracle import Oracle, OracleError, PhysRange, StreamError
from harness.oracle.migration import StreamReader, parse_device_state
from harness.oracle.paging import Tables
from harness.oracle.recall import Touched
from harness.oracle.scan import Scanner, scan
from harness.vm.ram import GuestRam

PRESENT, WRITABLE, USER, PWT, PCD, PS = 1, 2, 4, 8, 16, 128
RW, NX, ADDRESS = PRESENT | WRITABLE, 1 << 63, 0x000F_FFFF_FFFF_F000
PAGE, MIB = 4096, 1 << 20
DIRECT = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}
VMALLOC = {4: 0xFFFF_C900_0000_0000, 5: 0xFFA0_0000_0000_0000}
USER_VA = 0x7000_0000_0000
TABLES, PROCESSES = 0xC0_0000, 0xA0_0000


class World:
    """A machine that is changed behind the oracle's back, in every way a kernel or a restore can."""

    def __init__(self, synthetic, levels):
        self.synthetic = synthetic
        self.ram = synthetic.Ram((0, 16 * MIB))
        self.kernel = synthetic.Paging(self.ram, levels, tables_at=TABLES)
        self.kernel.map_run(DIRECT[levels], 0, 2 * MIB)
        self.kernel.map_run(DIRECT[levels] + 2 * MIB, 2 * MIB, 14 * MIB, 2)
        for page in range(0, 40, 3):
            self.kernel.map(VMALLOC[levels] + page * PAGE, 0x8000 + page * PAGE, flags=RW | PWT | NX)
        self.levels = levels
        self.processes = []
        self.saved = None
        self.machine = synthetic.Machine(self.ram, [synthetic.cpu_state(self.kernel.root, levels)])

    @property
    def tables(self):
        """Every page used as a table, and one that is not."""
        spans = [(TABLES, self.kernel.next), (PROCESSES, PROCESSES + PAGE)]
        spans += [(process.root, process.next) for process in self.processes]
        return [page for start, end in spans for page in range(start, end, PAGE)]

    def an_entry(self, draw):
        page = draw(st.sampled_from(self.tables))
        used = np.flatnonzero(self.ram.array(page, PAGE).view("<u8")).tolist()
        return page + 8 * draw(st.one_of(st.sampled_from(used or [0]), st.integers(0, 511)))

    def change_an_entry(self, draw):
        slot = self.an_entry(draw)
        flip = st.sampled_from([PRESENT, WRITABLE, USER, PWT, PCD, PS, 0x20, NX, 0x1000, 0x20_0000])
        self.ram.put_u64(slot, self.ram.u64(slot) ^ draw(flip))

    def point_elsewhere(self, draw):
        slot, table = self.an_entry(draw), draw(st.sampled_from(self.tables))
        self.ram.put_u64(slot, table | self.ram.u64(slot) & ~ADDRESS | draw(st.sampled_from([0, PRESENT])))

    def copy_a_table(self, draw):
        """A page is freed and used again, for another table or for data."""
        source, target = draw(st.sampled_from(self.tables)), draw(st.sampled_from(self.tables[1:]))
        data = draw(st.sampled_from([self.ram.read(source, PAGE), bytes(PAGE), b"\x5a" * PAGE]))
        self.ram.write(target, data)

    def start_a_process(self, draw):
        if len(self.processes) < 4:
            at = PROCESSES + (len(self.processes) + 1) * 0x10000
            process = self.synthetic.Paging(self.ram, self.levels, tables_at=at)
            self.ram.write(process.root + 2048, self.ram.read(self.kernel.root + 2048, 2048))
            for page in draw(st.sets(st.integers(0, 5))):
                process.map(USER_VA + page * PAGE, 0x8000 + page * PAGE, flags=RW | USER)
            self.processes.append(process)

    def end_a_process(self, draw):
        if self.processes:
            process = self.processes.pop()
            self.ram.write(process.root, bytes(draw(st.sampled_from([2048, 4096]))))

    def map_more(self, draw):
        if self.kernel.next < 0xE0_0000:
            va = VMALLOC[self.levels] + draw(st.integers(0, 8)) * 2 * MIB + draw(st.integers(0, 9)) * PAGE
            slot = self.kernel.slot(self.kernel.table_for(va, 1), va, 1)
            self.ram.put_u64(
                slot, 0x8000 + draw(st.integers(0, 9)) * PAGE | RW | draw(st.sampled_from([0, PCD]))
            )

    def switch(self, draw):
        roots = [self.kernel.root, *(process.root for process in self.processes)]
        changes = draw(
            st.sampled_from([{}, {}, {"pat": 0x0007040600070406}, {"efer": 0x501}, {"mtrr_def_type": 0}])
        )
        cr3 = draw(st.sampled_from(roots))
        self.machine.cpus = [self.synthetic.cpu_state(cr3, self.levels, **changes)]

    def save(self, _):
        self.saved = self.ram.read(0, 16 * MIB), list(self.processes), self.kernel.next, self.machine.cpus

    def restore(self, draw):
        """To an earlier state, in the same RAM or in other RAM."""
        if self.saved is not None:
            data, processes, self.kernel.next, self.machine.cpus = self.saved
            self.processes = list(processes)
            if draw(st.booleans()):
                self.ram = self.machine.ram = self.synthetic.Ram((0, 16 * MIB))
                for paging in (self.kernel, *self.processes):
                    paging.ram = self.ram
            self.ram.write(0, data)

    def nothing(self, _):
        pass


ACTIONS = [name for name in vars(World) if not name.startswith("_") and name not in ("tables", "an_entry")]


def shown(oracle):
    """All that a look can show, or the words of its error."""
    address = [DIRECT[4] + 0x8000, VMALLOC[4], DIRECT[5] + 0x9000, VMALLOC[5] + 3 * PAGE, USER_VA]
    try:
        with oracle.frozen() as view:
            leaves = view._all
            columns = (
                leaves.va,
                leaves.entry,
                leaves.level,
                leaves.flags,
                leaves.pa,
                leaves.size,
                leaves.pat,
            )
            return (
                view.cpus,
                view.address_spaces,
                sorted(zip(*(column.tolist() for column in columns), strict=True)),
                (leaves.folded, leaves.tables),
                view.survey(address, [PAGE, 40 * PAGE, 1, PAGE, 3 * PAGE]).rows.tolist(),
                view.aliases([PhysRange(0x8000, 9 * PAGE)]),
                view.direct_map,
                view.direct_map_anomalies(),
            )
    except OracleError as error:
        return str(error)


@pytest.mark.parametrize("levels", [4, 5])
@given(data=st.data())
def test_remembering_changes_nothing(synthetic, levels, data):
    world = World(synthetic, levels)
    oracle = Oracle(world.machine)
    for action in data.draw(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=12)):
        for _ in range(data.draw(st.integers(1, 3))):
            getattr(world, action)(data.draw)
        assert shown(oracle) == shown(Oracle(world.machine))


@pytest.fixture
def world(synthetic):
    return World(synthetic, 4)


def test_only_what_changed_is_decoded(world):
    tables = world.kernel
    scanner = Scanner()

    def decoded():
        found = scanner.scan(Tables(world.ram), [tables.root], 4)
        fresh = scan(Tables(world.ram), [tables.root], 4)
        assert sorted(found.entry.tolist()) == sorted(fresh.entry.tolist())
        return scanner.decoded, found

    for part in range(8):  # enough tables that decoding one is not decoding a quarter of them
        tables.map(VMALLOC[4] + (part + 1) * 2 * MIB, 0x9000)
    everything, first = decoded()
    assert everything == first.tables > 10
    assert decoded() == (0, first)  # the very same arrays
    slot = tables.slot(tables.table_for(VMALLOC[4], 1), VMALLOC[4], 1)
    world.ram.put_u64(slot, world.ram.u64(slot) ^ PCD)
    once, second = decoded()
    assert once == 1
    assert second is not first
    world.ram.put_u64(slot, world.ram.u64(slot) ^ PCD)
    assert decoded()[0] == 1
    assert sorted(first.entry.tolist()) == sorted(decoded()[1].entry.tolist())


def test_what_bit_63_means_is_not_remembered(world):
    scanner, tables = Scanner(), world.kernel
    for no_execute in (True, False, True):
        found = scanner.scan(Tables(world.ram), [tables.root], 4, no_execute=no_execute)
        fresh = scan(Tables(world.ram), [tables.root], 4, no_execute=no_execute)
        assert np.array_equal(found.flags, fresh.flags)
        assert set((found.flags & 4).tolist()) == ({0, 4} if no_execute else {4})


def test_a_survey_is_not_changed_by_later_captures(world):
    oracle = Oracle(world.machine)
    with oracle.frozen() as view:
        seen = view.survey([VMALLOC[4]], [PAGE])
    before = seen.leaves(0)
    slot = world.kernel.slot(world.kernel.table_for(VMALLOC[4], 1), VMALLOC[4], 1)
    world.ram.put_u64(slot, 0)
    with oracle.frozen() as view:
        assert not view.survey([VMALLOC[4]], [PAGE]).rows["mapped"].any()
    assert seen.leaves(0) == before
    assert seen.rows["mapped"].all()


def test_an_oracle_does_not_keep_old_ram(world):
    mapping = mmap.mmap(-1, 16 * MIB)
    mapping[:] = world.ram.read(0, 16 * MIB)
    world.ram.array = lambda gpa, n: np.frombuffer(mapping, dtype=np.uint8, count=n, offset=gpa)
    oracle = Oracle(world.machine)
    for _ in range(3):
        with oracle.frozen() as view:
            view.direct_map_anomalies()
            seen = view.survey([VMALLOC[4]], [PAGE])
    mapping.close()  # BufferError while an array over it is alive
    old = weakref.ref(world.ram)
    world.kernel.ram = world.ram = world.machine.ram = world.synthetic.Ram((0, 16 * MIB))
    gc.collect()
    assert old() is None
    assert seen.leaves(0)


@pytest.fixture
def ram():
    fd = os.memfd_create("test-ram")
    os.truncate(fd, 8 * MIB)
    memory = GuestRam(fd, 8 * MIB, ((0, 8 * MIB),))
    os.close(fd)
    yield memory
    memory.close()


def marked(ram):
    """Which pages begin with a mark: like a search for roots it reads one word of every page."""

    def look(stretches):
        pages = [page for start, length in stretches for page in range(start, start + length, PAGE)]
        return [page for page in pages if ram.array(page, 1)[0] == 0x77]

    return look


def test_counting_replaces_asking_and_is_no_guess(ram):
    touched = Touched()
    ram.write(0x5000, b"\x77")
    ram.write(0x9000, b"\x78")
    assert touched.search(ram, marked(ram)) == [0x5000]
    ram.write(0x9000, b"\x77")
    assert touched.search(ram, marked(ram)) == [0x5000, 0x9000]
    assert touched.asked == 1
    ram.write(0x20000, b"\x77")
    assert touched.search(ram, marked(ram)) == [0x5000, 0x9000, 0x20000]
    assert touched.asked == 2
    ram.forget(0x9000, PAGE)  # as many pages as before, but not the same ones
    ram.write(0x30000, b"\x77")
    assert touched.search(ram, marked(ram)) == [0x5000, 0x20000, 0x30000]
    ram.forget(0x5000, PAGE)
    assert touched.search(ram, marked(ram)) == [0x20000, 0x30000]


def test_other_ram_is_asked_even_if_it_is_as_much(ram):
    touched = Touched()
    ram.write(0x5000, b"\x77")
    assert touched.search(ram, marked(ram)) == [0x5000]
    fd = os.memfd_create("other-ram")
    os.truncate(fd, 8 * MIB)
    other = GuestRam(fd, 8 * MIB, ((0, 8 * MIB),))
    os.close(fd)
    other.write(0x6000, b"\x77")
    assert touched.search(other, marked(other)) == [0x6000]
    assert other.populated() == ((0x6000, PAGE),)  # nothing was touched that was not before
    other.close()


def test_a_machine_that_describes_itself_otherwise_is_believed(synthetic):
    reader = StreamReader()
    one, other = synthetic.cpu_state(0x1000), synthetic.cpu_state(0x2000)
    plain = synthetic.StreamWriter().cpu(one).bytes()
    shifted = synthetic.StreamWriter().cpu(other, before=[("env.new", b"x" * 3)]).bytes()
    for stream, state in ((plain, one), (shifted, other), (shifted, other), (plain, one)):
        assert reader.parse(stream) == parse_device_state(stream) == (state,)
    with pytest.raises(StreamError, match="0 sections"):
        reader.parse(plain[:20] + plain[30:])
    with pytest.raises(StreamError, match="no description"):
        reader.parse(plain[:-1])
    assert reader.parse(plain) == (one,)
