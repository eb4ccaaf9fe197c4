# SPDX-License-Identifier: MIT
"""Group F, second half: memory types where a buffer has several mappings.

One page must never have two types at a time, so that what is compared is always every leaf of every page
table, the kernel's and those of both processes.
"""

from __future__ import annotations

from harness.contract.case import KIB, MIB, Case
from harness.contract.checks.caching import UNCACHED, WB, WC, typed_modes
from harness.contract.engine import check
from harness.contract.mapped import (
    PAGEABLE,
    expect_layout,
    expect_types,
    filled,
    layout,
    map_into,
    pages_of,
    place_of,
    user_leaves,
)
from harness.contract.tracing import Flushes, flushes
from harness.iokit import IOBufferMemoryDescriptor, IOMemoryMap, kernel_task
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMapCopybackCache,
    kIOMapDefaultCache,
    kIOMapInhibitCache,
    kIOMapPostedCombinedReordered,
    kIOMapPostedReordered,
    kIOMapPrefault,
    kIOMapReadOnly,
    kIOMapUnique,
    kIOMapWriteCombineCache,
)
from harness.oracle import MemoryType

_KINDS = (kIODirectionInOut, PAGEABLE)
_SIZE = 64 * KIB + 100


def _touch(*maps: IOMemoryMap) -> None:
    """Have every page of user mappings read: a mapping without leaves has no type."""
    for mapping in maps:
        mapping.read()


def _expect_all(
    case: Case,
    buf: IOBufferMemoryDescriptor,
    maps: tuple[IOMemoryMap, ...],
    allowed: frozenset[MemoryType],
    what: str,
) -> None:
    """Compare the type of every leaf over the buffer; each process's mapping must be among them."""
    _touch(*maps)
    for mapping in maps:
        with case.look(mapping.process) as look:
            place = place_of(mapping)
            where = look.where(place)
            expect_types(case, look.leaves(place), allowed, f"{what}, in {mapping!r}")
            everywhere = look.aliases_of(repr(buf), where)
            expect_types(case, everywhere, allowed, f"{what}, in every page table")
            found = [leaf for leaf in user_leaves(look, repr(buf), where) if leaf.user]
            case.expect_that(
                len(found) >= pages_of(place.storage),
                expected=f"{pages_of(place.storage)} user leaves over {place}",
                observed=f"{len(found)}",
            )
            if buf.address:
                expect_types(case, look.leaves(buf), allowed, f"{what}, in the kernel")


@check("F09", outside=True)
def all_mappings_agree(case: Case) -> None:
    """Maps buffers of each mode into two processes and the kernel: all leaves have one type."""
    for mode, allowed in {kIOMapDefaultCache: WB, **typed_modes(case)}.items():
        for options in _KINDS:
            buf, _ = filled(case, options | mode, _SIZE)
            maps = tuple(map_into(case, buf, process, kIOMapUnique) for process in (case.guest, case.peer))
            kernel = case.need(buf.map(kIOMapUnique))
            _expect_all(case, buf, maps, allowed, f"mode {mode:#x}")
            with case.look() as look:
                place = place_of(kernel)
                expect_types(case, look.leaves(place), allowed, f"mode {mode:#x}, in {kernel!r}")
            buf.release()
            for mapping in (*maps, kernel):
                mapping.release()
        # More than one allocation behind one kernel address, and a mapping that is there at once.
        large = case.make(kIODirectionInOut | mode, 5 * MIB)
        mapping = map_into(case, large, case.guest, kIOMapUnique | kIOMapPrefault)
        with case.look() as look:
            expect_types(case, look.aliases(large), allowed, f"mode {mode:#x}, over {large!r}")
            user = user_leaves(look, repr(large), look.where(large))
            case.expect(len(user), equals=pages_of(5 * MIB), what=f"user leaves over {large!r}")
        mapping.release()
        large.release()


@check("F10", outside=True)
def a_later_mode_changes_all_mappings(case: Case) -> None:
    """Maps with one mode after the other and reads the type of the mappings made before: the last one's."""
    modes = {**typed_modes(case), kIOMapCopybackCache: WB, kIOMapPostedReordered: UNCACHED}
    modes |= {kIOMapPostedCombinedReordered: UNCACHED}
    for options in _KINDS:
        buf, data = filled(case, options, _SIZE)
        first, second = (map_into(case, buf, process, kIOMapUnique) for process in (case.guest, case.peer))
        kernel, address = case.need(buf.map(kIOMapUnique)), buf.getBytesNoCopy()
        _expect_all(case, buf, (first, second), WB, "before any mode")
        for number, (mode, allowed) in enumerate(modes.items()):
            task = (case.peer, kernel_task, case.guest)[number % 3]
            later = map_into(case, buf, task, kIOMapUnique | mode)
            _expect_all(case, buf, (first, second), allowed, f"after {later!r}")
            with case.look() as look:
                for mapping in (kernel, later) if task is kernel_task else (kernel,):
                    expect_types(case, look.leaves(place_of(mapping)), allowed, f"in {mapping!r}")
            case.expect_bytes(first.read(), equals=data, what=f"bytes read through the first after {later!r}")
            later.release()
        case.expect(buf.getBytesNoCopy(), equals=address, what="getBytesNoCopy after all modes", show=hex)
        case.expect_bytes(buf.readBytes(0, len(data)), equals=data, what="readBytes after all modes")
        case.release_all()


@check("F11", outside=True)
def a_later_default_mapping_inherits(case: Case) -> None:
    """Maps typed buffers with the default mode, by birth and by a later mapping: no change."""
    for mode, allowed in typed_modes(case).items():
        for options in _KINDS:
            for born in (True, False):
                buf, _ = filled(case, options | (mode if born else 0), _SIZE)
                if not born:
                    map_into(case, buf, case.peer, kIOMapUnique | mode)
                later = map_into(case, buf, case.guest, kIOMapUnique)
                _expect_all(case, buf, (later,), allowed, f"default mapping of mode {mode:#x}")
                kernel = place_of(case.need(buf.map(kIOMapUnique)))
                with case.look() as look:
                    expect_types(case, look.leaves(kernel), allowed, f"in the kernel, mode {mode:#x}")
                case.release_all()


@check("F14", outside=True)
def map_with_a_mode_changes_nothing(case: Case) -> None:
    """Maps wired kernel buffers with cache options: address and every leaf stay."""
    wanted = (kIOMapInhibitCache, kIOMapWriteCombineCache, kIOMapCopybackCache, *typed_modes(case))
    for made_with, allowed in {kIOMapDefaultCache: WB, **typed_modes(case)}.items():
        for capacity in (100, _SIZE):
            buf = case.make(kIODirectionInOut | made_with, capacity)
            with case.look() as look:
                before = layout(look.aliases(buf))
            maps = [case.need(buf.map(mode | how)) for mode in wanted for how in (0, kIOMapReadOnly)]
            for mapping in maps:
                where = mapping.getVirtualAddress()
                case.expect(where, equals=buf.getBytesNoCopy(), what=f"address of {mapping!r}", show=hex)
            with case.look() as look:
                expect_layout(case, look.aliases(buf), before, f"over {buf!r}, mapped with modes")
                expect_types(case, look.aliases(buf), allowed, f"{buf!r} after map() with modes")


@check("F17", outside=True)
def typing_a_page_flushes_and_loses_nothing(case: Case) -> None:
    """Turns written pages uncached: the kernel's flush ran, and no byte is missing through either alias."""
    uncached = {mode: allowed for mode, allowed in typed_modes(case).items() if allowed in (UNCACHED, WC)}
    with flushes(case) as counted:
        for mode, allowed in uncached.items():
            for options in _KINDS:
                _expect_nothing_lost(case, options, mode, allowed, counted)
                case.release_all()
    case.note(
        "an emulated processor has no cache lines: seen are the kernel's way through its flushing code and "
        "the bytes behind it; a line left stale would show on real caches only"
    )


def _expect_nothing_lost(
    case: Case, options: int, mode: int, allowed: frozenset[MemoryType], counted: Flushes | None
) -> None:
    """Write while the pages are write-back, change their type, and compare through every alias, both ways."""
    buf, data = filled(case, options, _SIZE)
    before = map_into(case, buf, case.guest, kIOMapUnique)
    case.expect_bytes(before.read(), equals=data, what="bytes read while write-back")
    answer = case.pattern(_SIZE)
    before.write(0, answer)
    if counted:
        counted.count()
    after = map_into(case, buf, case.peer, kIOMapUnique | mode)
    what = f"written while write-back, mode {mode:#x} now"
    case.expect_bytes(after.read(), equals=answer, what=f"bytes {what}, read through the new mapping")
    if counted:
        seen = counted.count()
        case.expect_that(
            seen > 0,
            expected="cpa_flush, told to flush caches, before the mapping is used",
            observed=f"{seen} calls",
        )
    with case.look(case.peer) as look:
        place = place_of(after)
        expect_types(case, look.aliases(place), allowed, f"mode {mode:#x}")
        case.expect_bytes(look.read(place), equals=answer, what=f"guest RAM {what}")
        look.write(place, 0, data)
    for mapping in (before, after):
        case.expect_bytes(mapping.read(), equals=data, what=f"guest RAM's bytes through {mapping!r}")
    case.expect_bytes(buf.readBytes(0, _SIZE), equals=data, what="guest RAM's bytes through readBytes")
