# SPDX-License-Identifier: MIT
"""The ledger under load: a million mappings, two CPUs, a slow reader, unloading, and a guest put back."""

import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.audit import Book, Kind, Ledger, LedgerGone
from harness.forensics import Symbols
from harness.forensics.kernel_log import numbers
from harness.link import Guest, GuestOptions
from harness.vm import SnapshotStore

MILLION = 1_000_000
CPUS = 2
LOADS = 3
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
ENDBR = bytes.fromhex("f30f1efa")
PARAMETERS = "/sys/module/streaming/parameters"


@pytest.fixture(scope="module")
def pair(guest_image):
    """A guest with two CPUs."""
    with Guest(guest_image, GuestOptions(cpus=CPUS), SnapshotStore.default()) as guest:
        yield guest


def number(guest, name):
    return int(guest.read_file(f"{PARAMETERS}/{name}"))


def until_done(guest, look=lambda: None):
    """Wait until the storm is over, looking every now and then; how fast it is, is not what is tested."""
    deadline = time.monotonic() + guest.deadlines.operation * 100
    while number(guest, "threads"):
        assert time.monotonic() < deadline, f"{number(guest, 'done')} mappings were made"
        look()
        time.sleep(0.01)


def test_a_million_mappings_without_loss(guest, ledger_build, streaming):
    book, seen, biggest = Book(), Counter(), 0
    cpus = guest.machine.spec.cpus

    def counted(events):
        nonlocal biggest
        for event in events:
            seen[event.kind] += 1
            biggest = max(biggest, len(book.mappings))
            yield event

    def look():
        book.replay(counted(ledger.events()))

    # All of it fits into the backlog, and is decoded afterwards: how fast a host does that decides nothing.
    with Ledger(guest, ledger_build, records=1 << 19) as ledger, ledger.keep_up(3 * MILLION):
        guest.load_module(streaming, f"what=storm mappings={MILLION // cpus}")
        until_done(guest)
        assert number(guest, "done") == MILLION // cpus * cpus
        guest.unload_module("streaming")
        look()
        assert (ledger.lost, ledger.missed) == (0, 0)
    assert seen[Kind.MAP_PAGE] == seen[Kind.UNMAP_PAGE] == MILLION // cpus * cpus
    assert biggest <= cpus
    assert (book.violations, len(book.mappings)) == ([], 0)


def storm(guest, ko, mappings, look=lambda: None, meet=0):
    guest.load_module(ko, f"what=storm mappings={mappings} meet={meet}")
    until_done(guest, look)
    guest.unload_module("streaming")


def test_what_a_slow_reader_loses_is_counted_exactly(pair, ledger_build, streaming):
    mappings, ring = 4000, 1000
    with Ledger(pair, ledger_build) as ledger:
        ledger.drain()
        storm(pair, streaming, 0)
        around = len(ledger.drain())
    with Ledger(pair, ledger_build, records=ring) as ledger:
        ledger.drain()
        storm(pair, streaming, mappings)
        assert ledger.lost == around + 2 * CPUS * mappings - ring
        assert len(ledger.drain()) == ring
    # And with a reader that stops when its own room is full: as soon as there is anything to read.
    with Ledger(pair, ledger_build, records=ring) as ledger:
        ledger.drain()
        before = ledger.info()["consumed"]
        with ledger.keep_up(backlog=1):
            storm(pair, streaming, 0)
            deadline = time.monotonic() + pair.deadlines.operation
            while ledger.info()["consumed"] == before:
                assert time.monotonic() < deadline
            storm(pair, streaming, mappings)
        read = len(ledger.drain())
        assert ring < read <= ring + around
        assert ledger.lost == 2 * around + 2 * CPUS * mappings - read


def test_two_cpus_at_once_keep_the_order(pair, ledger_build, streaming):
    mappings, meet, events = 10_000, 500, []  # the ring has room for all of them
    with Ledger(pair, ledger_build) as ledger:
        storm(pair, streaming, mappings, lambda: events.extend(ledger.drain()), meet)
        events.extend(ledger.drain())
        assert (ledger.lost, ledger.missed) == (0, 0)
    assert [event.number for event in events] == list(range(len(events)))
    maps = Counter(event.cpu for event in events if event.kind is Kind.MAP_PAGE)
    assert maps == {0: mappings, 1: mappings}
    book = Book()
    book.replay(events)
    assert (book.violations, len(book.mappings)) == ([], 0)
    # Both were at it at the same time: none came to its next meeting without the other.
    cpus = [event.cpu for event in events if event.kind is Kind.MAP_PAGE]
    for meeting in range(1, mappings // meet):
        both = Counter(cpus[: 2 * meet * meeting])
        assert max(both.values()) - min(both.values()) <= meet


@pytest.fixture
def _late(tmp_path, monkeypatch):
    """Every QEMU that is started has translators lose a race against stores: see ``late/late.c``."""
    library = tmp_path / "late.so"
    source = Path(__file__).with_name("late") / "late.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))


@pytest.mark.usefixtures("_late")
def test_the_ledger_comes_and_goes_while_calls_are_made(guest_image, ledger_build, streaming):
    """Nearly every time QEMU is left with a breakpoint that is gone: see ``dma_ledger_stale.c``."""
    with Guest(guest_image, GuestOptions(cpus=CPUS), SnapshotStore.default()) as pair:
        pair.load_module(streaming, "what=storm mappings=1000000000")
        for _ in range(LOADS):
            with Ledger(pair, ledger_build, records=5000) as ledger:
                events = ledger.drain()
                assert [event.number for event in events] == list(range(len(events)))
                deadline = time.monotonic() + pair.deadlines.operation
                while not ledger.drain():
                    assert time.monotonic() < deadline
        assert number(pair, "threads") == CPUS
        pair.unload_module("streaming")


def call_in(guest, function):
    """Return where in memory the call lies that a function of the kernel begins with, for ftrace to patch."""
    facts = numbers(guest.machine.ram.read(guest.vitals.note, 4096))
    begin = Symbols.of(guest).address(function) - KERNEL_MAP + facts["phys_base"]
    return begin + len(ENDBR) * (guest.machine.ram.read(begin, len(ENDBR)) == ENDBR)


def test_a_breakpoint_that_was_taken_away_is_met(pair, ledger_build, streaming):
    """The host takes it away, which QEMU does not notice: it goes on running what it has translated.

    Of a guest with one CPU it makes no atomic accesses, and what the host writes could be lost.
    """
    ram = pair.machine.ram
    with Ledger(pair, ledger_build) as ledger, ThreadPoolExecutor(1) as other:
        place = call_in(pair, "dma_map_resource")  # which nobody has called since it was patched
        call = ram.read(place, 1)
        ram.write(place, b"\xcc")
        loading = other.submit(pair.load_module, streaming, "what=lists")
        try:
            while not (ledger.stale or loading.done()):
                time.sleep(0.001)
        finally:
            ram.write(place, call)
        loading.result()
        pair.unload_module("streaming")
        kinds = Counter(event.kind for event in ledger.events())
        assert ledger.stale
    assert call == b"\xe8"
    assert kinds[Kind.MAP_RESOURCE] == 1


def test_a_guest_that_was_put_back_has_no_ledger(pair, ledger_build, streaming):
    with Ledger(pair, ledger_build) as ledger:
        assert ledger.there
        ledger.drain()
        pair.restore()
        assert not ledger.there
        for ask in (ledger.drain, ledger.info, lambda: ledger.lost, lambda: ledger.missed):
            with pytest.raises(LedgerGone, match="restored"):
                ask()
    with Ledger(pair, ledger_build) as ledger, ledger.keep_up():
        storm(pair, streaming, 10)
        events = ledger.drain()
    assert len([event for event in events if event.kind is Kind.MAP_PAGE]) == 10 * CPUS


def test_a_reader_notices_a_guest_that_was_put_back(pair, ledger_build):
    with Ledger(pair, ledger_build) as ledger:
        reading = ledger.keep_up()
        reading.__enter__()
        pair.restore()
        with pytest.raises(LedgerGone):
            ledger.drain()
        ended = time.monotonic() + pair.deadlines.operation
        while "ledger's reader" in {thread.name for thread in threading.enumerate()}:
            assert time.monotonic() < ended
            time.sleep(0.01)
        with pytest.raises(LedgerGone):
            reading.__exit__(None, None, None)
