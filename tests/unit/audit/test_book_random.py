# SPDX-License-Identifier: MIT
"""Random drivers: whoever does everything well is never accused, and one fault is found as what it is."""

from dataclasses import dataclass, field, replace

from hypothesis import assume, given
from hypothesis import strategies as st

from harness.audit import Book, Direction, Event, Flag, Kind, Piece

PAGE = 4096
DEVICES = (0x100, 0x200)
M24, M32, M64 = (1 << 24) - 1, (1 << 32) - 1, (1 << 64) - 1
PWT = 1 << 3
TO, FROM, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BIDIRECTIONAL
HIGH = 1 << 40
ENDS = {
    Kind.ALLOC: Kind.FREE,
    Kind.ALLOC_PAGES: Kind.FREE_PAGES,
    Kind.MAP_PAGE: Kind.UNMAP_PAGE,
    Kind.MAP_SG: Kind.UNMAP_SG,
    Kind.MAP_SGTABLE: Kind.UNMAP_SG,
    Kind.MAP_RESOURCE: Kind.UNMAP_RESOURCE,
    Kind.POOL_CREATE: Kind.POOL_DESTROY,
    Kind.POOL_ALLOC: Kind.POOL_FREE,
}


@dataclass
class Driver:
    """Does what it is told to do well, and writes down the events a ledger would."""

    draw: object
    events: list[Event] = field(default_factory=list)
    alive: list[Event] = field(default_factory=list)
    typed: dict[int, Kind] = field(default_factory=dict)
    masks: dict[int, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(DEVICES, (M32, M32)))
    top: int = 1 << 20

    def pick(self, options):
        return self.draw(st.sampled_from(options))

    def say(self, kind, device=0, **fields):
        mask, coherent = self.masks.get(device, (0, 0))
        known = {"device": device, "mask": mask, "coherent_mask": coherent, "module": "drv"}
        event = Event(number=len(self.events), kind=kind, **{**known, **fields})
        self.events.append(event)
        return event

    def room(self, size):
        """Addresses nobody has; several sizes fit into the smallest mask for as long as a test lasts."""
        pages = 1 << max(0, (-(-size // PAGE) - 1)).bit_length()
        self.top = -(-self.top // (pages * PAGE)) * pages * PAGE
        at = self.top
        self.top += pages * PAGE
        return at

    def of(self, *kinds):
        return [event for event in self.alive if event.kind in kinds]

    def set_mask(self):
        device = self.pick(DEVICES)
        kind = self.pick([Kind.SET_MASK, Kind.SET_COHERENT_MASK])
        wide = self.pick([M32, M64])
        if any(event.device == device and event.kind in ENDS for event in self.events):
            wide = M64  # only wider once something was made
        error = self.pick([0, 0, -5])
        if error:
            self.say(kind, device, size=0xFF, error=error)
        self.say(kind, device, size=wide)
        mask, coherent = self.masks[device]
        self.masks[device] = (wide, coherent) if kind is Kind.SET_MASK else (mask, wide)

    def allocate(self):
        kind = self.pick([Kind.ALLOC, Kind.ALLOC_PAGES])
        size = self.pick([1, 100, PAGE, 5000, 3 * PAGE])
        bus = self.room(size)
        direction = Direction.UNSAID if kind is Kind.ALLOC else self.pick([TO, FROM, BOTH])
        flags = self.pick([Flag(0), Flag.ATOMIC])
        where = {"size": size, "bus": bus, "virtual": bus + HIGH, "physical": bus, "direction": direction}
        self.alive.append(self.say(kind, self.pick(DEVICES), flags=flags, **where))

    def fail(self):
        kind = self.pick([Kind.ALLOC, Kind.MAP_PAGE, Kind.MAP_SG, Kind.POOL_CREATE, Kind.MEMORY_WC])
        self.say(kind, self.pick(DEVICES), size=PAGE, bus=M64, error=-12)

    def map(self):
        kind = self.pick([Kind.MAP_PAGE, Kind.MAP_SG, Kind.MAP_SGTABLE, Kind.MAP_RESOURCE])
        size = self.pick([8, 1000, PAGE, 6000])
        bus = self.room(2 * PAGE)
        bus += self.pick([0, 64, 512]) if kind is Kind.MAP_PAGE else 0
        pieces = ()
        if kind in {Kind.MAP_SG, Kind.MAP_SGTABLE}:
            half = size // 2
            pieces = (Piece(bus, half, bus, half), Piece(bus + PAGE, size - half, bus + PAGE, size - half))
        direction = self.pick([TO, FROM, BOTH])
        where = {"size": size, "bus": bus, "physical": bus, "direction": direction, "pieces": pieces}
        self.alive.append(self.say(kind, self.pick(DEVICES), **where))

    def sync(self):
        mapped = self.of(Kind.MAP_PAGE, Kind.MAP_SG, Kind.MAP_SGTABLE, Kind.ALLOC_PAGES)
        if not mapped:
            return
        made = self.pick(mapped)
        said = self.pick([TO, FROM]) if made.direction is BOTH else made.direction
        if made.pieces:
            kind, start, size = self.pick([Kind.SYNC_SG_FOR_CPU, Kind.SYNC_SG_FOR_DEVICE]), 0, made.size
        else:
            kind = self.pick([Kind.SYNC_FOR_CPU, Kind.SYNC_FOR_DEVICE])
            start = self.draw(st.integers(0, made.size - 1))
            size = self.draw(st.integers(1, made.size - start))
        self.say(kind, made.device, bus=made.bus + start, size=size, direction=said)

    def create_pool(self):
        pool = {"owner": 0x9000 + len(self.events), "size": 64, "bus": 64, "boundary": self.pick([0, PAGE])}
        self.alive.append(self.say(Kind.POOL_CREATE, self.pick(DEVICES), name="blocks", **pool))

    def take_block(self):
        pools = self.of(Kind.POOL_CREATE)
        if pools:
            pool, bus = self.pick(pools), self.room(PAGE)
            virtual = bus + HIGH
            self.alive.append(self.say(Kind.POOL_ALLOC, owner=pool.owner, bus=bus, virtual=virtual))

    def change_type(self):
        buffers = self.of(Kind.ALLOC)
        if not buffers:
            return
        made = self.pick(buffers)
        kind = self.pick([Kind.MEMORY_WC, Kind.MEMORY_UC])
        self.set_type(made, self.pick([kind, Kind.MEMORY_WB]))

    def set_type(self, made, kind):
        pages = -(-made.size // PAGE)
        self.say(kind, virtual=made.virtual, physical=made.physical, size=pages)
        self.typed[made.number] = kind

    def give_to_user(self):
        buffers = self.of(Kind.ALLOC)
        if buffers:
            made = self.pick(buffers)
            cached = self.typed.get(made.number, Kind.MEMORY_WB) is Kind.MEMORY_WB
            where = {"physical": made.physical, "size": PAGE, "owner": HIGH + made.physical}
            self.say(Kind.USER_PAGE, gfp=0 if cached else PWT, **where)

    def end(self):
        if self.alive:
            self.end_of(self.pick(self.alive))

    def end_of(self, made):
        if made.kind is Kind.POOL_CREATE:
            for block in [one for one in self.of(Kind.POOL_ALLOC) if one.owner == made.owner]:
                self.end_of(block)
        if self.typed.pop(made.number, Kind.MEMORY_WB) is not Kind.MEMORY_WB:
            self.set_type(made, Kind.MEMORY_WB)
            del self.typed[made.number]
        self.alive.remove(made)
        same = {name: getattr(made, name) for name in ("size", "bus", "virtual", "direction", "owner")}
        self.say(ENDS[made.kind], made.device, **same)

    def leave(self):
        while self.alive:
            self.end_of(self.alive[-1])
        for device in DEVICES:
            self.say(Kind.UNBIND, device)
        self.say(Kind.MODULE_GOING)


STEPS = (
    *(Driver.set_mask, Driver.allocate, Driver.allocate, Driver.fail, Driver.map, Driver.map, Driver.sync),
    *(Driver.create_pool, Driver.take_block, Driver.change_type, Driver.give_to_user, Driver.end, Driver.end),
)


@st.composite
def well_behaved(draw):
    """The events of a driver that loads, works and goes."""
    driver = Driver(draw)
    driver.say(Kind.MODULE_COMING)
    driver.say(Kind.MODULE_COMING, init=True)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=8, max_size=40)):
        step(driver)
    for device in DEVICES:
        driver.say(Kind.BIND, device)
    driver.say(Kind.MODULE_GOING, init=True)
    driver.leave()
    return driver.events


def rules(events):
    book = Book()
    book.replay(events)
    return book, [one.rule for one in book.violations]


@given(well_behaved())
def test_who_does_it_well_is_never_accused(events):
    book, found = rules(events)
    assert found == []
    left = [len(book.buffers), len(book.mappings), len(book.blocks), len(book.pools), len(book.types)]
    assert left == [0] * 5


def shorter(event):
    return replace(event, size=event.size - 1)


def turned(event):
    return replace(event, direction=FROM if event.direction is not FROM else TO)


FAULTS = {
    "free-size": ({Kind.FREE, Kind.FREE_PAGES}, shorter),
    "free-device": ({Kind.FREE, Kind.FREE_PAGES}, lambda event: replace(event, device=0x300)),
    "free-address": ({Kind.FREE, Kind.FREE_PAGES, Kind.POOL_FREE}, lambda event: replace(event, virtual=1)),
    "unmap-size": ({Kind.UNMAP_PAGE, Kind.UNMAP_SG, Kind.UNMAP_RESOURCE}, shorter),
    "unmap-direction": ({Kind.UNMAP_PAGE, Kind.UNMAP_SG, Kind.UNMAP_RESOURCE}, turned),
    "unchecked-mapping-error": (
        {Kind.SYNC_FOR_CPU, Kind.SYNC_FOR_DEVICE},
        lambda event: replace(event, bus=M64),
    ),
    "sync-range": (
        {Kind.SYNC_FOR_CPU, Kind.SYNC_FOR_DEVICE},
        lambda event: replace(event, size=event.size + 2 * PAGE),
    ),
    "not-zeroed": ({Kind.ALLOC}, lambda event: replace(event, flags=Flag.NOT_ZEROED)),
    "sleeping-in-atomic": ({Kind.MEMORY_WC}, lambda event: replace(event, flags=Flag.IRQS_OFF)),
    "unaligned-set-memory": ({Kind.MEMORY_WC}, lambda event: replace(event, virtual=event.virtual + 1)),
    "user-mapping-type": ({Kind.USER_PAGE}, lambda event: replace(event, gfp=event.gfp ^ PWT)),
}
LOST = {
    Kind.FREE: "leak-on-remove",
    Kind.FREE_PAGES: "leak-on-remove",
    Kind.UNMAP_PAGE: "never-unmapped",
    Kind.UNMAP_SG: "never-unmapped",
    Kind.UNMAP_RESOURCE: "never-unmapped",
    Kind.POOL_FREE: "pool-leak",
    Kind.POOL_DESTROY: "pool-leak",
}
TWICE = {
    Kind.FREE: "free-address",
    Kind.FREE_PAGES: "free-address",
    Kind.UNMAP_PAGE: "double-unmap",
    Kind.UNMAP_SG: "double-unmap",
    Kind.UNMAP_RESOURCE: "double-unmap",
    Kind.POOL_FREE: "pool-double-free",
}


@given(st.data(), well_behaved())
def test_one_wrong_call_is_found_as_what_it_is(data, events):
    places = [
        (rule, at)
        for rule, (kinds, spoil) in FAULTS.items()
        for at, event in enumerate(events)
        if event.kind in kinds and not event.error and spoil(event) != event
    ]
    assume(places)
    rule, at = data.draw(st.sampled_from(places))
    spoilt = FAULTS[rule][1](events[at])
    book, found = rules([*events[:at], spoilt, *events[at + 1 :]])
    assert found == [rule]
    assert book.violations[0].event is spoilt


@given(st.data(), well_behaved())
def test_an_end_that_is_missing_or_comes_twice(data, events):
    table, twice = data.draw(st.sampled_from([(LOST, False), (TWICE, True)]))
    places = [at for at, event in enumerate(events) if event.kind in table]
    assume(places)
    at = data.draw(st.sampled_from(places))
    again = [events[at]] * 2 if twice else []
    _, found = rules([*events[:at], *again, *events[at + 1 :]])
    assert found == [table[events[at].kind]]
