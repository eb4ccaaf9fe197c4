# SPDX-License-Identifier: MIT
"""Memory made scarce, broken up and paged out, in the guest and for as long as a check needs it."""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from harness.contract.case import KIB, MIB, PAGE, Case
from harness.contract.outcome import NotApplicable
from harness.errors import BadInput
from harness.images.modules import ModuleTree, module_bytes
from harness.iokit import IOBufferMemoryDescriptor, Null
from harness.iokit.constants import (
    kIODirectionInOut,
    kIOMemoryPhysicallyContiguous,
    kIOMemoryPurgeableEmpty,
    kIOMemoryPurgeableKeepCurrent,
)
from harness.link import GuestOSError, In, Nr, Process, cstring

_DISK = "/dev/ram0"
_DRIVER = "brd"
# arch/x86/entry/syscalls/syscall_64.tbl
_MADVISE, _SETRLIMIT, _SWAPON, _SWAPOFF, _PROCESS_MADVISE = 28, 160, 167, 168, 440
_RLIMIT_NOFILE = 7
_FILES = 65536
_MADV_DONTNEED = 4
_MADV_NOHUGEPAGE = 15
_MADV_PAGEOUT = 21
_MADV_POPULATE_WRITE = 23
# A page that another processor has on a list of its own, or locked, at that moment is passed over
# (mm/madvise.c:madvise_cold_or_pageout_pte_range); the next time it is not.
_ATTEMPTS = 3
_ROUNDS = 20
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_CONTIGUOUS = kIODirectionInOut | kIOMemoryPhysicallyContiguous


class Swap:
    """A swap area in use.

    Args:
        case: the check.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._before = counts(case)["pswpout"]

    def written(self) -> int:
        """Return the pages written to it so far, by the kernel's account (``pswpout`` in /proc/vmstat)."""
        return counts(self._case)["pswpout"] - self._before

    def page_out(self, address: int, length: int, process: Process | None = None) -> None:
        """Have the kernel page a range of *process* out, the agent's by default (MADV_PAGEOUT)."""
        task = process or self._case.guest
        what = f"page out {length} bytes at {address:#x}"
        pidfd = task.syscall(Nr.PIDFD_OPEN, task.pid, 0, what=what).value
        try:
            # Not madvise(2): that the agent makes for memory only that the host has mapped.
            one = In(struct.pack("<QQ", address, -(-length // PAGE) * PAGE))
            for _ in range(_ATTEMPTS):
                # Fresh pages wait in a list of the processor that touched them, where only that one would
                # find them; compaction has every processor empty its list first
                # (mm/compaction.c:compact_nodes).
                self._case.guest.write_file("/proc/sys/vm/compact_memory", b"1\n")
                task.syscall(_PROCESS_MADVISE, pidfd, one, 1, _MADV_PAGEOUT, 0, what=what)
        finally:
            task.close(pidfd)

    def empty(self, buf: IOBufferMemoryDescriptor, address: int, length: int) -> None:
        """Page a range of the agent out until no page of *buf*, which it shows, is resident.

        The kernel passes over a page that somebody has locked or referenced at that moment, as compaction may
        at any time.  Whether all are out in the end is for the check to compare.
        """
        for _ in range(_ROUNDS):
            self.page_out(address, length)
            if not buf.getPageCounts().resident:
                return


def purge(case: Case, buf: IOBufferMemoryDescriptor) -> None:
    """Ask the kernel for memory until it has taken what a volatile *buf* holds.

    ``drop_caches`` asks everything that can give memory up; a shrinker may answer that it is busy, and does
    while somebody has one of the pages locked.  Whether it is taken in the end is for the check to compare.
    """
    for _ in range(_ROUNDS):
        case.guest.write_file("/proc/sys/vm/drop_caches", b"2\n")
        if buf.setPurgeable(kIOMemoryPurgeableKeepCurrent).oldState == kIOMemoryPurgeableEmpty:
            return


@contextmanager
def swapping(case: Case, mib: int = 16) -> Iterator[Swap]:
    """Give the guest a swap area on a RAM disk while the block runs.

    The kernel's own block driver is loaded for it.  What is paged out has really left its page then: the
    disk's copy is another.

    Raises:
        NotApplicable: the kernel has no RAM disk.
    """
    guest = case.guest
    try:
        drivers = ModuleTree(guest.image.kernel.modules).load_order((_DRIVER,))
    except BadInput as error:
        raise NotApplicable(f"this kernel has no {_DRIVER} to swap to: {error.observed}") from error
    for path in drivers:
        guest.load_module(module_bytes(path), f"rd_nr=1 rd_size={mib * KIB}")
    try:
        pages = int(guest.read_file("/sys/block/ram0/size")) * 512 // PAGE
        guest.write_file(_DISK, _swap_header(pages))
        guest.syscall(_SWAPON, cstring(_DISK), 0, what=f"swapon {_DISK}")
        try:
            yield Swap(case)
        finally:
            guest.syscall(_SWAPOFF, cstring(_DISK), what=f"swapoff {_DISK}")
    finally:
        if drivers:
            _unload(case)


def _unload(case: Case) -> None:
    """Unload the disk; udev-less as the guest is, its last user is gone when swapoff returns."""
    with contextlib.suppress(GuestOSError):
        case.guest.unload_module(_DRIVER)


def _swap_header(pages: int) -> bytes:
    """Return the first page of a swap area (union swap_header in include/linux/swap.h)."""
    head = bytes(1024) + struct.pack("<III", 1, pages - 1, 0)
    return head.ljust(PAGE - 10, b"\0") + b"SWAPSPACE2"


@contextmanager
def user_memory(case: Case, leave: int) -> Iterator[tuple[int, int]]:
    """Fill memory with the agent's own pages, which the kernel can move and page out.

    Args:
        case: the check.
        leave: bytes of RAM left free, beside twice of what the kernel keeps for itself (min_free_kbytes):
            below that it looks for somebody to kill.

    Yields:
        Address and length.
    """
    kept = int(case.guest.read_file("/proc/sys/vm/min_free_kbytes")) * KIB
    length = max(case.free_memory() - leave - 2 * kept, 0) // PAGE * PAGE
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    what = f"touch {length} bytes"
    address = case.guest.syscall(Nr.MMAP, 0, length, protection, _ANONYMOUS, -1, 0, what=what).value
    try:
        # A huge page of which a part is given up keeps that part for a while.  A kernel that has no huge
        # pages, as a PREEMPT_RT one, answers EINVAL and is as wanted.
        case.guest.link.syscall(
            _MADVISE, address, length, _MADV_NOHUGEPAGE, timeout=case.guest.operation_timeout, what=what
        )
        case.guest.syscall(_MADVISE, address, length, _MADV_POPULATE_WRITE, what=what)
        yield address, length
    finally:
        case.guest.syscall(Nr.MUNMAP, address, length, what="munmap")


def give_up(case: Case, address: int, length: int) -> None:
    """Give pages of `user_memory` back to the kernel (MADV_DONTNEED)."""
    case.guest.syscall(_MADVISE, address, length, _MADV_DONTNEED, what=f"give {length} bytes up")


def fill(case: Case, leave: int) -> list[IOBufferMemoryDescriptor]:
    """Take wired memory in big pieces until about *leave* bytes are free, or no big piece is left."""
    made: list[IOBufferMemoryDescriptor] = []
    while (free := case.free_memory() - leave) >= 64 * MIB:
        one = case.iokit.withOptions(kIODirectionInOut | case.direct, min(free, 512 * MIB) // MIB * MIB)
        if isinstance(one, Null):
            break
        made.append(one)
    return made


def all_blocks(case: Case, size: int) -> tuple[list[IOBufferMemoryDescriptor], Null | None]:
    """Take every contiguous block of *size* bytes there is, and the NULL that ended it."""
    limit = _FILES, _FILES
    case.guest.syscall(_SETRLIMIT, _RLIMIT_NOFILE, In(struct.pack("<QQ", *limit)), what="raise RLIMIT_NOFILE")
    made: list[IOBufferMemoryDescriptor] = []
    for _ in range(case.facts.memory_mib * MIB // size + 1):
        one = case.iokit.withOptions(_CONTIGUOUS | case.direct, size)
        if isinstance(one, Null):
            return made, one
        made.append(one)
    return made, None


def fragment(case: Case, block: int, leave: int = 256 * MIB) -> list[IOBufferMemoryDescriptor]:
    """Break free memory up: half of *leave* bytes can be had afterwards, and nowhere two *block* in a row.

    Every aligned pair of blocks keeps one of them wired.  The kernel cannot move wired memory, so that no
    compaction helps.

    Returns:
        What is kept; memory is whole again when it is released.
    """
    kept = fill(case, leave + 2 * _withheld(case))
    made, _ = all_blocks(case, block)
    with case.look() as look:
        starts = {look.at(one.address): one for one in made}
    for start, one in starts.items():
        pair = start ^ block
        if start & block and pair in starts:
            one.release()
        else:
            kept.append(one)
    return kept


def _withheld(case: Case) -> int:
    """Return the bytes of free memory that the kernel gives to nobody but itself.

    Next to nothing on a small machine; 130 MiB on one of 7 GiB, where huge pages raise the watermarks
    (mm/khugepaged.c:set_recommended_min_free_kbytes).
    """
    text = case.guest.read_file("/proc/meminfo").decode()
    kib = {name: int(count) for name, count in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    return max(kib["MemFree"] - kib["MemAvailable"], 0) * KIB


def counts(case: Case) -> dict[str, int]:
    """Return the kernel's counters of work done to find memory (``/proc/vmstat``)."""
    text = case.guest.read_file("/proc/vmstat").decode()
    wanted = r"^(compact_stall|compact_success|pswpout|pgsteal_direct|pgmigrate_success) (\d+)$"
    return {name: int(count) for name, count in re.findall(wanted, text, re.MULTILINE)}
