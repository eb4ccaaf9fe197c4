# SPDX-License-Identifier: MIT
"""Ten thousand descriptors, made, used and released: afterwards the guest is what it was.

Requests travel in waves, so that the guest is busy and not the wire: a wave of factories, waves of uses, a
wave of closes.  What must come back is memory, slab, open files, live descriptors and the write-back type of
every page.
"""

from __future__ import annotations

import random
import struct

import pytest
from contract_stock import KINDS, PAGE, WB_WIRED, Stock, Waves, lost, still_lost, use

from harness.iokit import Task
from harness.iokit import constants as k
from harness.link import In, Nr, Out

WAVE = 64
CYCLES = 10_000


@pytest.fixture
def waves(iobmd) -> Waves:
    return Waves(iobmd)


def _available(iobmd, kind: dict) -> bool:
    return "WT" in iobmd.info().types or not kind["options"] & k.kIOMapWriteThruCache


def _cycle(waves: Waves, kinds: list[dict], data: bytes) -> None:
    fds = waves.create(kinds)
    use(waves, fds, data)
    waves.close(fds)


def test_ten_thousand_lives_leave_nothing_behind(iobmd, oracle, waves):
    kinds = [kind for kind in KINDS.values() if _available(iobmd, kind)]
    chance = random.Random(10_000)
    _cycle(waves, kinds * 2, b"warm")  # caches and tables that are made once
    before = Stock(iobmd, oracle)
    for start in range(0, CYCLES, WAVE):
        wanted = chance.choices(kinds, k=min(WAVE, CYCLES - start))
        _cycle(waves, wanted, chance.randbytes(40))
    assert still_lost(before, iobmd, oracle) == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_kind_leaks(iobmd, oracle, waves, kind):
    """Which kind it is, when the great test fails."""
    if not _available(iobmd, kind):
        pytest.skip("this CPU's PAT has no write-through")
    _cycle(waves, [kind] * WAVE, b"warm")
    before = Stock(iobmd, oracle)
    for _ in range(4):
        _cycle(waves, [kind] * WAVE, b"used")
    assert still_lost(before, iobmd, oracle) == []


def test_a_leak_would_be_seen(iobmd, oracle, waves):
    """The measure measures: what is still held is reported."""
    before = Stock(iobmd, oracle)
    kept = waves.create([KINDS["uncached"], KINDS["pageable"]] * 4)
    missing = " ".join(lost(before, Stock(iobmd, oracle)))
    assert "descriptors" in missing
    assert "open files" in missing
    assert "not write-back" in missing
    assert "kernel mappings" in missing
    waves.close(kept)
    assert still_lost(before, iobmd, oracle) == []


def test_a_refused_factory_leaks_nothing(iobmd, oracle):
    iobmd.withOptions(WB_WIRED, 1 << 50)
    before = Stock(iobmd, oracle)
    for _ in range(200):
        assert not iobmd.withOptions(WB_WIRED, 1 << 50)
        assert not iobmd.withOptions(WB_WIRED | k.kIOMemoryPhysicallyContiguous, 256 << 20)
        assert not iobmd.inTaskWithPhysicalMask(Task.KERNEL, WB_WIRED, 2 * PAGE, 1)
        assert not iobmd.inTaskWithOptions(Task.CURRENT, WB_WIRED, PAGE)
    assert still_lost(before, iobmd, oracle) == []


def test_a_reply_that_cannot_be_delivered_leaks_nothing(iobmd, oracle, waves):
    """The structure lies in memory that can be read and not written: the new descriptor has nowhere to go."""
    process = iobmd.process
    arguments = waves.arguments(KINDS["plain"])
    create = waves.commands["IOBMD_IOC_CREATE"]
    process.link.syscall(Nr.IOCTL, iobmd.device, create, 8)
    with process.memory(arguments, prot=1) as fixed:
        before = Stock(iobmd, oracle)
        for _ in range(100):
            assert process.link.syscall(Nr.IOCTL, iobmd.device, create, fixed.address).value == -14
        assert still_lost(before, iobmd, oracle) == []


def test_no_room_for_another_file(iobmd, oracle, waves):
    """The table of open files is full: NULL or an error, and nothing is left of the attempt."""
    process = iobmd.process
    arguments = waves.arguments(KINDS["uncached"])
    create = waves.commands["IOBMD_IOC_CREATE"]
    before = Stock(iobmd, oracle)
    old = process.syscall(302, 0, 7, 0, Out(16), what="prlimit").outputs[0]
    try:
        process.syscall(302, 0, 7, In(struct.pack("<2Q", 3, struct.unpack("<2Q", old)[1])), 0, what="prlimit")
        result = process.link.syscall(Nr.IOCTL, iobmd.device, create, In(arguments))
        assert result.value < 0
    finally:
        process.syscall(302, 0, 7, In(old), 0, what="prlimit")
    assert still_lost(before, iobmd, oracle) == []
