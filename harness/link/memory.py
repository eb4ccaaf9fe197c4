# SPDX-License-Identifier: MIT
"""Memory of a user process of the guest, reached the way its own instructions reach it.

A byte is moved by two system calls over a memfd of the process: ``pwrite`` copies from the address, ``pread``
back to it.  Both go through the process's page tables with the process's rights, and a fault is the calls'
EFAULT (uaccess), where an instruction of the agent would be killed.  ``process_vm_readv`` would not do: it
pins pages (mm/gup.c), and mappings a driver made from page frame numbers have none to pin.
"""

from __future__ import annotations

import errno
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from harness.errors import BadInput
from harness.link.errors import GuestOSError
from harness.link.syscalls import In, Nr, Out, cstring

if TYPE_CHECKING:
    from harness.link.process import Process

PROT_NONE: Final = 0
PROT_READ: Final = mmap.PROT_READ
PROT_WRITE: Final = mmap.PROT_WRITE

_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
# Bounds what the memfd keeps of the guest's memory, and fits a frame.
_CHUNK = 256 * 1024
_PAGE = mmap.PAGESIZE


class Stage:
    """The memfd through which bytes pass; safe for any number of threads.

    Args:
        process: whose memory is moved.  The descriptor stays open as long as the process lives.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._fd = process.syscall(Nr.MEMFD_CREATE, cstring("stage"), 1, what="memfd_create").value

    def read(self, address: int, size: int) -> bytes:
        """The bytes at an address; GuestOSError EFAULT when one of them cannot be read."""
        parts: list[bytes] = []
        done = 0
        while done < size:
            count = min(_CHUNK, size - done)
            what = f"read {size} bytes of memory at {address:#x}"
            with self._lock:
                moved = self._move(Nr.PWRITE64, address + done, count, what)
                back = self._process.syscall(Nr.PREAD64, self._fd, Out(moved), moved, 0, what=what)
            parts.append(back.outputs[0])
            done += moved
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes at an address; GuestOSError EFAULT when one of them cannot be written."""
        done = 0
        while done < len(data):
            part = data[done : done + _CHUNK]
            what = f"write {len(data)} bytes of memory at {address:#x}"
            with self._lock:
                self._process.syscall(Nr.PWRITE64, self._fd, In(part), len(part), 0, what=what)
                done += self._move(Nr.PREAD64, address + done, len(part), what)

    def _move(self, number: int, address: int, count: int, what: str) -> int:
        """A part may move before the byte that faults; then the next round starts there and says EFAULT."""
        moved = self._process.syscall(number, self._fd, address, count, 0, what=what).value
        if moved == 0:
            raise GuestOSError(errno.EFAULT, what)
        return moved


class UserMemory:
    """Memory mapped in a process of the guest.

    Attributes:
        address: its first byte, in that process's address space.
        size: bytes.
    """

    def __init__(self, process: Process, address: int, size: int) -> None:
        self._process = process
        self.address = address
        self.size = size

    def __repr__(self) -> str:
        return f"<UserMemory {self.address:#x}+{self.size:#x} in process {self._process.pid}>"

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes from *offset*; to the end when no *size* is given."""
        return self._process.peek(self._at(offset, size), self.size - offset if size is None else size)

    def write(self, offset: int, data: bytes) -> None:
        """Put *data* at *offset*."""
        self._process.poke(self._at(offset, len(data)), data)

    def protect(self, prot: int) -> None:
        """Change its protection to *prot*, ``PROT_*`` bits (mprotect(2))."""
        length = _pages(self.size)
        self._process.syscall(Nr.MPROTECT, self.address, length, prot, what=f"protect {self!r}")

    def _at(self, offset: int, size: int | None) -> int:
        if not 0 <= offset <= offset + (size or 0) <= self.size:
            raise BadInput(f"{self!r} ends before offset {offset} + {size or 0} bytes")
        return self.address + offset


@contextmanager
def map_memory(process: Process, size: int, prot: int, contents: bytes) -> Iterator[UserMemory]:
    """Map *size* bytes in *process*, fill them with *contents*; unmapped when the block ends."""
    if size <= 0:
        raise BadInput(f"memory of {size} bytes cannot be mapped", hint="ask for one byte at least")
    length = _pages(size)
    what = f"map {size} bytes"
    filling = prot | (PROT_WRITE if contents else 0)
    address = process.syscall(Nr.MMAP, 0, length, filling, _ANONYMOUS, -1, 0, what=what).value
    mapped = UserMemory(process, address, size)
    try:
        if contents:
            mapped.write(0, contents)
        if filling != prot:
            mapped.protect(prot)
        yield mapped
    finally:
        process.syscall(Nr.MUNMAP, address, length, what=f"unmap {size} bytes")


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
