# SPDX-License-Identifier: MIT
"""Every function the ledger watches, called by a module in a real guest, with every flag it can set."""

import mmap
import os
from collections import Counter

import pytest

from harness.audit import Book, Direction, Flag, Kind, Ledger
from harness.link import Guest, GuestOptions, Nr
from harness.oracle import Oracle

PAGE = 4096
REGISTERS = 0xFEC00000
DEPTHS, WIDE = 100, 2000  # of streaming_paths.c
MASKS = [Kind.SET_MASK, Kind.SET_COHERENT_MASK]
TYPES = [Kind.MEMORY_UC, Kind.MEMORY_WB, Kind.MEMORY_WC, Kind.MEMORY_WB]
ARRAYS = [Kind.PAGES_ARRAY_UC, Kind.PAGES_ARRAY_WB, Kind.PAGES_ARRAY_WC, Kind.PAGES_ARRAY_WB]


def recorded(guest, build, ko, params, *, while_loaded=None, **options):
    """Load the module with these parameters, unload it, and return its events and the book."""
    book = Book()
    with Ledger(guest, build, **options) as ledger:
        guest.load_module(ko, params)
        if while_loaded is not None:
            while_loaded(guest)
        guest.unload_module("streaming")
        events = ledger.drain()
        assert (ledger.lost, ledger.missed) == (0, 0)
    book.replay(events)
    return [event for event in events if event.module == "streaming" and event.kind > Kind.PIECE], book


def outer(events):
    """Leave out what a watched function does by another one: the compiler decides whether that is seen."""
    inner = {
        Kind.PAGES_UC: Kind.MEMORY_UC,
        Kind.PAGES_WB: Kind.MEMORY_WB,
        Kind.MMAP: Kind.USER_RANGE,
        Kind.USER_FRAME: Kind.USER_FRAME_PROT,
    }
    nexts = [*events[1:], None]
    return [
        one
        for one, after in zip(events, nexts, strict=True)
        if not after or inner.get(after.kind) != one.kind
    ]


def is_empty(book):
    return not (len(book.mappings) or len(book.blocks) or len(book.pools) or len(book.buffers) or book.types)


def test_streaming_mappings(guest, ledger_build, streaming):
    ours, book = recorded(guest, ledger_build, streaming, "what=lists")
    assert book.violations == []
    assert is_empty(book)
    # A sync of a device that needs none reaches the DMA API only because the ledger sees to it.
    assert [event.kind for event in ours] == [
        *MASKS,
        *(Kind.MAP_PAGE, Kind.SYNC_FOR_CPU, Kind.SYNC_FOR_DEVICE, Kind.UNMAP_PAGE),
        *(Kind.MAP_SG, Kind.SYNC_SG_FOR_CPU, Kind.SYNC_SG_FOR_DEVICE, Kind.UNMAP_SG),
        *(Kind.MAP_SGTABLE, Kind.UNMAP_SG, Kind.MAP_RESOURCE, Kind.UNMAP_RESOURCE, Kind.BIND, Kind.UNBIND),
    ]
    called = {event.kind: event for event in ours}
    mapped = called[Kind.MAP_PAGE]
    assert (mapped.size, mapped.direction, mapped.bus) == (1000, Direction.FROM_DEVICE, mapped.physical)
    assert (called[Kind.SYNC_FOR_CPU].bus, called[Kind.SYNC_FOR_CPU].size) == (mapped.bus + 100, 50)
    listed = [(piece.length, piece.bus - mapped.bus) for piece in called[Kind.MAP_SG].pieces]
    assert listed == [(100, 0), (200, 2048)]
    table = called[Kind.MAP_SGTABLE]
    assert [(piece.length, piece.physical - mapped.physical) for piece in table.pieces] == [
        *((1024, 0), (1024, 1024), (512, 3072))
    ]
    assert (table.size, table.direction, table.error) == (2560, Direction.BIDIRECTIONAL, 0)
    registers = called[Kind.MAP_RESOURCE]
    assert (registers.physical, registers.bus, registers.size) == (REGISTERS, REGISTERS, PAGE)
    assert {event.flags for event in ours} == {Flag(0)}
    assert {(event.driver, event.name) for event in ours} == {("streaming", "streaming")}


def test_memory_and_its_types(guest, ledger_build, streaming):
    ours, book = recorded(guest, ledger_build, streaming, "what=memory")
    assert book.violations == []
    assert is_empty(book)
    assert [event.kind for event in outer(ours) if event.kind is not Kind.FREE or event.size != 7 * PAGE] == [
        *MASKS,
        *(Kind.POOL_CREATE, Kind.ALLOC, Kind.POOL_ALLOC, Kind.POOL_FREE, Kind.POOL_DESTROY, Kind.FREE),
        *(Kind.ALLOC, Kind.FREE, Kind.ALLOC, Kind.ALLOC_PAGES, Kind.FREE_PAGES),
        *(Kind.ALLOC_NONCONTIGUOUS, Kind.FREE_NONCONTIGUOUS),
        *TYPES,
        *(Kind.PAGES_UC, Kind.PAGES_WB),
        *ARRAYS,
        *(Kind.BIND, Kind.UNBIND),
    ]
    called = {event.kind: event for event in ours}
    assert called[Kind.POOL_ALLOC].owner == called[Kind.POOL_CREATE].owner
    assert called[Kind.POOL_CREATE].name == "blocks"
    for kind, size in ((Kind.ALLOC_PAGES, 2 * PAGE), (Kind.ALLOC_NONCONTIGUOUS, 4 * PAGE)):
        assert (called[kind].size, called[kind].bus) == (size, called[kind].physical)
    assert called[Kind.FREE_PAGES].bus == called[Kind.ALLOC_PAGES].bus
    assert called[Kind.FREE_NONCONTIGUOUS].virtual == called[Kind.ALLOC_NONCONTIGUOUS].virtual
    array = called[Kind.PAGES_ARRAY_WC]
    assert (array.size, [piece.length for piece in array.pieces]) == (3, [2 * PAGE, PAGE])
    assert array.physical == array.pieces[0].physical
    assert {event.flags for event in ours} == {Flag(0)}


def test_what_no_driver_may_do_is_flagged(guest, ledger_build, streaming):
    ours, _ = recorded(guest, ledger_build, streaming, "what=flags")
    flagged = [(event.kind, event.flags) for event in ours if event.flags]
    wild = Flag.STACK | Flag.VMALLOC | Flag.NO_RAM
    assert flagged == [
        # virt_to_page() of the stack, alone and in a list
        (Kind.MAP_PAGE, wild),
        (Kind.MAP_SG, wild),
        (Kind.UNMAP_SG, wild),
        # the page that is really behind the stack
        (Kind.MAP_PAGE, Flag.STACK),
        (Kind.MAP_PAGE, Flag.VMALLOC | Flag.NO_RAM),
        (Kind.MEMORY_WB, Flag.VMALLOC),
        (Kind.MAP_PAGE, Flag.NO_RAM),
        *((Kind.MAP_PAGE, Flag.ATOMIC), (Kind.UNMAP_PAGE, Flag.ATOMIC)),
        *((Kind.MAP_PAGE, Flag.IRQS_OFF), (Kind.UNMAP_PAGE, Flag.IRQS_OFF)),
        (Kind.ALLOC, Flag.NOT_ZEROED),
    ]


def map_every_way(guest):
    for way in range(7):
        node = guest.open("/dev/streaming", os.O_RDWR)
        call = (0, 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, node, way * PAGE)
        address = guest.syscall(Nr.MMAP, *call, what="map the module's pages").value
        guest.faults(address, 2 * PAGE)
        guest.syscall(Nr.MUNMAP, address, 2 * PAGE, what="munmap")
        guest.close(node)


def test_every_way_into_a_process(guest, ledger_build, streaming):
    ours, book = recorded(guest, ledger_build, streaming, "what=user", while_loaded=map_every_way)
    assert is_empty(book)
    mapped = outer([event for event in ours if event.owner])
    assert [event.kind for event in mapped] == [
        *(Kind.MMAP, Kind.USER_PAGE, Kind.USER_PAGES, Kind.USER_RANGE),
        *(Kind.USER_RANGE, Kind.USER_FRAME, Kind.USER_RANGE, Kind.USER_FRAME_PROT),
        *(Kind.USER_PAGE, Kind.USER_MIXED),
    ]
    coherent = next(event for event in ours if event.kind is Kind.ALLOC)
    assert mapped[0].physical == coherent.physical
    assert [event.size // PAGE for event in mapped] == [2, 1, 2, *[1] * 7]
    assert sum(piece.length for piece in mapped[2].pieces) == 2 * PAGE
    assert mapped[4].owner + PAGE == mapped[5].owner
    assert mapped[2].pieces[-1].physical + mapped[2].pieces[-1].length == mapped[5].physical + PAGE
    # All in one process, whose tables begin there.
    tables = {event.bus for event in mapped if event.kind is not Kind.MMAP}
    assert len(tables) == 1
    assert not tables.pop() % PAGE
    assert not any(event.flags for event in mapped)


def test_one_modules_calls_only(guest, iobmd, ledger_build, streaming):
    def somebody_else(_):
        iobmd.withOptions(3, 64, 1).release()

    run = (guest, ledger_build, streaming, "what=memory")
    everything, _ = recorded(*run)
    ours, book = recorded(*run, while_loaded=somebody_else, only=["streaming"])
    assert Counter(event.kind for event in ours) == Counter(event.kind for event in everything)
    assert is_empty(book)
    # What the driver core frees for a driver is that driver's.
    assert len([event for event in ours if event.kind is Kind.FREE and event.size == 7 * PAGE]) <= 1
    others, _ = recorded(*run, while_loaded=somebody_else, only=["nobody-s"])
    assert {event.kind for event in others}.isdisjoint(
        {Kind.ALLOC, Kind.FREE, Kind.POOL_ALLOC, Kind.POOL_FREE}
    )


@pytest.mark.parametrize("frames", [1, 10])
def test_as_many_frames_as_wanted(guest, ledger_build, streaming, frames):
    ours, _ = recorded(guest, ledger_build, streaming, "what=lists", frames=frames)
    assert {len(event.stack) for event in ours if event.kind is Kind.MAP_PAGE} == {frames}


@pytest.mark.parametrize("frames", [6, 10])
def test_no_stack_is_taken_for_another(guest, ledger_build, streaming, frames):
    """Two callers from a hundred depths each, twice: more stacks than anybody remembers."""
    ours, _ = recorded(guest, ledger_build, streaming, "what=paths", frames=frames)
    stacks = {}
    for kind in (Kind.MAP_PAGE, Kind.UNMAP_PAGE):
        for one in (one for one in ours if one.kind is kind):
            stacks.setdefault((kind, one.size > WIDE, one.size % WIDE - 1), []).append(one.stack)
    assert {key: len(each) for key, each in stacks.items()} == dict.fromkeys(stacks, 2)
    assert len(stacks) == 4 * DEPTHS
    deep = stacks[Kind.MAP_PAGE, False, DEPTHS - 1][0]
    (again,) = set(deep[2:])  # where deeper() calls itself
    top = stacks[Kind.MAP_PAGE, False, 0][0][2:]  # from its first caller on
    for (kind, is_wide, depth), (first, second) in stacks.items():
        leaf = stacks[kind, is_wide, 0][0][:2]
        assert first == second == (*leaf, *[again] * depth, *top)[:frames]
    assert len({stacks[kind, is_wide, 0][0][0] for kind, is_wide, _ in stacks}) == 4


@pytest.fixture
def translated(guest_image):
    """A guest whose devices see addresses of their own."""
    options = GuestOptions(
        devices=("intel-iommu,intremap=off", "edu,dma_mask=0xffffffffffffffff"),
        cmdline=("intel_iommu=on",),  # Debian's kernels have the driver and leave it off
    )
    with Guest(guest_image, options) as guest:
        yield guest


def test_memory_that_an_iommu_puts_together(translated, ledger_build, streaming):
    guest = translated
    book = Book(whole=False)
    with Ledger(guest, ledger_build) as ledger:
        guest.load_module(streaming, "what=memory pci=1")
        book.replay(ledger.drain())
        (entry,) = [entry for entry in book.buffers if entry.module == "streaming"]
        made = entry.made
        assert made.size == 7 * PAGE
        assert made.flags == Flag.VMALLOC
        assert made.bus != made.physical
        with Oracle(guest.machine).frozen() as view:
            leaves = [view.walk(made.virtual + at) for at in range(0, made.size, PAGE)]
        pages = [piece.physical + at for piece in made.runs for at in range(0, piece.length, PAGE)]
        assert pages == [leaf.pa for leaf in leaves]
        guest.unload_module("streaming")
        book.replay(ledger.drain())
        assert book.violations == []
        assert is_empty(book)
        ours, _ = recorded_again(guest, ledger, streaming)
    # An IOMMU gives a list pages in a row, and the first entry all of those.
    table = next(event for event in ours if event.kind is Kind.MAP_SGTABLE)
    assert sum(piece.length for piece in table.pieces) == sum(piece.bus_length for piece in table.pieces)
    assert all(piece.bus != piece.physical for piece in table.pieces if piece.bus_length)


def recorded_again(guest, ledger, ko):
    guest.load_module(ko, "what=lists pci=1")
    guest.unload_module("streaming")
    events = ledger.drain()
    assert (ledger.lost, ledger.missed) == (0, 0)
    return [event for event in events if event.module == "streaming"], events
