# SPDX-License-Identifier: MIT
"""Batches on a real guest: what single calls give, field by field; thousands at once, and nothing left."""

from __future__ import annotations

import dataclasses
import random
import signal
import threading
import time

import numpy as np
import pytest
from contract_stock import PAGE, Stock, still_lost

from harness.errors import BadInput
from harness.iokit import Null, Task
from harness.iokit import constants as k
from harness.link import GuestOSError, In, Nr, RequestRefused

MIXED = 300
THOUSANDS = 10_000
NOFILE = 7  # RLIMIT_NOFILE
PRLIMIT64 = 302
# Where the memory happened to be, and whether it was in one piece, is luck; on the rest they have to agree.
LUCK = {"kernel_address", "user_address", "chunks", "storage_kind"}

MODES = (0, k.kIOMapInhibitCache, k.kIOMapWriteThruCache, k.kIOMapWriteCombineCache, k.kIOMapCopybackCache)


@pytest.fixture
def before(iobmd, oracle) -> Stock:
    """The guest after every worker of the agent has had a large frame, whose pages it keeps some of."""
    for _ in range(2):
        iobmd.batch(THOUSANDS // 2).withOptions(k.kIODirectionInOut, PAGE).release()
    return Stock(iobmd, oracle)


def options(chance: random.Random) -> int:
    contiguous = chance.choice((0, k.kIOMemoryPhysicallyContiguous))
    return chance.choice((1, 2, 3)) | chance.choice(MODES) | contiguous


def capacity(chance: random.Random) -> int:
    return chance.choice((1, 100, PAGE, 5000, 64 << 10, 1 << 50, 0, (256 << 10) + 1))


def factories(chance: random.Random) -> dict:
    """One list of arguments per factory, for MIXED calls each."""

    def many(make):
        return [make() for _ in range(MIXED)]

    sizes, flags = many(lambda: capacity(chance)), many(lambda: options(chance))
    tasks = many(lambda: chance.choice((Task.KERNEL, Task.NULL, Task.CURRENT)))
    masks = many(lambda: chance.choice((0, 0xFFFF_FFFF, 0x0FFF_FFFF, 0xFFF_F000, 1, (1 << 64) - 1)))
    alignments = many(lambda: chance.choice((1, 16, 256, PAGE, 1 << 16, 3)))
    pageable = [one | k.kIOMemoryPageable for one in flags]
    return {
        "withOptions": (flags, sizes, alignments),
        "inTaskWithOptions": (tasks, pageable, sizes),
        "inTaskWithPhysicalMask": (tasks, flags, sizes, masks),
        "initWithPhysicalMask": ([Task.KERNEL] * MIXED, flags, sizes, alignments, masks),
        "withCapacity": (sizes, flags, many(lambda: chance.random() < 0.5)),
        "inTaskWithGuardPages": ([Task.KERNEL] * MIXED, flags, sizes),
    }


@pytest.mark.parametrize("factory", factories(random.Random(0)))
def test_a_mixed_batch_is_what_single_calls_are(iobmd, factory):
    chance = random.Random(factory)
    arguments = factories(chance)[factory]
    buffers = getattr(iobmd.batch(MIXED), factory)(*arguments)
    singles = [getattr(iobmd, factory)(*row) for row in zip(*arguments, strict=True)]
    assert list(buffers.made) == [bool(single) for single in singles]
    assert 0 < buffers.made.sum() < MIXED
    offsets = [chance.choice((0, 1, PAGE, 70_000)) for _ in range(MIXED)]
    answers = {
        "describe": (buffers.describe(), lambda _, one: dataclasses.astuple(one.describe())),
        "length": (buffers.getLength(), lambda _, one: one.getLength()),
        "capacity": (buffers.getCapacity(), lambda _, one: one.getCapacity()),
        "direction": (buffers.getDirection(), lambda _, one: one.getDirection()),
        "flags": (buffers.getFlags(), lambda _, one: one.getFlags()),
        "prepare": (buffers.prepare(), lambda _, one: int(one.prepare())),
        "segment": (buffers.getPhysicalSegment(offsets)["length"], lambda row, one: run(one, offsets[row])),
        "counts": (buffers.getPageCounts(), lambda _, one: tuple(map(int, one.getPageCounts()))),
        "complete": (buffers.complete(), lambda _, one: int(one.complete())),
        "storage": (buffers.storage, lambda _, one: one.storage),
    }
    for row, single in enumerate(singles):
        assert buffers.label(row) == (single.call if isinstance(single, Null) else single.label)
        if isinstance(single, Null):
            assert (buffers.errno[row], buffers.reason(row)) == (single.errno, single.reason)
            assert repr(buffers[row]) == repr(single)
            continue
        for name, (array, ask) in answers.items():
            ours, theirs = array[row].item(), ask(row, single)
            if name == "describe":
                ours, theirs = (without_luck(array.dtype.names, one) for one in (ours, theirs))
            elif name == "segment":
                ours, theirs = (comparable(one, buffers.storage[row]) for one in (ours, theirs))
            assert ours == theirs, f"row {row}, {single.label}: {name}"


def run(single, offset: int) -> int:
    return single.getPhysicalSegment(offset).length


def comparable(length: int, storage: int):
    """Where separate pages or blocks happen to lie side by side their run is longer, for whoever is lucky."""
    return length if storage <= PAGE else length > 0


def without_luck(names, values) -> dict:
    fields = dict(zip(names, values, strict=True))
    pageable = fields["storage_kind"] == "PAGEABLE"
    return {name: value for name, value in fields.items() if name not in LUCK} | {"pageable": pageable}


def test_addresses_are_the_buffers_own(iobmd, oracle):
    """What a batch says about where its buffers are is true: the page tables say the same."""
    buffers = iobmd.batch(50).withOptions(k.kIODirectionInOut | k.kIOMapWriteCombineCache, 3 * PAGE)
    segments = buffers.getPhysicalSegment(np.full(50, PAGE))
    singly = [one.getPhysicalSegment(PAGE) for one in buffers]
    with oracle.frozen() as view:
        for row, single in enumerate(singly):
            first, *_ = view.physical_of(int(buffers.address[row]) + PAGE, 1)
            assert first.start == segments["address"][row] == single.address
    assert len(set(segments["address"].tolist())) == 50


def test_ten_thousand_live_at_once_and_leave_nothing(iobmd, oracle, before):
    buffers = iobmd.batch(THOUSANDS).withOptions(k.kIODirectionInOut, PAGE)
    assert iobmd.info().live == THOUSANDS
    assert buffers.made.all()
    assert (buffers.getLength() == PAGE).all()
    assert (buffers.getPhysicalSegment()["length"] == PAGE).all()
    assert len(np.unique(buffers.getPhysicalAddress())) == THOUSANDS
    assert set(buffers.describe()["memory_type"]) == {"WB"}
    started = time.monotonic()
    assert iobmd.release_all() == THOUSANDS
    assert time.monotonic() - started < 60  # not one by one, which takes minutes wherever this takes seconds
    assert still_lost(before, iobmd, oracle) == []


def test_thousands_of_single_buffers_are_released_together(iobmd):
    for _ in range(300):
        assert iobmd.withOptions(k.kIODirectionInOut, PAGE)
    asked = []
    submit = iobmd.process.link.prepare
    iobmd.process.link.prepare = lambda *args, **more: asked.append(args) or submit(*args, **more)
    try:
        assert iobmd.release_all() == 300
    finally:
        del iobmd.process.link.prepare
    assert len(asked) <= 3
    assert iobmd.info().live == 0


def test_typed_memory_goes_home_write_back(iobmd, oracle, before):
    modes = np.array(MODES * 40, np.uint32) | k.kIODirectionInOut
    buffers = iobmd.batch(len(modes)).withOptions(modes, 64 << 10)
    assert buffers.made.all()
    with oracle.frozen() as view:
        assert view.direct_map_anomalies()
    buffers.release()
    assert still_lost(before, iobmd, oracle) == []


def test_a_full_table_of_open_files_leaves_nothing_of_a_batch(iobmd, oracle, before):
    process = iobmd.process
    limit = np.array([before.fds + 500, 65_536], "<u8").tobytes()
    process.syscall(PRLIMIT64, 0, NOFILE, In(limit), 0, what="prlimit")
    try:
        with pytest.raises(GuestOSError, match=r"row \d+ of 2000, withOptions") as caught:
            iobmd.batch(2000).withOptions(k.kIODirectionInOut, PAGE)
    finally:
        limit = np.array([65_536, 65_536], "<u8").tobytes()
        process.syscall(PRLIMIT64, 0, NOFILE, In(limit), 0, what="prlimit")
    assert caught.value.observed == "EMFILE"
    assert still_lost(before, iobmd, oracle) == []


def test_the_agent_may_open_files_enough(guest):
    lines = guest.read_file("/proc/self/limits").splitlines()
    (line,) = (one for one in lines if one.startswith(b"Max open"))
    assert line.split()[3:5] == [b"65536", b"65536"]


@pytest.mark.parametrize("after", [0.005, 0.05, 0.15])
def test_ctrl_c_leaves_nothing(iobmd, oracle, before, after):
    """At some moment in the middle of it, wherever that is."""

    def for_ever():
        timer.start()
        while True:
            iobmd.batch(2000).withOptions(k.kIODirectionInOut, PAGE).release()

    timer = threading.Timer(after, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            for_ever()
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, old)
    iobmd.release_all()
    assert still_lost(before, iobmd, oracle) == []


def test_a_batch_of_the_second_process(guest, iobmd):
    peer = type(iobmd)(guest.peer)
    try:
        pageable = k.kIODirectionInOut | k.kIOMemoryPageable
        buffers = peer.batch(100).inTaskWithOptions(Task.CURRENT, pageable, 2 * PAGE)
        assert buffers.made.all()
        assert len(np.unique(buffers.getBytesNoCopy())) == 100
        with pytest.raises(BadInput, match="own process"):
            iobmd.batch(2).inTaskWithOptions(guest.peer, pageable, PAGE)
        guest.peer.kill()
        buffers.release()  # its files are gone with it
    finally:
        peer.close()
    assert iobmd.info().live == 0


def test_a_forbidden_call_in_a_batch_is_told_like_a_single_one(guest):
    batch = guest.batch(3)
    batch.call(Nr.GETPID)
    batch.call(Nr.KILL, [5, 0, 7], 0, what="kill")
    with pytest.raises(RequestRefused):
        batch.run()
    guest.link.ping()
