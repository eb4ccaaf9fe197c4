# SPDX-License-Identifier: MIT
"""The book: every violation it knows, what is none, and that a replay is what a naive model says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.audit import Book, Direction, Event, Flag, Kind, Piece

PAGE = 4096
DEV, OTHER, POOL = 0x100, 0x200, 0x900
BUS = 0x10_0000
RECLAIM = 0x400
TO, FROM, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BIDIRECTIONAL
M32 = 0xFFFF_FFFF


def events(*rows):
    return [Event(number=number, kind=kind, **fields) for number, (kind, fields) in enumerate(rows)]


def alloc(bus=BUS, size=PAGE, device=DEV, **fields):
    made = {"coherent_mask": M32, "mask": M32, "virtual": bus + (1 << 40), "physical": bus, "module": "drv"}
    return Kind.ALLOC, {"bus": bus, "size": size, "device": device, **made, **fields}


def free(bus=BUS, size=PAGE, device=DEV, **fields):
    return Kind.FREE, {"bus": bus, "size": size, "device": device, "virtual": bus + (1 << 40), **fields}


def mapped(bus=BUS, size=100, direction=TO, device=DEV, **fields):
    made = {"mask": M32, "module": "drv", "physical": bus, **fields}
    return Kind.MAP_PAGE, {"bus": bus, "size": size, "direction": direction, "device": device, **made}


def unmapped(bus=BUS, size=100, direction=TO, device=DEV):
    return Kind.UNMAP_PAGE, {"bus": bus, "size": size, "direction": direction, "device": device}


def synced(bus=BUS, size=100, direction=TO, kind=Kind.SYNC_FOR_DEVICE):
    return kind, {"bus": bus, "size": size, "direction": direction, "device": DEV}


def listed(kind=Kind.MAP_SG, size=300, **fields):
    pieces = (Piece(PAGE, 100, BUS, 100), Piece(9 * PAGE, 200, BUS + PAGE, 200))
    made = {"bus": BUS, "size": size, "direction": TO, "device": DEV, "mask": M32}
    return kind, {**made, "pieces": pieces if kind is not Kind.UNMAP_SG else (), **fields}


def typed(kind, pages=1, physical=BUS, **fields):
    return kind, {"virtual": physical + (1 << 40), "physical": physical, "size": pages, **fields}


def pool(kind, **fields):
    return kind, {"owner": POOL, "module": "drv", **fields}


def module(kind, init=False):
    return kind, {"module": "drv", "init": init}


def mask(kind, before, after, **fields):
    return kind, {"device": DEV, "mask": before, "coherent_mask": before, "size": after, **fields}


COMING, GOING = Kind.MODULE_COMING, Kind.MODULE_GOING
WRONG = {
    "above-mask": [alloc(bus=0x1_0000_0000), free(bus=0x1_0000_0000)],
    "above-mask/map": [mapped(bus=M32 - 10), unmapped(bus=M32 - 10)],
    "above-boundary": [
        listed(boundary=0xFFFF, pieces=(Piece(PAGE, 300, 0xFFF0, 300),), bus=0xFFF0),
        listed(Kind.UNMAP_SG, bus=0xFFF0),
    ],
    "misaligned": [alloc(bus=BUS + PAGE, size=2 * PAGE), free(bus=BUS + PAGE, size=2 * PAGE)],
    "not-zeroed": [alloc(flags=Flag.NOT_ZEROED), free()],
    "sleeping-in-atomic": [alloc(gfp=RECLAIM, flags=Flag.ATOMIC), free()],
    "sleeping-in-atomic/free": [alloc(), free(flags=Flag.IRQS_OFF)],
    "sleeping-in-atomic/type": [typed(Kind.MEMORY_WB, flags=Flag.ATOMIC)],
    "free-size": [alloc(size=2 * PAGE), free()],
    "free-address": [alloc(), free(virtual=7)],
    "free-address/bus": [alloc(), free(bus=BUS + PAGE, virtual=BUS + (1 << 40))],
    "free-address/twice": [alloc(), free(), free()],
    "free-address/never": [free()],
    "free-device": [alloc(), free(device=OTHER)],
    "type-not-restored": [
        alloc(size=2 * PAGE),
        typed(Kind.MEMORY_WC, physical=BUS + PAGE),
        free(size=2 * PAGE),
    ],
    "leak-on-remove": [module(COMING), module(COMING, True), module(GOING, True), alloc(), module(GOING)],
    "leak-on-error": [module(COMING), module(COMING, True), alloc(), module(GOING), module(GOING, True)],
    "never-unmapped": [mapped(), module(GOING)],
    "dma-from-stack": [mapped(flags=Flag.STACK | Flag.NO_RAM), unmapped()],
    "dma-from-vmalloc": [mapped(flags=Flag.NO_RAM), unmapped()],
    "double-unmap": [mapped(), unmapped(), unmapped()],
    "unmap-address": [unmapped()],
    "unmap-size": [mapped(), unmapped(size=99)],
    "unmap-size/list": [listed(), listed(Kind.UNMAP_SG, size=100)],
    "unmap-direction": [mapped(), unmapped(direction=FROM)],
    "sync-direction": [mapped(), synced(direction=FROM), unmapped()],
    "use-after-unmap": [mapped(), unmapped(), synced()],
    "use-after-unmap/beyond": [mapped(), synced(bus=BUS + 100), unmapped()],
    "pool-double-free": [
        pool(Kind.POOL_CREATE),
        pool(Kind.POOL_ALLOC, bus=BUS),
        pool(Kind.POOL_FREE, bus=BUS),
        pool(Kind.POOL_FREE, bus=BUS),
    ],
    "free-address/pool": [pool(Kind.POOL_CREATE), pool(Kind.POOL_FREE, bus=BUS)],
    "pool-leak": [pool(Kind.POOL_CREATE), pool(Kind.POOL_ALLOC, bus=BUS), pool(Kind.POOL_DESTROY)],
    "pool-leak/pool": [pool(Kind.POOL_CREATE), module(GOING)],
    "mask-after-alloc": [alloc(), mask(Kind.SET_COHERENT_MASK, M32, 0xFFFFFF), free()],
    "mask-after-alloc/map": [mapped(), mask(Kind.SET_MASK, M32, 0xFFFFFF), unmapped()],
    "unaligned-set-memory": [typed(Kind.MEMORY_WC, virtual=BUS + 5), typed(Kind.MEMORY_WB)],
    "set-memory-on-vmalloc": [typed(Kind.MEMORY_WC, flags=Flag.VMALLOC), typed(Kind.MEMORY_WB)],
}

RIGHT = {
    "alloc and free": [alloc(), free()],
    "at the mask": [alloc(bus=M32 + 1 - PAGE), free(bus=M32 + 1 - PAGE)],
    "failed": [alloc(error=-12), mapped(error=-5), module(GOING)],
    "atomic and said so": [alloc(flags=Flag.ATOMIC), free(flags=Flag.ATOMIC)],
    "both directions": [mapped(direction=BOTH), synced(direction=FROM), unmapped(direction=BOTH)],
    "a part": [mapped(), synced(bus=BUS + 50, size=50), unmapped()],
    "one page twice": [mapped(), mapped(direction=FROM), unmapped(), unmapped(direction=FROM)],
    "the other stays": [
        mapped(),
        mapped(bus=BUS + PAGE),
        unmapped(),
        synced(bus=BUS + PAGE + 8),
        unmapped(bus=BUS + PAGE),
    ],
    "a list": [listed(), synced(bus=BUS + PAGE + 8, kind=Kind.SYNC_SG_FOR_CPU), listed(Kind.UNMAP_SG)],
    "a table": [listed(Kind.MAP_SGTABLE), listed(Kind.UNMAP_SG)],
    "the type restored": [alloc(), typed(Kind.MEMORY_WC), typed(Kind.MEMORY_WB), free()],
    "a type refused": [alloc(), typed(Kind.MEMORY_WC, error=-22), free()],
    "another's module": [alloc(module="other"), module(GOING)],
    "the same mask": [alloc(), mask(Kind.SET_COHERENT_MASK, M32, M32), free()],
    "mask refused": [alloc(), mask(Kind.SET_COHERENT_MASK, M32, 1, error=-5), free()],
    "pool": [
        pool(Kind.POOL_CREATE),
        pool(Kind.POOL_ALLOC, bus=BUS),
        pool(Kind.POOL_FREE, bus=BUS),
        pool(Kind.POOL_DESTROY),
    ],
}


def replayed(rows, whole=True):
    book = Book(whole=whole)
    book.replay(events(*rows))
    return book


@pytest.mark.parametrize("name", WRONG)
def test_every_violation_is_found_and_no_other(name):
    violations = replayed(WRONG[name]).violations
    assert [one.rule for one in violations] == [name.partition("/")[0]]
    assert violations[0].evidence


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_no_violation(name):
    assert replayed(RIGHT[name]).violations == []


@pytest.mark.parametrize("rows", [[free()], [unmapped()], [synced()], [pool(Kind.POOL_FREE)]])
def test_an_end_whose_beginning_nobody_could_see_is_none(rows):
    assert replayed(rows, whole=False).violations == []
    assert len(replayed(rows).violations) == 1


@pytest.mark.parametrize(
    "name", ["free-size", "free-address", "free-device", "unmap-size", "unmap-direction"]
)
def test_a_wrong_end_is_an_end(name):
    book = replayed(WRONG[name])
    assert len(book.buffers) == len(book.mappings) == 0
    assert book.violations[0].entry.ended is book.violations[0].event


_CALLS = st.tuples(
    st.sampled_from(["map", "unmap", "sync"]),
    st.sampled_from([DEV, OTHER]),
    st.integers(0, 5).map(lambda slot: BUS + slot * 64),
    st.sampled_from([32, 64, 200]),
    st.sampled_from([TO, FROM, BOTH]),
)


def naive(calls):
    """Mappings as a plain list, searched from one end to the other."""
    live, ended, rules = [], set(), []
    for what, device, bus, size, direction in calls:
        here = [one for one in live if one[:2] == (device, bus)]
        if what == "map":
            live.append((device, bus, size, direction))
        elif what == "unmap" and not here:
            rules.append("double-unmap" if (device, bus) in ended else "unmap-address")
        elif what == "unmap":
            same = [one for one in here if one[2:] == (size, direction)]
            one = same[0] if same else here[-1]
            rules += ["unmap-size"] * (one[2] != size) + ["unmap-direction"] * (one[3] != direction)
            live.remove(one)
            ended.add((device, bus))
        else:
            inside = [one for one in live if one[0] == device and one[1] <= bus < one[1] + one[2]]
            if not inside:
                rules.append("use-after-unmap")
            elif all(one[3] not in (BOTH, direction) for one in inside):
                rules.append("sync-direction")
    return live, rules


@given(st.lists(_CALLS, max_size=40))
def test_a_replay_is_what_a_naive_model_says(calls):
    makers = {
        "map": lambda *row: mapped(row[1], row[2], row[3], row[0]),
        "unmap": lambda *row: unmapped(row[1], row[2], row[3], row[0]),
        "sync": lambda *row: (synced()[0], synced(row[1], row[2], row[3])[1] | {"device": row[0]}),
    }
    book = replayed([makers[what](*row) for what, *row in calls])
    live, rules = naive(calls)
    seen = [(one.made.device, one.made.bus, one.made.size, one.made.direction) for one in book.mappings]
    assert sorted(seen) == sorted(live)
    assert [one.rule for one in book.violations] == rules


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60))
def test_buffers_are_what_a_dictionary_says(steps):
    live, rows, number = {}, [], itertools.count()
    for make, slot in steps:
        bus = BUS + slot * PAGE
        if make != (slot in live):
            rows.append(alloc(bus) if make else free(bus))
            live[slot] = next(number)
            if not make:
                del live[slot]
    book = replayed(rows)
    assert sorted(entry.made.bus for entry in book.buffers) == sorted(BUS + slot * PAGE for slot in live)
    assert book.violations == []
