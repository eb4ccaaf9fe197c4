# SPDX-License-Identifier: MIT
import os

import pytest

from harness.errors import BadInput
from harness.vm.ram import GuestRam

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def ram():
    fd = os.memfd_create("test-ram")
    os.truncate(fd, 8 * MIB)
    memory = GuestRam(fd, 8 * MIB, ((0, 4 * MIB), (4 * GIB, 4 * MIB)))
    os.close(fd)
    yield memory
    memory.close()


def test_untouched_ram_is_not_populated(ram):
    assert ram.populated() == ()


def test_what_was_touched_is_found_at_its_guest_address(ram):
    ram.write(0, b"x")
    ram.write(MIB + 5, b"x" * 4096)
    ram.write(4 * MIB - 1, b"x")  # last page below the hole; its neighbour in the file is above it
    ram.write(4 * GIB, b"x")
    ram.write(4 * GIB + 4 * MIB - 1, b"x")
    assert ram.populated() == (
        (0, 4096),
        (MIB, 8192),
        (4 * MIB - 4096, 4096),
        (4 * GIB, 4096),
        (4 * GIB + 4 * MIB - 4096, 4096),
    )


def test_asking_populates_nothing(ram):
    ram.write(MIB, b"x")
    assert ram.populated() == ram.populated() == ((MIB, 4096),)


def test_counting_agrees_with_searching(ram):
    """The oracle takes an equal count for a proof, after it has read a byte of every page it knows."""

    def counted():
        assert ram.allocated == sum(length for _, length in ram.populated())
        return ram.allocated

    assert counted() == 0
    ram.write(MIB, b"x" * 4097)
    ram.write(4 * GIB, b"x")
    assert counted() == 3 * 4096
    ram.forget(MIB, 4096)
    assert counted() == 2 * 4096
    assert ram.array(MIB, 1)[0] == 0  # looking at a hole fills it
    assert counted() == 3 * 4096


def test_a_closed_machine_has_none(ram):
    ram.close()
    with pytest.raises(BadInput):
        ram.populated()
    with pytest.raises(BadInput):
        _ = ram.allocated
