# SPDX-License-Identifier: MIT
"""Work for a disk's driver: what is written is compared outside, what is read was put there outside."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from harness.audit.named import disk_name
from harness.errors import GuestFailure
from harness.link import Guest, GuestOSError, In, Nr, UserMemory
from harness.vm import DiskFile

PAGE = 4096
SECTOR = 512
_MIB = 1 << 20
_FSYNC, _FADVISE64, _PREADV, _PWRITEV = 74, 221, 295, 296
_DONTNEED = 4  # POSIX_FADV_DONTNEED
_BLKDISCARD = 0x1277  # include/uapi/linux/fs.h
_DIRECT_PAGES = 37

PARAMETERS = {"nvme": "io_queue_depth=2"}
"""Of modules whose model in QEMU needs care: with this there is one request under way at a time.

With more of them a busy guest's queue has stood still until the driver reset it after a minute, watched or
not. Probably QEMU 7.2 looks for the next request right after it has said from which one on it wants to be
told (hw/nvme/ctrl.c: nvme_process_sq), and one that is added at that instant is seen by neither side.
"""
_SCATTERED = 48
_UNSUPPORTED = "EOPNOTSUPP"


class TrafficDiffers(GuestFailure):
    """Bytes that went through a device are other ones at the far end; ``observed`` says where."""


@dataclass(frozen=True)
class DiskTraffic:
    """What went through a disk, all of it compared.

    Attributes:
        name: the kernel's for the disk.
        written: bytes the guest wrote.
        read: bytes the guest read.
        discarded: bytes the guest gave back; 0 where the disk takes none back.
    """

    name: str
    written: int
    read: int
    discarded: int


def disk(
    guest: Guest,
    index: int = 0,
    *,
    mib: int = 4,
    seed: int = 0,
    meanwhile: Callable[[], object] | None = None,
) -> DiskTraffic:
    """Write and read a disk of the machine in several ways, and compare every byte from outside.

    Through the page cache and around it, in one piece and in scattered ones, whole pages and single sectors;
    then a part of the disk is given back. What the disk held in its first MiBs is lost.

    Args:
        guest: it runs, and has a driver for the disk.
        index: the disk's place in `GuestOptions.disks`.
        mib: how much goes through the page cache each way, in MiB; the disk is twice as large at least.
        seed: of the bytes, sizes and places.
        meanwhile: called once while requests are under way.

    Raises:
        TrafficDiffers: what arrived is not what was sent.
        GuestOSError: the kernel reported an error.
        GuestFailure: no driver shows the disk.
    """
    name = disk_name(guest, index)
    random = np.random.default_rng(seed)
    work = _Work(guest, index, f"/dev/{name}", random)
    with work.opened(os.O_RDWR) as fd:
        written = work.write_cached(fd, mib * _MIB)
        read = work.read_cached(fd, mib * _MIB)
    with work.opened(os.O_RDWR | os.O_DIRECT) as fd:
        count = work.direct(fd, mib * _MIB)
        scattered = work.sectors(fd, mib * _MIB)
        if meanwhile is not None:
            read += work.under_way(fd, mib * _MIB, meanwhile)
        discarded = work.discard(fd)
    return DiskTraffic(name, written + count + scattered, read + count, discarded)


@dataclass(frozen=True)
class _Work:
    guest: Guest
    index: int
    path: str
    random: np.random.Generator

    @contextmanager
    def opened(self, flags: int) -> Iterator[int]:
        fd = self.guest.open(self.path, flags)
        try:
            yield fd
        finally:
            self.guest.close(fd)

    def write_cached(self, fd: int, size: int) -> int:
        data = self.random.bytes(size)
        with self.guest.memory(data) as memory:
            self._whole(Nr.PWRITE64, fd, memory, 0)
        self._call(_FSYNC, fd, what="fsync")
        self._compare_outside(0, data, "written through the page cache")
        return size

    def read_cached(self, fd: int, size: int) -> int:
        """Read what was changed behind the kernel's back, so that no cache can answer."""
        data = self.random.bytes(size)
        self._call(_FADVISE64, fd, 0, 0, _DONTNEED, what="forget cached pages")
        self._file.write(0, data)
        with self.guest.memory(size) as memory:
            self._whole(Nr.PREAD64, fd, memory, 0)
            self._compare(0, data, memory.read(), "read through the page cache")
        return size

    def direct(self, fd: int, start: int) -> int:
        """Write and read pages that lie apart in memory and are no neighbours in the list either."""
        size = _DIRECT_PAGES * PAGE
        data = self.random.bytes(size)
        order = self.random.permutation(_DIRECT_PAGES)
        with self.guest.memory(2 * size) as memory:
            sparse = [memory.address + 2 * PAGE * int(place) for place in order]
            for at, address in enumerate(sparse):
                self.guest.poke(address, data[at * PAGE : (at + 1) * PAGE])
            vector = b"".join(struct.pack("<QQ", address, PAGE) for address in sparse)
            self._vector(_PWRITEV, fd, vector, start, size)
            self._compare_outside(start, data, "written directly")
            back = self.random.bytes(size)
            self._file.write(start, back)
            self._vector(_PREADV, fd, vector, start, size)
            got = b"".join(self.guest.peek(address, PAGE) for address in sparse)
            self._compare(start, back, got, "read directly")
        return size

    def under_way(self, fd: int, size: int, meanwhile: Callable[[], object]) -> int:
        """Read everything directly at once, and have something done before it has arrived."""
        wanted = self._file.read(0, size)
        with self.guest.memory(size) as memory:
            starts = range(0, size, _MIB)
            calls = [
                self.guest.link.start(
                    *(Nr.PREAD64, fd, memory.address + start, _MIB, start), what=f"read, {self.path}"
                )
                for start in starts
            ]
            meanwhile()
            for call in calls:
                call.wait(self.guest.operation_timeout).checked(f"read, {self.path}")
            self._compare(0, wanted, memory.read(), "read directly, much at once")
        return size

    def sectors(self, fd: int, start: int) -> int:
        """Write single sectors from anywhere in a page to anywhere on the disk."""
        places = self.random.choice(_MIB // SECTOR, _SCATTERED, replace=False)
        total = 0
        with self.guest.memory(2 * PAGE) as memory:
            for place in places.tolist():
                count, shift = self.random.integers(1, 8, 2).tolist()
                data, at = self.random.bytes(count * SECTOR), start + place * SECTOR
                memory.write(shift * SECTOR, data)
                self._call(
                    Nr.PWRITE64, fd, memory.address + shift * SECTOR, len(data), at, what="write sectors"
                )
                self._compare_outside(at, data, "written as single sectors")
                total += len(data)
        return total

    def discard(self, fd: int) -> int:
        """Give the first MiB back; what is read there afterwards is nobody's promise, so it is not."""
        try:
            self._call(Nr.IOCTL, fd, _BLKDISCARD, In(struct.pack("<QQ", 0, _MIB)), what="discard 1 MiB")
        except GuestOSError as error:
            if error.observed != _UNSUPPORTED:
                raise
            return 0
        return _MIB

    @property
    def _file(self) -> DiskFile:
        return self.guest.machine.attached.disks[self.index]

    def _call(self, number: int, *args: int | In, what: str) -> int:
        return self.guest.syscall(number, *args, what=f"{what}, {self.path}").value

    def _whole(self, number: int, fd: int, memory: UserMemory, start: int) -> None:
        done = 0
        while done < memory.size:
            left = memory.size - done
            moved = self._call(number, fd, memory.address + done, left, start + done, what="move bytes")
            if not moved:
                raise TrafficDiffers(f"{self.path} ended", observed=f"after {start + done} bytes")
            done += moved

    def _vector(self, number: int, fd: int, vector: bytes, start: int, size: int) -> None:
        moved = self._call(number, fd, In(vector), len(vector) // 16, start, 0, what="move pages")
        if moved != size:
            raise TrafficDiffers(f"{self.path} took a part", observed=f"{moved} of {size} bytes")

    def _compare_outside(self, start: int, sent: bytes, how: str) -> None:
        self._compare(start, sent, self._file.read(start, len(sent)), how)

    def _compare(self, start: int, sent: bytes, arrived: bytes, how: str) -> None:
        check(sent, arrived, f"{self.path}: {how}", start)


def check(sent: bytes, arrived: bytes, what: str, start: int = 0) -> None:
    """Compare what was sent with what arrived.

    Args:
        sent: these bytes.
        arrived: and these.
        what: how they went, for the error.
        start: offset of the first one.

    Raises:
        TrafficDiffers: they are not the same.
    """
    if sent == arrived:
        return
    if len(sent) != len(arrived):
        raise TrafficDiffers(f"{what}: {len(arrived)} bytes arrived", observed=f"{len(sent)} were sent")
    wrong = np.flatnonzero(np.frombuffer(sent, np.uint8) != np.frombuffer(arrived, np.uint8))
    first = int(wrong[0])
    raise TrafficDiffers(
        f"{what}: other bytes arrived than were sent",
        observed=f"{len(wrong)} of {len(sent)} differ, the first at {start + first:#x}: "
        f"{arrived[first : first + 8].hex()} for {sent[first : first + 8].hex()}",
    )
