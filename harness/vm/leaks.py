# SPDX-License-Identifier: MIT
"""What this process still holds of machines: asked when there should be nothing left."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from weakref import WeakSet

from harness.vm.workdir import owned_folders

_MEMFD: Final = "/memfd:iobmd-"
_PROGRAM: Final = "qemu-system"

_ENDS: Final["WeakSet[socket.socket]"] = WeakSet()


def track(end: socket.socket) -> socket.socket:
    """Count a socket that leads to a QEMU among what has to be closed; returns it."""
    _ENDS.add(end)
    return end


def held() -> frozenset[str]:
    """Name every QEMU, socket to one, memory file and private folder this process has now.

    Processes and descriptors are looked up in ``/proc``: who forgot to end one has forgotten to tell, too.
    """
    return frozenset((*_children(), *_memory_files(), *_sockets(), *_folders()))


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    if name.startswith(_PROGRAM):
                        yield f"process {pid} ({name})"


def _memory_files() -> Iterator[str]:
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(fd.readlink()).removesuffix(" (deleted)")
            if target.startswith(_MEMFD):
                yield f"memory file {target}, inode {fd.stat().st_ino}, descriptor {fd.name}"


def _sockets() -> Iterator[str]:
    for end in tuple(_ENDS):
        if end.fileno() >= 0:
            yield f"socket to QEMU, descriptor {end.fileno()}"


def _folders() -> Iterator[str]:
    yield from (f"private folder {path}" for path in owned_folders())
