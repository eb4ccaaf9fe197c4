# SPDX-License-Identifier: MIT
"""Group E: memory whose contents may be given up."""

from harness.contract.case import KIB, PAGE, Case, Place
from harness.contract.engine import check
from harness.contract.pressure import purge
from harness.iokit import IOBufferMemoryDescriptor, IOReturn, Task, kernel_task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapInhibitCache,
    kIOMemoryKernelUserShared,
    kIOMemoryPageable,
    kIOMemoryPhysicallyContiguous,
    kIOMemoryPurgeable,
    kIOMemoryPurgeableEmpty,
    kIOMemoryPurgeableKeepCurrent,
    kIOMemoryPurgeableNonVolatile,
    kIOMemoryPurgeableVolatile,
    kIOMemoryPurgeableVolatileBehaviorLifo,
    kIOMemoryPurgeableVolatileGroup7,
)

_KEEP, _NON_VOLATILE = kIOMemoryPurgeableKeepCurrent, kIOMemoryPurgeableNonVolatile
_VOLATILE, _EMPTY = kIOMemoryPurgeableVolatile, kIOMemoryPurgeableEmpty
_STATES = {_KEEP: "KeepCurrent", _NON_VOLATILE: "NonVolatile", _VOLATILE: "Volatile", _EMPTY: "Empty"}
_PAGEABLE = kIODirectionInOut | kIOMemoryPageable
_PURGEABLE = _PAGEABLE | kIOMemoryPurgeable
_TASKS = (Task.CURRENT, Task.NULL, kernel_task)
_SIZE = 64 * KIB


def _buffers(case: Case) -> list[IOBufferMemoryDescriptor]:
    """Make a purgeable buffer in each kind of task."""
    return [case.need(case.iokit.inTaskWithOptions(task, _PURGEABLE, _SIZE)) for task in _TASKS]


def _set(case: Case, buf: IOBufferMemoryDescriptor, state: int, *, was: int) -> None:
    """Call setPurgeable, which must succeed and report *was*."""
    name = _STATES[state & 0xF]
    code, old = buf.setPurgeable(state)
    case.expect(code, equals=IOReturn.kIOReturnSuccess, what=f"setPurgeable({name}) of {buf!r}")
    case.expect(_STATES.get(old, old), equals=_STATES[was], what=f"old state at setPurgeable({name})")


def _refused(case: Case, buf: IOBufferMemoryDescriptor, code: IOReturn) -> None:
    """Call setPurgeable with every state; each must be refused with *code*."""
    for state, name in _STATES.items():
        case.expect(buf.setPurgeable(state).code, equals=code, what=f"setPurgeable({name}) of {buf!r}")


def _expect_stored(case: Case, buf: IOBufferMemoryDescriptor, data: bytes, when: str) -> None:
    """Compare contents by readBytes, and in guest RAM through the buffer's own page tables."""
    case.expect_bytes(buf.readBytes(0, len(data)), equals=data, what=f"readBytes of {buf!r} {when}")
    address = buf.getBytesNoCopy()
    if not address:
        return
    if not buf.address:
        case.guest.peek(address, len(data))
    with case.look(case.guest) as look:
        found = look.read(Place(address, _SIZE), 0, len(data))
        case.expect_bytes(found, equals=data, what=f"RAM behind {buf!r} {when}")


@check("E05")
def purgeable_buffers_change_their_state(case: Case) -> None:
    """Sends purgeable buffers in every kind of task through the states; every call succeeds."""
    for buf in _buffers(case):
        state = _NON_VOLATILE
        for new in (_NON_VOLATILE, _VOLATILE, _VOLATILE, _NON_VOLATILE, _EMPTY, _NON_VOLATILE, _KEEP):
            _set(case, buf, new, was=state)
            state = state if new == _KEEP else new
        modified = kIOMemoryPurgeableVolatile | kIOMemoryPurgeableVolatileGroup7
        _set(case, buf, modified | kIOMemoryPurgeableVolatileBehaviorLifo, was=state)
        _set(case, buf, _NON_VOLATILE, was=_VOLATILE)


@check("E06")
def purgeable_needs_pageable(case: Case) -> None:
    """Asks for purgeable buffers with and without kIOMemoryPageable: only with it setPurgeable works."""
    for size in (16, 5000, _SIZE):
        with case.make(_PURGEABLE, size) as both:
            _set(case, both, _VOLATILE, was=_NON_VOLATILE)
        with case.make(kIODirectionInOut | kIOMemoryPurgeable, size) as wired:
            code = wired.setPurgeable(_VOLATILE).code
            case.expect_that(
                code != IOReturn.kIOReturnSuccess, expected=f"{wired!r} refused", observed=f"{code!r}"
            )


@check("E07")
def purgeable_without_pageable_is_ignored(case: Case) -> None:
    """Passes kIOMemoryPurgeable without kIOMemoryPageable: a wired buffer that refuses with Mach codes."""
    small, large = IOReturn.KERN_INVALID_ADDRESS, IOReturn.KERN_INVALID_ARGUMENT
    for options, size, alignment, code in (
        (0, 16, 1, small), (0, 5000, 1, small), (0, _SIZE, PAGE, large), (0, 5000, 2 * PAGE, large),
        (kIOMapInhibitCache, 16, 1, large), (kIOMemoryKernelUserShared, 16, 1, large),
        (kIOMemoryPhysicallyContiguous, _SIZE, 1, large),
    ):  # fmt: skip
        buf = case.make(kIODirectionInOut | kIOMemoryPurgeable | options, size, alignment)
        case.expect(buf.getCapacity(), equals=size, what=f"getCapacity of {buf!r}")
        data = case.pattern(size)
        buf.writeBytes(0, data)
        address = buf.getPhysicalAddress()
        case.expect_that(address != 0, expected=f"a physical address for {buf!r}", observed="0")
        _refused(case, buf, code)
        case.expect_bytes(buf.readBytes(0, size), equals=data, what=f"contents of {buf!r}")


@check("E08")
def pageable_alone_is_not_purgeable(case: Case) -> None:
    """Calls setPurgeable on pageable buffers made without kIOMemoryPurgeable: code 4, for every state."""
    for task in _TASKS:
        buf = case.need(case.iokit.inTaskWithOptions(task, _PAGEABLE, 5000))
        data = case.pattern(5000)
        buf.writeBytes(0, data)
        _refused(case, buf, IOReturn.KERN_INVALID_ARGUMENT)
        case.expect_bytes(buf.readBytes(0, 5000), equals=data, what=f"contents of {buf!r}")


@check("E09")
def a_purgeable_buffer_starts_non_volatile(case: Case) -> None:
    """Makes the first call of setPurgeable with each state: the old state is NonVolatile."""
    for state in (_VOLATILE, _EMPTY, _NON_VOLATILE, _KEEP):
        for buf in _buffers(case):
            _set(case, buf, state, was=_NON_VOLATILE)


@check("E10", outside=True)
def the_old_state_tells_what_became_of_the_contents(case: Case) -> None:
    """Makes buffers volatile, with and without a kernel that looks for memory, and compares state and bytes.

    ``drop_caches`` asks everything that can give memory up to do so, again while it answers that it is busy.
    """
    for pressed in (False, True):
        for buf in _buffers(case):
            data = case.pattern(_SIZE)
            buf.writeBytes(0, data)
            _set(case, buf, _VOLATILE, was=_NON_VOLATILE)
            if pressed:
                purge(case, buf)
            _set(case, buf, _NON_VOLATILE, was=_EMPTY if pressed else _VOLATILE)
            kept = bytes(_SIZE) if pressed else data
            _expect_stored(case, buf, kept, "after it was purged" if pressed else "after being volatile")
            buf.writeBytes(0, data)
            if pressed:
                case.guest.write_file("/proc/sys/vm/drop_caches", b"2\n")
            _expect_stored(case, buf, data, "while it is not volatile")


@check("E11", outside=True)
def empty_discards_the_pages(case: Case) -> None:
    """Fills buffers, makes them Empty and finds no page resident or mapped; then zeros."""
    for buf in _buffers(case):
        buf.writeBytes(0, case.pattern(_SIZE))
        address = buf.getBytesNoCopy()
        if address and not buf.address:
            case.guest.peek(address, _SIZE)
        case.expect(buf.getPageCounts().resident, equals=_SIZE // PAGE, what=f"resident pages of {buf!r}")
        _set(case, buf, _EMPTY, was=_NON_VOLATILE)
        case.expect(buf.getPageCounts().resident, equals=0, what=f"resident pages of {buf!r}, Empty")
        with case.look(case.guest) as look:
            if buf.address:
                case.expect_zero(look.read(buf), what=f"RAM behind {buf!r}, Empty")
            elif address:
                mapped = look.mapped_pages(Place(address, _SIZE))
                case.expect(mapped, equals=0, what=f"mapped pages of {buf!r}, Empty")
        _set(case, buf, _NON_VOLATILE, was=_EMPTY)
        _expect_stored(case, buf, bytes(_SIZE), "after Empty")


@check("E12")
def volatile_leaves_an_empty_buffer_empty(case: Case) -> None:
    """Makes Empty buffers Volatile; the next old state is Empty."""
    for buf in _buffers(case):
        _set(case, buf, _EMPTY, was=_NON_VOLATILE)
        _set(case, buf, _VOLATILE, was=_EMPTY)
        _set(case, buf, _VOLATILE, was=_EMPTY)
        _set(case, buf, _KEEP, was=_EMPTY)
        _set(case, buf, _NON_VOLATILE, was=_EMPTY)
        _set(case, buf, _KEEP, was=_NON_VOLATILE)


@check("E13")
def keep_current_only_asks(case: Case) -> None:
    """Asks twice in every state: the same answer, and contents are left alone."""
    for buf in _buffers(case):
        data = case.pattern(5000)
        buf.writeBytes(0, data)
        for state in (_NON_VOLATILE, _VOLATILE, _EMPTY):
            was = _NON_VOLATILE
            if state != _NON_VOLATILE:
                _set(case, buf, state, was=was)
            for _ in range(3):
                _set(case, buf, _KEEP, was=state)
            _set(case, buf, _NON_VOLATILE, was=state)
            if state != _EMPTY:
                case.expect_bytes(buf.readBytes(0, 5000), equals=data, what=f"contents of {buf!r}")


@check("E14")
def other_states_are_bad_arguments(case: Case) -> None:
    """Passes states whose low four bits mean nothing: kIOReturnBadArgument, and the state stays."""
    for buf in _buffers(case):
        for before in (_NON_VOLATILE, _VOLATILE):
            _set(case, buf, before, was=_NON_VOLATILE)
            for state in (0, *range(5, 16), 0x10, 0x700, 0x2005, 0x740 | 0xF, 0xFFFF_FFF0):
                code = buf.setPurgeable(state).code
                case.expect(code, equals=IOReturn.kIOReturnBadArgument, what=f"setPurgeable({state:#x})")
                _set(case, buf, _KEEP, was=before)
            _set(case, buf, _NON_VOLATILE, was=before)
