# SPDX-License-Identifier: MIT
"""Guest-physical addresses against offsets in the RAM file."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput, HostLacks
from harness.vm import GuestRam, MachineSpec, ram_ranges
from harness.vm.ram import GIB, MIB, available_memory, ram_file

MACHINES = st.sampled_from(("q35", "pc"))
SIZES = st.integers(128, 64 * 1024).map(lambda mib: mib * MIB)


@pytest.mark.parametrize(
    ("machine", "mib", "expected"),
    [
        # As QEMU 7.2's "info mtree -f" shows them; tests/vm asks a live QEMU again.
        pytest.param("q35", 512, ((0, 512 * MIB),), id="q35 512M"),
        pytest.param("q35", 2815, ((0, 2815 * MIB),), id="q35 below"),
        pytest.param("q35", 2816, ((0, 2 * GIB), (4 * GIB, 768 * MIB)), id="q35 at"),
        pytest.param("q35", 6144, ((0, 2 * GIB), (4 * GIB, 4 * GIB)), id="q35 6G"),
        pytest.param("pc", 3583, ((0, 3583 * MIB),), id="pc below"),
        pytest.param("pc", 3584, ((0, 3 * GIB), (4 * GIB, 512 * MIB)), id="pc at"),
        pytest.param("pc", 6144, ((0, 3 * GIB), (4 * GIB, 3 * GIB)), id="pc 6G"),
    ],
)
def test_where_ram_lies(machine: str, mib: int, expected: tuple[tuple[int, int], ...]) -> None:
    assert ram_ranges(machine, mib * MIB) == expected


@given(MACHINES, SIZES)
def test_ranges_cover_the_ram_and_spare_the_hole(machine: str, size: int) -> None:
    ranges = ram_ranges(machine, size)
    assert sum(length for _, length in ranges) == size
    assert all(length > 0 for _, length in ranges)
    assert all(start + length <= 0xE000_0000 or start >= 4 * GIB for start, length in ranges)


class Flat(GuestRam):
    """The arithmetic alone: no 64 GiB need to be mapped for it."""

    def __init__(self, ranges: tuple[tuple[int, int], ...]) -> None:
        self._ranges = ranges


@given(MACHINES, SIZES, st.data())
def test_addresses_and_offsets_are_one_to_one(machine: str, size: int, data: st.DataObject) -> None:
    ram = Flat(ram_ranges(machine, size))
    offset = data.draw(st.integers(0, size - 1))
    at = offset
    for start, length in ram.ranges:
        if at < length:
            assert ram.offset(start + at) == offset
            assert ram.contains(start + at)
            room = length - at
            assert ram.offset(start + at, room) == offset
            with pytest.raises(BadInput):
                ram.offset(start + at, room + 1)
            break
        at -= length


@given(MACHINES, SIZES, st.integers(-(1 << 40), 1 << 40), st.integers(0, 1 << 20))
def test_whatever_is_no_ram_is_refused(machine: str, size: int, gpa: int, length: int) -> None:
    ram = Flat(ram_ranges(machine, size))
    if ram.contains(gpa, length):
        assert 0 <= ram.offset(gpa, length) <= size - length
    else:
        with pytest.raises(BadInput, match="are not all RAM"):
            ram.offset(gpa, length)


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.truncate(fd, 4 * MIB)
    yield fd
    os.close(fd)


def test_reads_writes_and_views_share_the_file(memfd: int) -> None:
    ram = GuestRam(memfd, 4 * MIB, ((0, 3 * MIB), (4 * GIB, MIB)))
    view = ram.array(4 * GIB + 16, 8)
    ram.write(4 * GIB + 16, b"abcdefgh")
    assert os.pread(memfd, 8, 3 * MIB + 16) == b"abcdefgh"
    assert ram.read(4 * GIB + 16, 8) == bytes(view) == b"abcdefgh"
    view[0] = ord("X")
    assert ram.read(4 * GIB + 16, 2) == b"Xb"
    os.pwrite(memfd, b"guest", 0)
    assert ram.array(0, 5).tobytes() == b"guest"
    assert view.dtype == np.uint8
    for bad in (-1, 3 * MIB, 4 * GIB - 1, 4 * GIB + MIB):
        with pytest.raises(BadInput, match="are not all RAM"):
            ram.read(bad, 1)
    with pytest.raises(BadInput):
        ram.read(0, -1)
    del view
    ram.close()


def test_a_view_outlives_the_machine_but_new_ones_are_refused(memfd: int) -> None:
    ram = GuestRam(memfd, 4 * MIB, ((0, 4 * MIB),))
    ram.write(0, b"last words")
    view = ram.array(0, 10)
    ram.close()
    ram.close()
    assert view.tobytes() == b"last words"
    with pytest.raises(BadInput, match="closed"):
        ram.read(0, 1)


def test_the_ram_file_has_its_size_no_name_and_an_end() -> None:
    spec = MachineSpec(kernel=Path("k"), initrd=Path("i"), memory_mib=128)
    with ram_file(spec) as fd:
        assert os.fstat(fd).st_size == 128 * MIB
        assert os.fstat(fd).st_blocks == 0
        assert not os.get_inheritable(fd)
        assert "memfd:" in str(Path(f"/proc/self/fd/{fd}").readlink())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_more_ram_than_the_host_has_is_refused() -> None:
    available = available_memory()
    assert available is not None
    spec = MachineSpec(kernel=Path("k"), initrd=Path("i"), memory_mib=available // MIB + 4096)
    with pytest.raises(HostLacks, match="cannot back"), ram_file(spec):
        pytest.fail("started all the same")
