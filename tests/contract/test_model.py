# SPDX-License-Identifier: MIT
"""The module beside the model: any sequence of calls has to leave both in agreement.

`harness.iokit.reference` was written from the contract and knows nothing of the module.  Hypothesis invents
sequences of calls, makes each on both, and compares NULL-ness, values, codes and contents; now and then the
oracle compares the physical facts from outside.  How many sequences is the profile's business
(``HYPOTHESIS_PROFILE=thorough`` for the long run).

A failure is shrunk and printed as steps, ``state = Beside()`` and so on.  They are a test: paste them below
``def test_it(beside): Beside = beside``.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from harness.errors import GuestFailure
from harness.iokit import IOBufferMemoryDescriptor, IOKit, IOReturn, Null, Task
from harness.iokit import constants as k
from harness.iokit.reference import Call, Factory, Limits, ReferenceBuffer, Role, Verdict, place
from harness.link import Guest, GuestOSError
from harness.oracle import Oracle

PAGE = 4096
STEPS = 30
HUGE = 64 << 20

directions = st.sampled_from(
    [k.kIODirectionInOut, k.kIODirectionOut, k.kIODirectionIn, k.kIODirectionNone, 4]
)
modes = st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).map(lambda mode: mode << k.kIOMapCacheShift)
flags = st.sets(
    st.sampled_from([
        k.kIOMemoryPhysicallyContiguous, k.kIOMemoryHostPhysicallyContiguous, k.kIOMemoryKernelUserShared,
        k.kIOMemoryMapperNone, k.kIOMemoryThreadSafe, k.kIOMemoryClearEncrypt, k.kIOMemoryUseReserve,
        k.kIOMemoryHostOnly, k.kIOMemoryPurgeable,
    ]), max_size=3,
).map(sum)  # fmt: skip
pageable = st.sampled_from([
    0, 0, k.kIOMemoryPageable, k.kIOMemoryPageable | k.kIOMemoryPurgeable, k.kIOMapPrefault
])  # fmt: skip
options = st.tuples(directions, modes, flags, pageable).map(
    lambda parts: parts[0] | parts[1] | parts[2] | parts[3]
)
copy_options = st.one_of(options, options.map(lambda bits: bits | k.kIOMemoryPageable))
sizes = st.one_of(
    st.integers(1, 3 * PAGE),
    st.integers(1, 300_000),
    st.sampled_from([1, 2040, 2041, PAGE, PAGE + 1, 65_536, 1 << 20]),
)
capacities = st.one_of(*[sizes] * 7, st.sampled_from([0, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]))
alignments = st.one_of(
    *[st.sampled_from([0, 1, 1, 1, 2, 16, 100, 256, 2048, PAGE, 5000, 8192, 65_536])] * 7,
    st.sampled_from([1 << 40, (1 << 64) - 1]),
)
masks = st.sampled_from([
    0, 0xFFFF_FFFF, 0xFFFF_F000, 0xFFFF_E000, 0xFFFF_0000, 0x00FF_FFFF, 0x0FFF_FFFF, 0x7FFF_FFFF,
    (1 << 64) - 1, 0xF_FFFF_FFFF, 0xFF0F_FFFF, 1, 0xFFF,
])  # fmt: skip
roles = st.sampled_from([Role.KERNEL, Role.KERNEL, Role.USER, Role.NULL])
calls = st.one_of(
    st.builds(Call, st.just(Factory.WITH_OPTIONS), options, capacities, alignments),
    st.builds(Call, st.just(Factory.IN_TASK), options, capacities, alignments, st.just(0), roles),
    st.builds(Call, st.just(Factory.PHYSICAL_MASK), options, capacities, st.just(1), masks, roles),
    st.builds(Call, st.just(Factory.INIT), options, capacities, alignments, masks, roles),
    st.builds(
        Call, st.just(Factory.CAPACITY), directions, capacities, st.just(1), st.just(0), st.just(Role.KERNEL),
        st.booleans(),
    ),
    st.builds(Call, st.just(Factory.GUARD_PAGES), options, capacities, st.just(1), st.just(0), roles),
    st.builds(Call, st.just(Factory.CREATE), st.integers(0, 4), capacities, alignments),
)  # fmt: skip
offsets = st.one_of(st.integers(0, 2 * PAGE), st.integers(0, 1 << 20), st.just((1 << 64) - 1))
lengths = st.one_of(st.integers(0, PAGE), st.integers(0, 1 << 20))
seeds = st.integers(0, 250)
STATES = [
    k.kIOMemoryPurgeableKeepCurrent, k.kIOMemoryPurgeableNonVolatile, k.kIOMemoryPurgeableVolatile,
    k.kIOMemoryPurgeableEmpty, 0, 5, k.kIOMemoryPurgeableVolatile | k.kIOMemoryPurgeableVolatileGroup3,
]  # fmt: skip


def pattern(seed: int, size: int) -> bytes:
    """Bytes that differ from page to page and from seed to seed."""
    return bytes((seed + at * 7 + (at >> 12)) % 251 + 1 for at in range(251)) * (size // 251 + 1)


class Pair:
    """One descriptor and its model."""

    def __init__(self, buffer: IOBufferMemoryDescriptor, model: ReferenceBuffer) -> None:
        self.buffer = buffer
        self.model = model
        self.base = buffer.getBytesNoCopy()
        self.walk: list[tuple[int, int]] | None = None
        self.gone = False


class Beside(RuleBasedStateMachine):
    """Every rule makes one call on the module and on the model."""

    rig = None  # bound by the fixture

    pairs = Bundle("pairs")
    maps = Bundle("maps")

    def __init__(self) -> None:
        super().__init__()
        self.live: list[Pair] = []
        rig = self.rig.alive()
        self.iokit, self.oracle, self.limits = rig.iokit, rig.oracle, rig.limits
        self.before = self.iokit.info().live

    def teardown(self) -> None:
        failed_already = sys.exc_info()[0] is not None
        try:
            self.iokit.release_all()
            left = self.iokit.info().live
        except GuestFailure:
            self.rig.discard()
            if not failed_already:
                raise
        else:
            assert left == self.before, "A13"

    @initialize(target=pairs, direction=directions, mode=modes, size=sizes)
    def a_wired_one(self, direction, mode, size):
        return self._create(Call(Factory.WITH_OPTIONS, direction | mode, size))

    @initialize(target=pairs, direction=directions, mode=modes, size=sizes, role=roles)
    def a_pageable_one(self, direction, mode, size, role):
        bits = direction | mode | k.kIOMemoryPageable | k.kIOMemoryPurgeable
        return self._create(Call(Factory.IN_TASK, bits, size, task=role))

    # -- making ---------------------------------------------------------------------------------------------

    @rule(target=pairs, call=calls)
    def create(self, call):
        return self._create(call)

    def _create(self, call):
        placement = place(call, self.limits)
        made = self._made(call)
        return self._adopt(made, placement, b"")

    @rule(target=pairs, direction=directions, seed=seeds, size=sizes, contiguous=st.booleans())
    def with_bytes(self, direction, seed, size, contiguous):
        call = Call(Factory.BYTES, direction, size, contiguous=contiguous)
        data = pattern(seed, size)[:size]
        made = self.iokit.withBytes(data, direction, contiguous)
        return self._adopt(made, place(call, self.limits), data)

    @rule(target=pairs, bits=copy_options, seed=seeds, size=sizes, role=roles)
    def with_copy(self, bits, seed, size, role):
        call = Call(Factory.COPY, bits, size, task=role)
        data = pattern(seed, size)[:size]
        with self.iokit.process.memory(data) as source:
            made = self.iokit.withCopy(Task[role.value], bits, Task.CURRENT, source.address, size)
            source.write(0, bytes(min(size, 100)))  # G10: it is a snapshot
        return self._adopt(made, place(call, self.limits), data)

    def _made(self, call):
        if call.factory is Factory.CREATE:
            return self._driverkit(call)
        arguments = {
            Factory.WITH_OPTIONS: ("options", "capacity", "alignment"),
            Factory.IN_TASK: ("task", "options", "capacity", "alignment"),
            Factory.PHYSICAL_MASK: ("task", "options", "capacity", "mask"),
            Factory.INIT: ("task", "options", "capacity", "alignment", "mask"),
            Factory.CAPACITY: ("capacity", "options", "contiguous"),
            Factory.GUARD_PAGES: ("task", "options", "capacity"),
        }[call.factory]
        values = {**vars(call), "task": Task[call.task.value]}
        return getattr(self.iokit, call.factory.value)(*(values[name] for name in arguments))

    def _driverkit(self, call):
        code, memory = self.iokit.Create(call.options, call.capacity, call.alignment)
        if call.options & ~3:
            assert code == IOReturn.kIOReturnBadArgument, "K02"
        else:
            right = IOReturn.kIOReturnNoMemory if isinstance(memory, Null) else IOReturn.kIOReturnSuccess
            assert code == right, "K01, K03"
        return memory

    def _adopt(self, made, placement, contents):
        note(f"# {made!r}; the model says {placement.verdict.name} by {placement.clause}")
        if isinstance(made, Null):
            assert placement.verdict is not Verdict.MADE, f"{made!r} where a descriptor is due"
            assert made.reason, "a NULL without a reason"
            return multiple()
        assert placement.verdict is not Verdict.NULL, f"{made!r} against {placement.clause}"
        if placement.capacity > HUGE:  # pageable and unmapped: legal, and too much for a model of every byte
            made.release()
            return multiple()
        pair = Pair(made, ReferenceBuffer(placement, contents))
        self.live.append(pair)
        assert bool(pair.base) == placement.mapped, (
            "A10, A11: mapped where it should not be, or not where it should"
        )
        assert pair.base & placement.address_bits == 0, f"C01: address {pair.base:#x}"
        if placement.memory_type is not None and not placement.pageable:
            assert made.describe().memory_type == placement.memory_type, "F01 to F06"
        self._agree(pair)
        return pair

    # -- one call each --------------------------------------------------------------------------------------

    @rule(pair=pairs, length=st.one_of(lengths, st.just((1 << 64) - 1)), driverkit=st.booleans())
    def set_length(self, pair, length, driverkit):
        if pair.gone:
            return
        if driverkit:
            fits = length <= pair.model.placement.capacity
            right = IOReturn.kIOReturnSuccess if fits else IOReturn.kIOReturnBadArgument
            assert pair.buffer.SetLength(length) == right, "K09, K10"
        else:
            pair.buffer.setLength(length)
        pair.model.setLength(length)
        assert pair.buffer.getLength() == pair.model.length, "B04, B05"
        assert pair.buffer.GetLength() == (IOReturn.kIOReturnSuccess, pair.model.length), "K09"

    @rule(pair=pairs, direction=st.integers(0, 7))
    def set_direction(self, pair, direction):
        if pair.gone:
            return
        pair.buffer.setDirection(direction)
        pair.model.setDirection(direction)
        assert pair.buffer.getDirection() == pair.model.direction, "H02, H04"

    @rule(pair=pairs, seed=seeds, size=lengths)
    def append(self, pair, seed, size):
        if pair.gone or not pair.model.intact:
            return
        data = pattern(seed, size)[:size]
        assert pair.buffer.appendBytes(data) is pair.model.appendBytes(data), "G14"
        assert pair.buffer.getLength() == pair.model.length, "G12, G13"

    @rule(pair=pairs, offset=offsets, size=lengths)
    def read(self, pair, offset, size):
        if not pair.gone:
            assert pair.buffer.readBytes(offset, size) in pair.model.readBytes(offset, size), "H07 to H09"

    @rule(pair=pairs, offset=offsets, size=lengths, seed=st.one_of(st.none(), seeds))
    def write(self, pair, offset, size, seed):
        if pair.gone or not pair.model.intact:
            return
        data = None if seed is None else pattern(seed, size)[:size]
        written = pair.buffer.writeBytes(offset, data, size)
        assert written == pair.model.writeBytes(offset, data, size), "H05, H08 to H10"

    @rule(pair=pairs, direction=st.sampled_from([0, 1, 2, 3]), times=st.integers(1, 3))
    def prepare(self, pair, direction, times):
        for _ in range(0 if pair.gone else times):
            assert pair.buffer.prepare(direction) == pair.model.prepare(direction), "H06, H11"

    @rule(pair=pairs, direction=st.sampled_from([0, 1, 2, 3, 0x40, 0x80]), times=st.integers(1, 3))
    def complete(self, pair, direction, times):
        for _ in range(0 if pair.gone else times):
            if pair.model.prepared == 1 and not pair.model.placement.pageable:
                return  # xnu unwires a wired buffer for good there, and panics at the next question
            assert pair.buffer.complete(direction) == pair.model.complete(), "H13, H14"

    @rule(pair=pairs, state=st.sampled_from(STATES))
    def purge(self, pair, state):
        if pair.gone:
            return
        code, old = pair.buffer.setPurgeable(state)
        allowed = pair.model.purge_answers(state)
        assert any(code == right and then in (-1, old) for right, then in allowed), (
            f"E07 to E14: {code!r}, {old}"
        )
        pair.model.purge(state, old)

    @rule(pair=pairs)
    def segments(self, pair):
        if pair.gone or not pair.model.prepared:
            return
        walk = [tuple(segment) for segment in pair.buffer.segments()]
        wired = not pair.model.placement.pageable
        fixed = (
            pair.walk if wired and pair.walk and sum(n for _, n in pair.walk) >= pair.model.length else None
        )
        wrong = pair.model.judge_segments(walk, fixed)
        assert not wrong, f"{wrong}: {walk[:4]}"
        if wired and fixed is None:
            pair.walk = walk
        end = pair.model.length
        assert pair.buffer.getPhysicalSegment(end) == (0, 0), "I02"
        assert pair.buffer.getPhysicalAddress() == (walk[0][0] if walk else 0), "I06"

    @rule(pair=pairs, start=offsets, size=lengths)
    def everything(self, pair, start, size):
        if pair.gone:
            return
        self._agree(pair)
        if pair.base:  # where there is none, xnu returns the offset itself as a pointer
            expected = pair.model.getBytesNoCopy(pair.base, start, size)
            assert pair.buffer.getBytesNoCopy(start, size) == expected, "G18 to G20"

    # -- mappings -------------------------------------------------------------------------------------------

    @rule(
        target=maps, pair=pairs, role=roles, offset=st.one_of(st.just(0), offsets),
        size=st.one_of(st.just(0), lengths),
        bits=st.sampled_from([0, k.kIOMapReadOnly, k.kIOMapUnique, k.kIOMapPrefault,
                              k.kIOMapUnique | k.kIOMapReadOnly, k.kIOMapGuardedSmall]),
    )  # fmt: skip
    def make_map(self, pair, role, offset, size, bits):
        if pair.gone:
            return multiple()
        bits |= k.kIOMapAnywhere
        expected = pair.model.map_answer(role, bits, offset, size)
        made = pair.buffer.createMappingInTask(Task[role.value], 0, bits, offset, size)
        assert isinstance(made, Null) == (expected is None), f"J05, J06, J11: {made!r}"
        if expected is None:
            return multiple()
        assert made.getLength() == expected.length, "B11"
        if expected.own:
            assert made.getVirtualAddress() == pair.base + offset, "J02"
        return (pair, made, expected)

    @rule(entry=maps)
    def read_map(self, entry):
        pair, made, expected = entry
        if expected.role is Role.USER and pair.model.intact:
            model = bytes(pair.model.contents[expected.offset : expected.offset + expected.length])
            assert made.read() == model, "E15, F16"

    @rule(entry=maps, seed=seeds)
    def write_map(self, entry, seed):
        pair, made, expected = entry
        if expected.role is not Role.USER or not pair.model.intact or not pair.model.writable:
            return
        size = min(expected.length, 100)
        data = pattern(seed, size)[:size]
        if made.describe().writable != expected.writable:
            raise AssertionError(f"J04: {made.describe()}")
        if expected.writable:
            made.write(0, data)
            pair.model.contents[expected.offset : expected.offset + size] = data
        else:
            with pytest.raises(GuestOSError, match="EFAULT"):
                made.write(0, data)

    @rule(entry=consumes(maps))
    def unmap(self, entry):
        entry[1].release()

    @rule(pair=consumes(pairs))
    def release(self, pair):
        pair.buffer.release()
        pair.gone = True
        if pair in self.live:
            self.live.remove(pair)

    # -- from outside ---------------------------------------------------------------------------------------

    @rule()
    def look(self):
        """Compare what the descriptors say with page tables and RAM."""
        seen = []
        for pair in self.live:
            if pair.model.prepared and pair.model.length:
                seen.append((pair, pair.buffer.segments()))
        with self.oracle.frozen() as view:
            for pair, walk in seen:
                held = b"".join(view.read(*segment) for segment in walk)
                model = pair.model
                right = model.readBytes(0, model.length) if model.intact else {held}
                assert held in right, f"contents in RAM of {pair.buffer!r}"
                if pair.base and model.placement.role is Role.KERNEL and not model.placement.pageable:
                    ranges = view.physical_of(pair.base, model.length)
                    assert [(part.start, part.length) for part in ranges] == [tuple(one) for one in walk], (
                        "I01"
                    )
                    name = model.placement.memory_type
                    types = {one.name for one in view.pat_types_of(pair.buffer)}
                    assert name is None or types == {name}, f"F09: {types} of {pair.buffer!r}"

    def _agree(self, pair):
        buffer, model = pair.buffer, pair.model
        assert buffer.getCapacity() == model.placement.capacity, "B01, B02"
        assert buffer.getLength() == model.length, "B03"
        assert buffer.getDirection() == model.direction, "H01"
        assert buffer.getBytesNoCopy() == pair.base, "I09, B08"
        held = buffer.readBytes(0, model.length)
        allowed = model.readBytes(0, model.length)
        if len(held) == model.placement.capacity and held in allowed:
            model.settle(held)
        assert held in allowed, f"contents differ from byte {_first_difference(held, min(allowed))} on"


def _first_difference(one: bytes, other: bytes) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class Rig:
    """A guest of this test's own; a kernel that died of one sequence is replaced before the next.

    Hypothesis repeats a failure many times over to make it short: each time on a kernel that lives.
    """

    def __init__(self, image, options) -> None:
        self.image, self.options = image, options
        self.stack = ExitStack()
        self.iokit = self.oracle = self.limits = None

    def alive(self):
        if self.iokit is None:
            guest = self.stack.enter_context(Guest(self.image, self.options))
            self.iokit, self.oracle = IOKit(guest), Oracle(guest.machine)
            ranges = guest.machine.ram.ranges
            self.limits = Limits(
                memory=sum(length for _, length in ranges),
                top=max(start + length for start, length in ranges),
                plenty=4 << 20,
                types=self.iokit.info().types,
            )
        return self

    def discard(self) -> None:
        self.stack.close()
        self.iokit = None


@pytest.fixture
def rig(guest):
    rig = Rig(guest.image, guest.options)
    try:
        yield rig
    finally:
        rig.discard()


@pytest.fixture
def beside(rig):
    """The state machine, bound to a guest; a class, as the printed steps want it."""
    return type("Beside", (Beside,), {"rig": rig})


def test_the_module_does_what_the_model_does(beside, rig):
    run_state_machine_as_test(
        beside, settings=settings(stateful_step_count=STEPS, report_multiple_bugs=False)
    )
    with rig.alive().oracle.frozen() as view:
        assert view.direct_map_anomalies() == ()
