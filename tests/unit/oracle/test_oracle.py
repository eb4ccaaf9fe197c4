# SPDX-License-Identifier: MIT
import mmap
from types import SimpleNamespace

import numpy as np
import pytest

from harness.errors import BadInput, GuestFailure
from harness.oracle import MemoryType, Oracle, OracleError, PhysRange, StreamError, ViewExpired

RW = 3
MIB = 1 << 20
DIRECT, VMALLOC = 0xFFFF_8880_0000_0000, 0xFFFF_C900_0000_0000


@pytest.fixture
def machine(synthetic):
    ram = synthetic.Ram((0, 16 * MIB))
    tables = synthetic.Paging(ram, tables_at=0xC0_0000)
    tables.map_run(DIRECT, 0, 16 * MIB, 2)
    for page, pa in enumerate([0x8000, 0x4000, 0x5000]):
        tables.map(VMALLOC + page * 4096, pa)
    return synthetic.Machine(ram, [synthetic.cpu_state(tables.root)])


@pytest.fixture
def buf():
    return SimpleNamespace(address=VMALLOC + 0x10, storage=0x2FF0)


def test_frozen_stops_captures_and_goes_on(machine):
    with Oracle(machine).frozen() as view:
        assert machine.log == ["stop", "capture"]
        assert view.direct_map.base == DIRECT
    assert machine.log == ["stop", "capture", "continue"]


def test_nested_views_are_one_capture(machine, buf):
    oracle = Oracle(machine)
    with oracle.frozen() as outer:
        with oracle.frozen() as inner:
            assert inner is outer
        assert oracle.types_of(buf) == {MemoryType.WB}
        outer.read(0, 1)  # still alive
    assert machine.log == ["stop", "capture", "continue"]


@pytest.mark.parametrize(
    "use",
    [
        lambda v: v.walk(DIRECT),
        lambda v: v.physical_of(DIRECT, 1),
        lambda v: v.aliases([PhysRange(0, 1)]),
        lambda v: v.types_of_many([]),
        lambda v: v.pat_types_of_many([]),
        lambda v: v.direct_map,
        lambda v: v.address_spaces,
        lambda v: v.direct_map_anomalies(),
        lambda v: v.mtrr_type(0),
        lambda v: v.survey([DIRECT], 1),
        lambda v: v.survey_physical([0], 1),
        lambda v: v.remapping(0),
        lambda v: v.read(0, 1),
        lambda v: v.write(0, b"x"),
    ],
)
def test_a_view_expires(machine, use):
    with Oracle(machine).frozen() as view:
        use(view)
    with pytest.raises(ViewExpired, match="no longer valid"):
        use(view)


def test_an_expired_view_does_not_keep_ram_mapped(machine):
    mapping = mmap.mmap(-1, 16 * MIB)
    mapping[:] = machine.ram.read(0, 16 * MIB)
    machine.ram.array = lambda gpa, n: np.frombuffer(mapping, dtype=np.uint8, count=n, offset=gpa)
    with Oracle(machine).frozen() as view:
        view.direct_map_anomalies()
    assert view.cpus
    mapping.close()  # BufferError while an array over it is alive


def test_the_guest_goes_on_after_a_failure_inside(machine):
    oracle = Oracle(machine)
    with pytest.raises(ZeroDivisionError), oracle.frozen():
        _ = 1 // 0
    assert machine.log == ["stop", "capture", "continue"]
    with oracle.frozen():
        pass


def test_the_guest_goes_on_after_a_bad_capture(machine):
    machine.device_state = lambda: b"nothing"
    with pytest.raises(StreamError) as caught, Oracle(machine).frozen():
        pass
    assert machine.log == ["stop", "continue"]
    assert isinstance(caught.value, OracleError)
    assert isinstance(caught.value, GuestFailure)


def test_every_step_is_timed(machine, buf):
    oracle = Oracle(machine)
    for _ in range(2):
        with oracle.frozen() as view:
            view.walk(DIRECT)
            view.types_of(buf)
            view.aliases([PhysRange(0, 1)])
    steps = ["stop", "capture", "parse", "walk", "scan", "types", "aliases", "continue"]
    assert [timing.step for timing in oracle.timings] == steps * 2
    assert [timing.capture for timing in oracle.timings] == [1] * 8 + [2] * 8
    assert all(timing.milliseconds >= 0 for timing in oracle.timings)
    assert len(oracle.milliseconds) == 2
    assert sum(oracle.milliseconds) == pytest.approx(sum(timing.milliseconds for timing in oracle.timings))


def test_buffers_are_read_and_written_where_they_lie(machine, buf):
    oracle = Oracle(machine)
    assert oracle.physical_of(buf) == (PhysRange(0x8010, 0xFF0), PhysRange(0x4000, 0x2000))
    oracle.write(buf, 0xFEE, b"abcd")
    assert machine.ram.read(0x8FFE, 2) == b"ab"
    assert machine.ram.read(0x4000, 2) == b"cd"
    assert oracle.read(buf, 0xFED, 6) == b"\0abcd\0"
    assert oracle.read(buf, 0x2FF0, 0) == b""
    assert oracle.types_of_many([buf, buf]) == [{MemoryType.WB}] * 2
    assert oracle.pat_types_of(buf) == {MemoryType.WB}


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0x2FF0, 1), (0, 0x2FF1), (1, -1)])
def test_nothing_outside_the_storage_is_touched(machine, buf, offset, length):
    oracle = Oracle(machine)
    with pytest.raises(BadInput, match="storage"):
        oracle.read(buf, offset, length)
    if length > 0:
        with pytest.raises(BadInput, match="storage"):
            oracle.write(buf, offset, bytes(length))
    assert machine.log == []


def test_memory_shows_the_same_by_its_physical_address(machine):
    with Oracle(machine).frozen() as view:
        named = view.survey([VMALLOC, VMALLOC + 4096], 4096).rows
        found = view.survey_physical([0x8000, 0x4000], 4096).rows
    for column in ("physical", "pieces", "aliases", "pat", "effective", "mapped"):
        assert found[column].tolist() == named[column].tolist()
    assert found["aliases"].tolist() == [2, 2]


def test_memory_that_nothing_maps_has_no_types(machine):
    with Oracle(machine).frozen() as view:
        (row,) = view.survey_physical([1 << 40], 4096).rows
    assert (row["aliases"], row["pat"], row["effective"], row["physical"]) == (0, 0, 0, 1 << 40)
