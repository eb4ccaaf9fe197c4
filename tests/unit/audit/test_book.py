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


def unmapped(bus=BUS, size=100, direction=TO, device=DEV, **fields):
    return Kind.UNMAP_PAGE, {"bus": bus, "size": size, "direction": direction, "device": device, **fields}


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


def pooled(**fields):
    return pool(Kind.POOL_CREATE, **{"device": DEV, "size": 128, "bus": 64, **fields})


def block(bus=BUS, kind=Kind.POOL_ALLOC, **fields):
    return pool(kind, bus=bus, virtual=bus + (1 << 40), **fields)


def module(kind, init=False):
    return kind, {"module": "drv", "init": init}


def bound(kind=Kind.BIND, **fields):
    return kind, {"module": "drv", "device": DEV, "mask": M32, "coherent_mask": M32, **fields}


def user(kind=Kind.USER_PAGE, gfp=0, physical=BUS, **fields):
    return kind, {
        "module": "drv",
        "gfp": gfp,
        "physical": physical,
        "size": PAGE,
        "owner": 7 * PAGE,
        **fields,
    }


def mask(kind, before, after, **fields):
    return kind, {"device": DEV, "mask": before, "coherent_mask": before, "size": after, **fields}


COMING, GOING, UNBIND = Kind.MODULE_COMING, Kind.MODULE_GOING, Kind.UNBIND
NOWHERE = (1 << 64) - 1
WRITE_THROUGH_BIT = 1 << 3
REFUSED = {"error": -16, "module": "drv"}
BACKWARDS = (Piece(9 * PAGE, 200, BUS + PAGE, 200), Piece(PAGE, 100, BUS, 100))
TWO_PAGES = (Piece(BUS, PAGE), Piece(BUS + 8 * PAGE, PAGE))
WRONG = {
    "above-mask": [alloc(bus=0x1_0000_0000), free(bus=0x1_0000_0000)],
    "above-mask/map": [mapped(bus=M32 - 10), unmapped(bus=M32 - 10)],
    "above-boundary": [
        listed(boundary=0xFFFF, pieces=(Piece(PAGE, 300, 0xFFF0, 300),), bus=0xFFF0),
        listed(Kind.UNMAP_SG, bus=0xFFF0),
    ],
    "misaligned/to the next power of two": [
        alloc(bus=BUS + 2 * PAGE, size=3 * PAGE),
        free(bus=BUS + 2 * PAGE, size=3 * PAGE),
    ],
    "free-address/by another function": [alloc(), (Kind.FREE_PAGES, free()[1]), free()],
    "above-mask/pages": [
        (Kind.ALLOC_PAGES, alloc(bus=M32 + 1, coherent_mask=NOWHERE)[1]),
        (Kind.FREE_PAGES, free(bus=M32 + 1)[1]),
    ],
    "above-boundary/not contiguous": [
        (Kind.ALLOC_NONCONTIGUOUS, alloc(size=2 * PAGE, boundary=0xFFF)[1]),
        (Kind.FREE_NONCONTIGUOUS, free(size=2 * PAGE)[1]),
    ],
    "above-mask/written": [alloc(), free(mask=M32, coherent_mask=0xFFFF)],
    "above-mask/written before a pool was made": [
        alloc(name="one"),
        pooled(name="blocks", mask=M32, coherent_mask=0xFFFF),
        block(0, Kind.POOL_DESTROY),
        free(name="one", mask=M32, coherent_mask=0xFFFF),
    ],
    "above-mask/written, streaming": [mapped(), unmapped(mask=0xFFFF)],
    "above-mask/written, pages": [
        alloc(),
        (Kind.ALLOC_PAGES, alloc(bus=BUS + PAGE)[1]),
        bound(mask=0xFFFF, coherent_mask=M32),
        (Kind.FREE_PAGES, free(bus=BUS + PAGE, mask=0xFFFF, coherent_mask=M32)[1]),
        free(mask=0xFFFF, coherent_mask=M32),
    ],
    "mask-refused": [mask(Kind.SET_COHERENT_MASK, M32, 0xFFFF, error=-5), alloc(), free(), alloc(), free()],
    "mask-refused/map": [mask(Kind.SET_MASK, M32, 0xFFFF, error=-5), alloc(), free(), mapped(), unmapped()],
    "above-boundary/map": [mapped(bus=0xFFF0, boundary=0xFFFF), unmapped(bus=0xFFF0)],
    "above-boundary/pool": [
        pooled(boundary=PAGE),
        block(BUS + PAGE - 64),
        block(BUS + PAGE - 64, Kind.POOL_FREE),
        block(0, Kind.POOL_DESTROY),
    ],
    "misaligned/pool": [
        pooled(),
        block(BUS + 8),
        block(BUS + 8, Kind.POOL_FREE),
        block(0, Kind.POOL_DESTROY),
    ],
    "misaligned/map": [mapped(direction=FROM, physical=BUS + 4), unmapped(direction=FROM)],
    "misaligned/map, both": [mapped(direction=BOTH, physical=BUS + 4), unmapped(direction=BOTH)],
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
    "type-not-restored/once for a buffer": [
        alloc(size=2 * PAGE),
        typed(Kind.MEMORY_WC, pages=2),
        free(size=2 * PAGE),
    ],
    "type-not-restored/half": [
        alloc(size=2 * PAGE),
        typed(Kind.MEMORY_WC, pages=2),
        typed(Kind.MEMORY_WB),
        free(size=2 * PAGE),
    ],
    "type-not-restored/array": [
        alloc(size=2 * PAGE, pieces=TWO_PAGES),
        typed(Kind.PAGES_ARRAY_WC, pages=2, pieces=TWO_PAGES, virtual=8),
        typed(Kind.MEMORY_WB),
        free(size=2 * PAGE),
    ],
    "type-not-restored/and the next owner": [
        alloc(),
        typed(Kind.MEMORY_WC),
        free(),
        alloc(device=OTHER),
        free(device=OTHER),
    ],
    "type-not-set": [alloc(), typed(Kind.MEMORY_WC, **REFUSED), bound(), free()],
    "type-not-set/module": [alloc(), typed(Kind.MEMORY_WC, **REFUSED), module(GOING, True), free()],
    "type-not-set/no buffer": [typed(Kind.MEMORY_WC), typed(Kind.MEMORY_UC, **REFUSED), bound()],
    "unchecked-mapping-error": [mapped(error=-5, bus=NOWHERE), unmapped(bus=NOWHERE)],
    "unchecked-mapping-error/sync": [mapped(error=-5, bus=NOWHERE), synced(bus=NOWHERE)],
    "unchecked-mapping-error/refused inline": [unmapped(bus=NOWHERE)],
    "user-mapping-type": [typed(Kind.MEMORY_WC), user(), typed(Kind.MEMORY_WB)],
    "user-mapping-type/of cached memory": [user(gfp=WRITE_THROUGH_BIT)],
    "free-device/pool": [
        pooled(),
        block(),
        block(kind=Kind.POOL_FREE, owner=POOL + 1),
        block(0, Kind.POOL_DESTROY),
    ],
    "free-address/block": [
        pooled(),
        block(),
        pool(Kind.POOL_FREE, bus=BUS, virtual=5),
        block(0, Kind.POOL_DESTROY),
    ],
    "leak-on-error/probe": [alloc(), bound(error=-19), module(GOING)],
    "leak-on-remove/unbound": [alloc(), bound(), bound(UNBIND), module(GOING)],
    "leak-on-remove/and its device's next driver": [
        alloc(bus=4 * BUS),
        bound(UNBIND),
        alloc(coherent_mask=2 * BUS - 1),
        free(mask=M32, coherent_mask=2 * BUS - 1),
    ],
    "leak-on-remove/of a library": [alloc(module="library"), bound(), bound(UNBIND), module(GOING)],
    "never-unmapped/unbound": [mapped(), bound(), bound(UNBIND), module(GOING)],
    "pool-leak/unbound": [pooled(), bound(), bound(UNBIND), module(GOING)],
    "pool-leak/the memory behind": [
        pooled(),
        alloc(),
        block(BUS + 128),
        block(0, Kind.POOL_DESTROY),
        bound(UNBIND),
        module(GOING),
    ],
    "sync-range": [mapped(), synced(bus=BUS + 50, size=51), unmapped()],
    "sync-range/of the right one": [
        mapped(size=50, direction=FROM),
        mapped(),
        synced(direction=FROM),
        unmapped(size=50, direction=FROM),
        unmapped(),
    ],
    "sync-range/beyond an entry of a list": [
        listed(bus=BUS + PAGE, pieces=BACKWARDS),
        synced(size=200),
        listed(Kind.UNMAP_SG, bus=BUS + PAGE),
    ],
    "sync-range/list": [listed(), synced(size=301, kind=Kind.SYNC_SG_FOR_CPU), listed(Kind.UNMAP_SG)],
    "leak-on-remove": [module(COMING), module(COMING, True), module(GOING, True), alloc(), module(GOING)],
    "leak-on-error": [module(COMING), module(COMING, True), alloc(), module(GOING), module(GOING, True)],
    "never-unmapped": [mapped(), module(GOING)],
    "dma-from-stack": [mapped(flags=Flag.STACK | Flag.NO_RAM), unmapped()],
    "dma-from-vmalloc": [mapped(flags=Flag.NO_RAM), unmapped()],
    "double-unmap": [mapped(), unmapped(), unmapped()],
    "unmap-address": [unmapped()],
    "unmap-address/of another kind": [mapped(), (Kind.UNMAP_RESOURCE, unmapped()[1]), unmapped()],
    "unmap-size": [mapped(), unmapped(size=99)],
    "unmap-size/of the last that was made": [
        mapped(),
        mapped(size=50),
        unmapped(size=70),
        unmapped(),
    ],
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
    "unaligned-set-memory/both": [
        typed(Kind.MEMORY_WC, virtual=BUS + 5),
        typed(Kind.MEMORY_WB, virtual=BUS + 5),
        typed(Kind.MEMORY_WC),
        typed(Kind.MEMORY_WB),
    ],
    "set-memory-on-vmalloc/its pages are anywhere": [
        alloc(bus=BUS + PAGE),
        typed(Kind.MEMORY_WC, pages=2, flags=Flag.VMALLOC),
        free(bus=BUS + PAGE),
        typed(Kind.MEMORY_WB, pages=2, flags=Flag.VMALLOC),
    ],
    "set-memory-on-vmalloc": [
        typed(Kind.MEMORY_WC, flags=Flag.VMALLOC),
        typed(Kind.MEMORY_WB, flags=Flag.VMALLOC),
    ],
}

RIGHT = {
    "alloc and free": [alloc(), free()],
    "not contiguous": [
        (Kind.ALLOC_NONCONTIGUOUS, alloc(bus=BUS + PAGE, size=2 * PAGE)[1]),
        (Kind.FREE_NONCONTIGUOUS, free(bus=BUS + PAGE, size=2 * PAGE)[1]),
    ],
    "free nothing": [free(virtual=0)],
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
        synced(bus=BUS + PAGE + 8, size=92),
        unmapped(bus=BUS + PAGE),
    ],
    "a list": [listed(), synced(bus=BUS + PAGE + 8, kind=Kind.SYNC_SG_FOR_CPU), listed(Kind.UNMAP_SG)],
    "a table": [listed(Kind.MAP_SGTABLE), listed(Kind.UNMAP_SG)],
    "the type restored": [alloc(), typed(Kind.MEMORY_WC), typed(Kind.MEMORY_WB), free()],
    "a type refused": [alloc(), typed(Kind.MEMORY_WC, error=-22), free()],
    "an array of pages": [typed(Kind.PAGES_ARRAY_WC, virtual=8), typed(Kind.PAGES_ARRAY_WB, virtual=8)],
    "a type refused, and given up": [
        alloc(),
        typed(Kind.MEMORY_WC, **REFUSED),
        typed(Kind.MEMORY_WB),
        bound(),
        free(),
    ],
    "a type refused, and the probe failed": [
        typed(Kind.MEMORY_UC),
        typed(Kind.MEMORY_WC, **REFUSED),
        bound(error=-5),
        typed(Kind.MEMORY_WB),
    ],
    "a type refused the owner before": [
        alloc(),
        typed(Kind.MEMORY_WC, **REFUSED),
        free(),
        alloc(),
        bound(),
        free(),
    ],
    "a type refused another": [alloc(), typed(Kind.MEMORY_WC, error=-16, module="other"), bound(), free()],
    "user space sees what there is": [
        user(),
        typed(Kind.MEMORY_WC),
        user(gfp=WRITE_THROUGH_BIT),
        user(Kind.USER_RANGE),
        user(error=-12),
        typed(Kind.MEMORY_WB),
    ],
    "an entry of a list": [
        listed(direction=FROM, physical=BUS + 4),
        listed(Kind.UNMAP_SG, direction=FROM),
    ],
    "a small object": [mapped(direction=FROM, physical=BUS + 8), unmapped(direction=FROM)],
    "a structure inside": [mapped(physical=BUS + 4), unmapped()],
    "across a boundary, coherent": [alloc(boundary=0xFFF, size=2 * PAGE), free(size=2 * PAGE)],
    "up to a boundary": [mapped(bus=0xFF9C, boundary=0xFFFF), unmapped(bus=0xFF9C)],
    "probed and unbound": [alloc(), bound(), free(), bound(UNBIND), module(GOING)],
    "a probe that gave back": [alloc(), free(), bound(error=-19), module(GOING)],
    "another's probe": [alloc(device=OTHER), bound(error=-19), free(device=OTHER)],
    "refused, and another accepted": [
        mask(Kind.SET_COHERENT_MASK, M32, 0xFFFF, error=-5),
        mask(Kind.SET_COHERENT_MASK, M32, 0xFFFFFF),
        alloc(coherent_mask=0xFFFFFF),
        free(coherent_mask=0xFFFFFF, mask=M32),
    ],
    "refused, and not used by this driver": [
        mask(Kind.SET_COHERENT_MASK, M32, 0xFFFF, error=-5),
        bound(error=-5),
        alloc(),
        free(),
    ],
    "refused, and not for this": [mask(Kind.SET_MASK, M32, 0xFFFF, error=-5), alloc(), free()],
    "widened": [alloc(), mask(Kind.SET_COHERENT_MASK, M32, NOWHERE), free(coherent_mask=NOWHERE, mask=M32)],
    "another device's mask": [alloc(device=OTHER), mask(Kind.SET_COHERENT_MASK, M32, 1), free(device=OTHER)],
    "another device's mask, written": [
        alloc(bus=4 * BUS, device=OTHER),
        alloc(),
        free(mask=M32, coherent_mask=2 * BUS - 1),
        free(bus=4 * BUS, device=OTHER),
    ],
    "a type refused of freed pages": [typed(Kind.MEMORY_WC, **REFUSED), bound()],
    "a device at another's address": [
        alloc(name="one", bus=4 * BUS),
        alloc(name="two", coherent_mask=2 * BUS - 1),
        free(name="two", coherent_mask=2 * BUS - 1),
        free(name="one", bus=4 * BUS),
    ],
    "blocks in their pool": [
        pooled(boundary=PAGE),
        alloc(),
        block(),
        block(BUS + 128),
        block(BUS + 128, Kind.POOL_FREE),
        block(kind=Kind.POOL_FREE),
        block(0, Kind.POOL_DESTROY),
        free(),
        bound(UNBIND),
    ],
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


def replayed(rows, whole=True, **known):
    book = Book(whole=whole, **known)
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


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("above-mask/written", 0),  # the buffer that lies above, not the call that shows it
        ("mask-refused", 0),
        ("mask-after-alloc", 1),
        ("type-not-set", 1),
        ("type-not-set/no buffer", 1),
        ("sync-range", 1),
        ("free-address/by another function", 1),
        ("unchecked-mapping-error", 1),
        ("user-mapping-type", 1),
    ],
)
def test_the_call_that_is_to_blame(name, number):
    (violation,) = replayed(WRONG[name]).violations
    assert violation.event.number == number


def test_what_was_used_unchecked_is_known():
    (violation,) = replayed(WRONG["unchecked-mapping-error"]).violations
    assert violation.entry.made.number == 0


@pytest.mark.parametrize(
    "name", ["double-unmap", "use-after-unmap", "pool-double-free", "free-address/twice"]
)
def test_what_had_ended_before_is_known_whenever_the_ledger_came(name):
    (violation,) = replayed(WRONG[name], whole=False).violations
    assert violation.entry.ended.number < violation.event.number


def test_a_device_that_drives_less_than_its_driver_says():
    said = mask(Kind.SET_COHERENT_MASK, M32, NOWHERE, name="narrow")
    made = alloc(name="narrow", bus=1 << 24, coherent_mask=NOWHERE)
    (violation,) = replayed([said, made], reach={"narrow": 0xFFFFFF}).violations
    assert (violation.rule, violation.event.number, violation.entry.made.number) == ("above-mask", 0, 1)
    (violation,) = replayed([made], reach={"narrow": 0xFFFFFF}).violations
    assert violation.event is violation.entry.made
    assert replayed([said, made], reach={"narrow": (1 << 24) + PAGE - 1}).violations == []
    assert replayed([said, made], reach={"another": 0xFFFFFF}).violations == []


def test_a_sync_may_be_wrong_twice():
    rows = [mapped(), synced(direction=FROM, size=101), unmapped()]
    assert [one.rule for one in replayed(rows).violations] == ["sync-direction", "sync-range"]


def test_a_block_is_as_large_as_its_pool_says():
    book = replayed([pooled(), alloc(name="0000:00:05.0"), block(BUS + 128)])
    (entry,) = book.blocks
    assert (entry.made.size, entry.made.device, entry.made.name) == (128, DEV, "0000:00:05.0")


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
            right = [one for one in inside if one[3] in (BOTH, direction)]
            if not inside:
                rules.append("use-after-unmap")
            elif not right:
                rules.append("sync-direction")
            if inside and all(bus + size > one[1] + one[2] for one in right or inside):
                rules.append("sync-range")
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
