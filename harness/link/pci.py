# SPDX-License-Identifier: MIT
"""Devices whose model saves no state come out of a restore as if just plugged in: give them their place back.

QEMU's ``edu`` has none (hw/misc/edu.c): after a restore its base address and command registers are 0, while
the kernel believes what it once wrote there. What a driver told such a device is lost; where it is need not
be.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from harness.link.syscalls import In, Nr, Out

if TYPE_CHECKING:
    from harness.link.process import Process

_LIST: Final = "/proc/bus/pci/devices"
_HEADER: Final = 64
#: PCI Local Bus 3.0, 6.1: base addresses, then cache line and latency, interrupt line; the command comes
#: last, when the device may answer at its addresses again.
_ORDER: Final = (*range(0x10, 0x28, 4), 0x30, 0x0C, 0x3C, 0x04)


def headers(process: "Process") -> dict[str, str]:
    """The configuration header of every PCI function, in hexadecimal, by its path in ``/proc``."""
    return {path: _header(process, path).hex() for path in _paths(process)}


def put_back(process: "Process", before: Mapping[str, str]) -> tuple[str, ...]:
    """Write the registers that differ from *before*.

    Args:
        process: of the restored guest; it may write to ``/proc/bus/pci``.
        before: from `headers`, when the snapshot was made.

    Returns:
        The functions that had lost theirs.
    """
    lost = []
    for path, header in before.items():
        wanted, found = bytes.fromhex(header), _header(process, path)
        differing = [at for at in _ORDER if wanted[at : at + 4] != found[at : at + 4]]
        if differing:
            lost.append(path)
            with _opened(process, path, os.O_WRONLY) as fd:
                for at in differing:
                    process.syscall(Nr.PWRITE64, fd, In(wanted[at : at + 4]), 4, at, what=f"write {path}")
    return tuple(lost)


def addresses(process: "Process") -> set[str]:
    """Every PCI function the guest's kernel lists now, as sysfs writes them: ``"0000:00:1f.2"``."""
    paths = (path.rpartition("/proc/bus/pci/")[2].replace("/", ":") for path in _paths(process))
    return {f"0000:{path}" for path in paths}


def _header(process: "Process", path: str) -> bytes:
    with _opened(process, path, os.O_RDONLY) as fd:
        return process.syscall(Nr.PREAD64, fd, Out(_HEADER), _HEADER, 0, what=f"read {path}").outputs[0]


@contextmanager
def _opened(process: "Process", path: str, flags: int) -> Iterator[int]:
    fd = process.open(path, flags)
    try:
        yield fd
    finally:
        process.close(fd)


def _paths(process: "Process") -> Iterator[str]:
    for line in process.read_file(_LIST).decode().splitlines():
        bus, function = struct.unpack("2B", bytes.fromhex(line[:4]))
        yield f"/proc/bus/pci/{bus:02x}/{function >> 3:02x}.{function & 7}"
