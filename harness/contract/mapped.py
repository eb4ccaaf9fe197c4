# SPDX-License-Identifier: MIT
"""What checks compare about mappings: page tables at a stretch of addresses, and what access does there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.contract.case import PAGE, Case, Place
from harness.contract.look import Look
from harness.iokit import IOBufferMemoryDescriptor, IOMemoryMap, Task, TaskLike, kernel_task
from harness.iokit.constants import kIODirectionInOut, kIOMapAnywhere, kIOMemoryPageable
from harness.link import GuestOSError, Process
from harness.oracle import Leaf, MemoryType, PhysRange

Layout = frozenset[tuple[int, int, int, bool, bool, MemoryType]]
"""Leaves as (va, pa, size, user, writable, effective type)."""

PAGEABLE = kIODirectionInOut | kIOMemoryPageable
"""Options of a buffer that can be paged out, both directions."""


def place_of(mapping: IOMemoryMap) -> Place:
    """Return the stretch *mapping* claims to be: address and length are the module's word, no more."""
    return Place(mapping.getVirtualAddress(), mapping.getLength())


def filled(case: Case, options: int, capacity: int) -> tuple[IOBufferMemoryDescriptor, bytes]:
    """Make a buffer and fill it through writeBytes; a pageable one is made in the calling process."""
    task: TaskLike = Task.CURRENT if options & kIOMemoryPageable else kernel_task
    buf = case.need(case.iokit.inTaskWithOptions(task, options, capacity))
    data = case.pattern(capacity)
    case.expect(buf.writeBytes(0, data), equals=capacity, what=f"bytes written into {buf!r}")
    return buf, data


def map_into(
    case: Case,
    buf: IOBufferMemoryDescriptor,
    task: TaskLike,
    options: int = 0,
    part: tuple[int, int] = (0, 0),
) -> IOMemoryMap:
    """Map *buf*, or the *part* of it given as (offset, length), anywhere in *task*.

    Raises:
        Broken: createMappingInTask gave NULL.
    """
    return case.need(buf.createMappingInTask(task, 0, options | kIOMapAnywhere, *part))


def expect_shows(case: Case, look: Look, place: Place, where: Sequence[PhysRange]) -> None:
    """Compare the physical memory the page tables have at *place* with where the buffer lies.

    Raises:
        Broken: other memory is there, or none.
    """
    what = f"physical ranges behind {place}"
    case.expect(_ranges_text(look.where(place)), equals=_ranges_text(where), what=what)


def expect_leaves(case: Case, look: Look, place: Place, *, user: bool, writable: bool) -> None:
    """Compare two bits of every page-table leaf at *place*: for user mode, and for writing.

    Raises:
        Broken: a page has no leaf, or a leaf has another bit.
    """
    leaves = look.leaves(place)
    for name, wanted in (("user", user), ("writable", writable)):
        wrong = [leaf for leaf in leaves if getattr(leaf, name) is not wanted]
        case.expect_that(
            not wrong,
            expected=f"{name} is {wanted} in each of {len(leaves)} leaves at {place}",
            observed=f"{len(wrong)} otherwise, first at {wrong[0].va:#x}" if wrong else f"{name} is {wanted}",
        )


def expect_types(case: Case, leaves: Sequence[Leaf], allowed: frozenset[MemoryType], what: str) -> None:
    """Compare the effective memory type of every leaf.

    Raises:
        Broken: one has a type that is not allowed.
    """
    names = " or ".join(sorted(kind.name for kind in allowed))
    wrong = [leaf for leaf in leaves if leaf.effective not in allowed]
    first = f"{len(wrong)} others, {wrong[0].effective.name} at {wrong[0].va:#x} first" if wrong else names
    case.expect_that(not wrong, expected=f"{names} in each of {len(leaves)} leaves {what}", observed=first)


def expect_gone(case: Case, look: Look, place: Place, where: Sequence[PhysRange]) -> None:
    """Compare the pages of *place* that still show the memory at *where* with none.

    Other memory may be there by now: whatever the process mapped next, the look's own mark for one.

    Raises:
        Broken: a page table still has one of them.
    """
    pages = range(place.address & -PAGE, place.address + place.storage, PAGE)
    there = [look.at(page) for page in pages if look.mapped(page)]
    stale = [one for one in there if any(part.start & -PAGE <= one < part.end for part in where)]
    case.expect(len(stale), equals=0, what=f"pages among {place} that still show what was mapped there")


def user_leaves(look: Look, name: str, where: Sequence[PhysRange]) -> tuple[Leaf, ...]:
    """Return the leaves over *where* that user mode may use, in every process's page tables."""
    return tuple(leaf for leaf in look.aliases_of(name, where) if leaf.user)


def layout(leaves: Iterable[Leaf]) -> Layout:
    """Return what *leaves* map and how, without the bits the processor sets by itself."""
    return frozenset((one.va, one.pa, one.size, one.user, one.writable, one.effective) for one in leaves)


def expect_layout(case: Case, leaves: Iterable[Leaf], before: Layout, what: str) -> None:
    """Compare leaves with those of an earlier look.

    Raises:
        Broken: there is one more, one less, or another.
    """
    now = layout(leaves)
    new, lost = sorted(now - before, key=_by_address), sorted(before - now, key=_by_address)
    changed = [
        f"{len(found)} {kind}, at {found[0][0]:#x} first"
        for kind, found in (("new", new), ("gone", lost))
        if found
    ]
    case.expect_that(
        not changed,
        expected=f"{len(before)} leaves {what}, as before",
        observed="; ".join(changed) or "no change",
    )


def _by_address(leaf: tuple[int, int, int, bool, bool, MemoryType]) -> int:
    return leaf[0]


def expect_access(
    case: Case, process: Process, address: int, *, write: bool = False, faults: bool, what: str
) -> None:
    """Have the kernel touch a byte on the process's behalf and compare whether that is EFAULT.

    Raises:
        Broken: it faults and should not, or the other way round.
    """
    seen = process.faults(address, write=write)
    kind = "write" if write else "read"
    case.expect(seen, equals=faults, what=f"EFAULT of a {kind} at {address:#x}, {what}")


def expect_errno(case: Case, process: Process, errno: str, number: int, *args: int, what: str) -> None:
    """Make a system call that has to fail with the errno of that name.

    Raises:
        Broken: it succeeds, or fails otherwise.
    """
    try:
        process.syscall(number, *args, what=what)
        seen = "success"
    except GuestOSError as error:
        seen = error.observed
    case.expect(seen, equals=errno, what=what)


def pages_of(length: int) -> int:
    """Return how many pages *length* bytes from the start of a page touch."""
    return -(-length // PAGE)


def _ranges_text(ranges: Sequence[PhysRange]) -> str:
    return ", ".join(f"{one.start:#x}+{one.length:#x}" for one in ranges)
