# SPDX-License-Identifier: MIT
"""Memory of a process behind a link: contents of any size, and faults that are errors."""

from __future__ import annotations

import errno
import mmap
import random
import threading

import pytest

from harness.errors import BadInput
from harness.link import PROT_NONE, PROT_READ, PROT_WRITE, GuestOSError, Nr
from harness.link.link import Link

PAGE = mmap.PAGESIZE


@pytest.fixture
def process(agent, link_layouts, on_host):
    return on_host(Link(agent.socket, link_layouts, agent.check))


def efault():
    return pytest.raises(GuestOSError, match="Bad address")


@pytest.mark.parametrize("size", [1, 100, PAGE, PAGE + 1, 256 * 1024 + 1, 3_000_000])
def test_contents_arrive_and_come_back(process, size):
    data = random.Random(size).randbytes(size)
    with process.memory(data) as memory:
        assert memory.address % PAGE == 0
        assert (memory.size, memory.read()) == (size, data)
        assert memory.read(size // 2, 1) == data[size // 2 : size // 2 + 1]
        memory.write(size - 1, b"!")
        assert memory.read(max(size - 10, 0)) == data[max(size - 10, 0) : -1] + b"!"


def test_a_number_of_zeros(process):
    with process.memory(5000) as memory:
        assert memory.read() == bytes(5000)


def test_it_is_gone_after_the_block(process):
    with process.memory(b"x") as memory:
        pass
    with efault():
        process.peek(memory.address, 1)
    assert process.link.ping(b"alive") == b"alive"


def test_accesses_that_fault_are_errors(process):
    with process.memory(bytes(3 * PAGE)) as memory:
        address = memory.address
        memory.protect(PROT_READ)
        assert process.peek(address, 8) == bytes(8)
        with efault():
            process.poke(address, b"x")
        assert not process.faults(address)
        assert process.faults(address, write=True)
        memory.protect(PROT_NONE)
        assert process.faults(address)
        memory.protect(PROT_READ | PROT_WRITE)
        process.syscall(Nr.MPROTECT, address + PAGE, PAGE, PROT_NONE, what="mprotect")
        assert process.peek(address, PAGE) == bytes(PAGE)
        for first, size in ((address, PAGE + 1), (address + PAGE, 1), (address + 2 * PAGE - 1, 2)):
            with efault():
                process.peek(first, size)
        with efault():
            process.poke(address, b"y" * (PAGE + 1))
        assert process.peek(address, 3) == b"yyy"  # what lies before the fault was written
    for address in (0, 1 << 63, (1 << 64) - PAGE):
        assert process.faults(address)


def test_a_trial_write_changes_nothing(process):
    with process.memory(b"as it was") as memory:
        assert not process.faults(memory.address, 9, write=True)
        assert memory.read() == b"as it was"


def test_read_only_from_the_start(process):
    with process.memory(b"constant", prot=PROT_READ) as memory:
        assert memory.read() == b"constant"
        with efault():
            memory.write(0, b"x")


def test_what_is_outside_is_refused_here(process):
    with process.memory(100) as memory:
        for offset, size in ((0, 101), (101, 0), (-1, 1), (50, 51)):
            with pytest.raises(BadInput, match="ends before"):
                memory.read(offset, size)
        with pytest.raises(BadInput):
            memory.write(99, b"ab")
    with pytest.raises(BadInput, match="0 bytes"), process.memory(b""):
        pass


def test_no_room_is_an_error(process):
    with pytest.raises(GuestOSError) as caught, process.memory(1 << 60):
        pass
    assert caught.value.errno == errno.ENOMEM


def test_threads_do_not_mix_their_bytes(process):
    failures = []

    def work(seed):
        chance = random.Random(seed)
        try:
            with process.memory(bytes(20_000)) as memory:
                for _ in range(40):
                    data = chance.randbytes(chance.randrange(1, 20_000))
                    memory.write(0, data)
                    assert memory.read(0, len(data)) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
