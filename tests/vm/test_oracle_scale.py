# SPDX-License-Identifier: MIT
"""Thousands of live buffers in one look, and looks that remember, against real kernels."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from harness.images import SilentProgress
from harness.images.store import Store
from harness.iokit import (
    Batch,
    IOKit,
    kIOMapInhibitCache,
    kIOMapWriteCombineCache,
    kIOMapWriteThruCache,
)
from harness.link import Guest, StartKind
from harness.oracle import MemoryType, Oracle, SurveyMismatch, View, mask_of
from harness.vm import SnapshotStore

KIB, MIB = 1 << 10, 1 << 20
KINDS = {
    0: MemoryType.WB,
    kIOMapInhibitCache: MemoryType.UC,
    kIOMapWriteCombineCache: MemoryType.WC,
    kIOMapWriteThruCache: MemoryType.WT,
}
COUNT = 1200


def fresh(machine, view):
    """The same moment to somebody who remembers nothing."""
    return View(machine.ram, view.cpus)


def columns(view):
    leaves = view._all.by_address()
    return [leaves.va, leaves.entry, leaves.level, leaves.flags, leaves.pa, leaves.size, leaves.pat]


def assert_remembering_changes_nothing(machine, view):
    other = fresh(machine, view)
    assert view.address_spaces == other.address_spaces
    for mine, theirs in zip(columns(view), columns(other), strict=True):
        assert np.array_equal(mine, theirs)
    assert view.direct_map == other.direct_map


def test_many_buffers_of_every_type_and_size(machine, oracle, iobmd):
    random = np.random.default_rng(5)
    options = random.choice(list(KINDS), COUNT).astype(np.uint32)
    capacity = random.choice([1, 4 * KIB, 5000, 16 * KIB, 64 * KIB], COUNT).astype(np.uint64)
    wanted = np.array([mask_of(KINDS[option]) for option in options.tolist()], dtype=np.uint8)
    batch: Batch = iobmd.batch(COUNT)
    with batch.withOptions(options, capacity, 4 * KIB) as bufs:
        with oracle.frozen() as view:
            seen = oracle.survey(bufs)
            besides = view.direct_map_anomalies(besides=seen)
            assert_remembering_changes_nothing(machine, view)
        claims = bufs.getPhysicalSegment(0)
        seen.require(types=wanted, segments=claims, length=bufs.getLength(), alignment=4 * KIB, apart=True)
        assert besides == ()
        some = [bufs[row] for row in range(0, COUNT, 97)]
        assert oracle.types_of_many(some) == [seen.types(row) for row in range(0, COUNT, 97)]
        for row in (0, COUNT // 2, COUNT - 1):
            with oracle.frozen() as view:
                assert seen.ranges(row) == oracle.physical_of(bufs[row])
                assert seen.leaves(row) == view.aliases(seen.ranges(row))
    with oracle.frozen() as view:
        assert view.direct_map_anomalies() == ()


def test_one_wrong_page_among_thousands_is_named(oracle, iobmd):
    """Sabotage from outside, undone before the guest goes on: the proof that the check can fail."""
    with iobmd.batch(COUNT).withOptions(kIOMapWriteCombineCache, 8 * KIB, 4 * KIB) as bufs:
        with oracle.frozen() as view:
            before = view.survey(bufs.address, bufs.storage)
            before.require(types=MemoryType.WC)
            leaf = view.walk(int(bufs.address[777]) + 4 * KIB)
            slot = entry_of(view, leaf)
            view.write(slot, (leaf.entry & ~(1 << 3)).to_bytes(8, "little"))  # PWT off: write-back
            try:
                after = view.survey(bufs.address, bufs.storage)
            finally:
                view.write(slot, leaf.entry.to_bytes(8, "little"))
            view.survey(bufs.address, bufs.storage).require(types=MemoryType.WC)
        with pytest.raises(SurveyMismatch, match="buffer 777 at ") as caught:
            after.require(types=MemoryType.WC)
        assert "expected WC, observed WC and WB" in caught.value.evidence[0]
        assert [each.number for each in caught.value.mismatches] == [777]


def entry_of(view, leaf):
    table = view.address_spaces[0]
    for level in range(view.levels, leaf.level - 1, -1):
        slot = table + 8 * (leaf.va >> (12 + 9 * (level - 1)) & 511)
        table = int.from_bytes(view.read(slot, 8), "little") & 0x000FFFFFFFFFF000
    return slot


def test_looks_that_follow_each_other_forget_nothing_and_invent_nothing(guest, machine, oracle, iobmd):
    """Processes come and go, page tables are split, freed and used again."""
    held = []
    for turn in range(6):
        held.append(iobmd.batch(40).withOptions(kIOMapInhibitCache, 64 * KIB, 4 * KIB))
        guest.write_file("/tmp/filler", os.urandom(MIB))
        if turn % 2:
            held.pop(0).release()
            assert guest.peer.pid > 1  # a second process, with an address space of its own
        with oracle.frozen() as view:
            assert_remembering_changes_nothing(machine, view)
            for bufs in held:
                view.survey(bufs.address, bufs.storage).require(types=MemoryType.UC)
    for bufs in held:
        bufs.release()
    guest.write_file("/tmp/filler", b"")


@pytest.mark.usefixtures("rewinds_at_any_age")
def test_a_restored_machine_is_looked_at_anew(guest, guest_image, tmp_path):
    """In the same QEMU and in another one: other RAM, other contents, the same oracle."""
    with Guest(guest_image, guest.options, SnapshotStore(Store(tmp_path), SilentProgress())) as other:
        other.restore()  # from now on in a QEMU that can be put back
        oracle = Oracle(other.machine)
        for kind in (StartKind.REWOUND, StartKind.RESTORED, StartKind.REWOUND):
            bufs = IOKit(other).batch(100).withOptions(kIOMapWriteCombineCache, 16 * KIB, 4 * KIB)
            oracle.survey(bufs).require(types=MemoryType.WC, apart=True)
            if kind is StartKind.RESTORED:
                os.kill(other.machine.pid, signal.SIGKILL)
            assert other.restore().how is kind
            with oracle.frozen() as view:
                assert view.direct_map_anomalies() == ()  # their memory is write-back again
                assert_remembering_changes_nothing(other.machine, view)
