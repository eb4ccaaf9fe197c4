# SPDX-License-Identifier: MIT
"""Guest RAM as the host sees it: one memfd, addressed by guest-physical address."""

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.errors import BadInput, HostExhausted
from harness.vm.spec import MachineSpec

MIB: Final = 1 << 20
GIB: Final = 1 << 30

#: Where RAM continues above the hole that PCI keeps below 4 GiB.
_ABOVE_4G: Final = 4 * GIB
#: machine -> (RAM size from which the hole is widened, RAM kept below 4 GiB then).
#: QEMU hw/i386/pc_q35.c:pc_q35_init and hw/i386/pc_piix.c:pc_init1; checked against ``info mtree``.
_SPLIT: Final = {"q35": (0xB000_0000, 2 * GIB), "pc": (0xE000_0000, 3 * GIB)}


def ram_ranges(machine: str, size: int) -> tuple[tuple[int, int], ...]:
    """Where a machine's RAM appears in guest-physical address space.

    The ranges follow each other in the RAM file without gaps, in this order.

    Args:
        machine: ``"q35"`` or ``"pc"``.
        size: RAM in bytes.

    Returns:
        ``(start, length)`` pairs in bytes, ascending. The first megabyte counts as RAM: it is, except that
        the PC's video window and ROM shadow lie over parts of it.
    """
    threshold, low = _SPLIT[machine]
    if size < threshold:
        return ((0, size),)
    return ((0, low), (_ABOVE_4G, size - low))


class GuestRam:
    """The guest's memory, shared with QEMU byte for byte.

    Reads and writes are plain memory accesses and need no stopped guest; who wants several bytes to belong
    together stops the machine first.
    """

    def __init__(self, fd: int, size: int, ranges: tuple[tuple[int, int], ...]) -> None:
        """Maps the RAM file.

        Args:
            fd: the memfd; it may be closed afterwards.
            size: bytes to map.
            ranges: as from `ram_ranges`.
        """
        self._ranges = ranges
        self._size = size
        self._map: mmap.mmap | None = mmap.mmap(fd, size)
        self._fd = os.dup(fd)

    @property
    def size(self) -> int:
        """Bytes of RAM."""
        return self._size

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """``(guest-physical start, length)`` of each stretch of RAM, ascending, in bytes."""
        return self._ranges

    def contains(self, gpa: int, length: int = 1) -> bool:
        """Whether all of ``[gpa, gpa + length)`` is RAM of one stretch."""
        return any(start <= gpa and gpa + length <= start + size for start, size in self._ranges)

    def offset(self, gpa: int, length: int = 1) -> int:
        """Where a guest-physical address lies in the RAM file.

        Args:
            gpa: guest-physical address.
            length: bytes that must follow it.

        Raises:
            BadInput: some of those bytes are not RAM.
        """
        base = 0
        for start, size in self._ranges:
            if length >= 0 and start <= gpa and gpa + length <= start + size:
                return base + gpa - start
            base += size
        known = ", ".join(f"{start:#x}-{start + size - 1:#x}" for start, size in self._ranges)
        raise BadInput(
            f"{length} bytes at guest-physical {gpa:#x} are not all RAM",
            observed=f"RAM is {known}",
            hint="addresses outside belong to devices, to the PCI hole or to nobody",
        )

    def populated(self) -> tuple[tuple[int, int], ...]:
        """``(guest-physical start, length)`` of the RAM that was ever touched, ascending, in bytes.

        The rest is holes in the RAM file. Looking at a hole through the mapping fills it with memory of the
        host's, so who searches all of RAM asks here first. Costs about a millisecond.

        Raises:
            BadInput: the machine is closed.
        """
        self._mapped()
        found: list[tuple[int, int]] = []
        base = 0
        for start, size in self._ranges:
            position, end = base, base + size
            while (data := _seek(self._fd, position, os.SEEK_DATA)) is not None and data < end:
                hole = _seek(self._fd, data, os.SEEK_HOLE)
                position = end if hole is None else min(hole, end)
                found.append((start + data - base, position - data))
            base = end
        return tuple(found)

    @property
    def allocated(self) -> int:
        """Bytes of the RAM that was ever touched: the sum of `populated`, without the search.

        Raises:
            BadInput: the machine is closed.
        """
        self._mapped()
        return os.fstat(self._fd).st_blocks * 512  # st_blocks are of 512 bytes everywhere (stat(2))

    def read(self, gpa: int, length: int) -> bytes:
        """Copies ``length`` bytes out.

        Raises:
            BadInput: outside of RAM, or the machine is closed.
        """
        offset = self.offset(gpa, length)
        return self._mapped()[offset : offset + length]

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copies bytes in; the guest sees them at once.

        Raises:
            BadInput: outside of RAM, or the machine is closed.
        """
        offset = self.offset(gpa, len(data))
        self._mapped()[offset : offset + len(data)] = bytes(data)

    def load(self, gpa: int, data: memoryview) -> None:
        """Copies much in at once; for memory nobody has touched yet this saves a page fault per page.

        Raises:
            BadInput: outside of RAM, or the machine is closed.
            OSError: the host has no memory left for it.
        """
        self._mapped()
        offset, done = self.offset(gpa, len(data)), 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)

    def forget(self, gpa: int, length: int) -> None:
        """Makes whole pages untouched again: they read as zero and cost the host nothing (madvise(2)).

        Args:
            gpa: guest-physical address of the first page.
            length: bytes, a multiple of the page size.

        Raises:
            BadInput: outside of RAM, or the machine is closed.
        """
        self._mapped().madvise(mmap.MADV_REMOVE, self.offset(gpa, length), length)

    def array(self, gpa: int, length: int) -> npt.NDArray[np.uint8]:
        """A live view, not a copy: what the guest writes shows up in it, and the other way round.

        The view stays readable after the machine is closed; it then shows the last contents.

        Raises:
            BadInput: outside of RAM, or the machine is closed.
        """
        offset = self.offset(gpa, length)
        return np.frombuffer(self._mapped(), dtype=np.uint8, count=length, offset=offset)

    def view(self, gpa: int, length: int) -> memoryview:
        """What `array` gives, for system calls: they read and write it in place.

        Raises:
            BadInput: outside of RAM, or the machine is closed.
        """
        offset = self.offset(gpa, length)
        return memoryview(self._mapped())[offset : offset + length]

    def close(self) -> None:
        """Unmaps; idempotent. Views that are still alive keep the mapping until the last of them goes."""
        mapped, self._map = self._map, None
        if mapped is not None:
            os.close(self._fd)
            with contextlib.suppress(BufferError):
                mapped.close()

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            raise BadInput(
                "the machine is closed: its RAM is gone", hint="look before leaving the with block"
            )
        return self._map


def _seek(fd: int, position: int, what: int) -> int | None:
    try:
        return os.lseek(fd, position, what)
    except OSError as err:
        if err.errno == errno.ENXIO:  # nothing of that kind follows
            return None
        raise


@contextmanager
def ram_file(spec: MachineSpec) -> Iterator[int]:
    """An anonymous file for the guest's RAM; it has no name anywhere, so nothing can be left behind.

    Yields:
        The descriptor, sized and close-on-exec.

    Raises:
        HostExhausted: the host has less memory available than the guest may use.
    """
    wanted = spec.memory_mib * MIB
    available = available_memory()
    if available is not None and wanted > available:
        raise HostExhausted(
            f"this host cannot back {spec.memory_mib} MiB of guest RAM",
            observed=f"{available // MIB} MiB are available",
            hint="give the guest less memory, or end other machines",
        )
    fd = os.memfd_create(f"iobmd-ram-{os.getpid()}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        try:
            os.truncate(fd, wanted)
        except OSError as err:
            raise HostExhausted(
                f"this host cannot back {spec.memory_mib} MiB of guest RAM",
                tried="ftruncate",
                observed=str(err),
            ) from err
        # Pages that are cut off would kill QEMU, and whoever looks at them here, by SIGBUS.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield fd
    finally:
        os.close(fd)


def available_memory() -> int | None:
    """Bytes this process tree may still use: MemAvailable, or what its control group leaves, if that is less.

    Returns:
        None when the host does not tell.
    """
    figures = [figure for figure in (_mem_available(), _cgroup_room()) if figure is not None]
    return min(figures, default=None)


def _mem_available() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup_room() -> int | None:
    # Inside a container this is the container's own group; elsewhere the root group, which has no limit file.
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())  # "max" is no number: no limit
        return max(0, limit - int((group / "memory.current").read_text()))
    return None
