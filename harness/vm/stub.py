# SPDX-License-Identifier: MIT
"""Something for ``-kernel`` that loads nothing: what a machine needs whose RAM comes from a snapshot.

QEMU loads an ELF kernel as ROM, and a reset copies ROM back into RAM. Loading a state resets the machine
first (migration/savevm.c: load_snapshot), which would put the kernel's freshly built data sections over the
running guest's. The option ROM that comes with ``-kernel`` belongs to the state, so the option has to stay;
this ELF has the note that makes QEMU choose the same option ROM, and not one byte to load.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ELF_MAGIC: Final = b"\x7fELF"
_ET_EXEC, _EM_X86_64, _PT_NOTE = 2, 62, 4
_XEN_ELFNOTE_PHYS32_ENTRY: Final = 18  # include/hw/xen/interface/elfnote.h in QEMU's tree
#: Any address below 4 GiB: nobody ever jumps there.
_ENTRY: Final = 0x100000
_HEADER, _SEGMENT = 64, 56
#: QEMU reads this much of any kernel before it looks at what it is (hw/i386/x86.c: x86_load_linux).
_LEAST: Final = 8192


def has_pvh_entry(kernel: Path) -> bool:
    """Whether QEMU loads this kernel as an ELF with a PVH note (hw/i386/x86.c: load_elfboot)."""
    with kernel.open("rb") as file:
        return file.read(len(_ELF_MAGIC)) == _ELF_MAGIC


def stub_kernel() -> bytes:
    """An x86-64 ELF with a PVH entry note and no loadable segment."""
    note = struct.pack("<III4sI", 4, 4, _XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", _ENTRY)
    ident = _ELF_MAGIC + bytes((2, 1, 1)) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        ident, _ET_EXEC, _EM_X86_64, 1, _ENTRY, _HEADER, 0, 0, _HEADER, _SEGMENT, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", _PT_NOTE, 4, _HEADER + _SEGMENT, 0, 0, len(note), len(note), 4)
    return (header + segment + note).ljust(_LEAST, b"\0")


@contextlib.contextmanager
def memory_file(name: str, contents: bytes = b"") -> Iterator[int]:
    """An anonymous file with *contents*: inherited by descriptor, gone with its last user.

    Args:
        name: shown in ``/proc``; nothing else knows it.
        contents: its bytes.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        done = 0
        while done < len(contents):
            done += os.pwrite(fd, memoryview(contents)[done:], done)
        yield fd
    finally:
        os.close(fd)
