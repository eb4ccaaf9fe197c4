# SPDX-License-Identifier: MIT
"""The names a guest's kernel gave to the devices of its machine, once a driver has taken them."""

from __future__ import annotations

import os
import re
import struct
import time

from harness.errors import GuestFailure
from harness.link import Guest, GuestOSError, Out
from harness.link.syscalls import cstring
from harness.vm.attached import network_address

_READLINK, _GETDENTS64 = 89, 217
_ENTRIES = 16 * 1024
_ENTRY = struct.Struct("<QqHB")
"""struct linux_dirent64 (include/linux/dirent.h); the name follows."""
_PATH = 4096
_APPEAR_SECONDS = 20.0
"""Probing goes on after a module was loaded: nvme and ahci look for their disks in a work queue."""


def disk_name(guest: Guest, index: int = 0) -> str:
    """Wait until a disk of the machine has a driver, and return its name: ``"nvme0n1"``, ``"sda"``.

    Args:
        guest: it runs, and has a driver for the disk's controller.
        index: the disk's place in `GuestOptions.disks`.

    Raises:
        GuestFailure: no driver shows the disk in time.
    """
    return _appeared(guest, "/sys/block", guest.disk_address(index))


def network_name(guest: Guest, index: int = 0) -> str:
    """Wait until a network card of the machine has a driver, and return its name: ``"eth0"``.

    Raises:
        GuestFailure: no driver shows the card in time.
    """
    return _appeared(guest, "/sys/class/net", network_address(index))


def listed(guest: Guest, folder: str) -> list[str]:
    """Return the names in a folder of the guest, dots left out; one of some hundred names at most.

    Raises:
        GuestOSError: there is no such folder.
    """
    handle = guest.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        result = guest.syscall(_GETDENTS64, handle, Out(_ENTRIES), _ENTRIES, what=f"list {folder}")
    finally:
        guest.close(handle)
    data, names, at = result.outputs[0], [], 0
    while at < result.value:
        size = _ENTRY.unpack_from(data, at)[2]
        names.append(data[at + _ENTRY.size : at + size].split(b"\0")[0].decode())
        at += size
    return [name for name in names if name not in (".", "..")]


def driver_of(guest: Guest, address: str) -> str:
    """Return the driver a PCI device has at the moment, ``""`` for none; for example ``"e1000e"``.

    virtio-pci only makes a virtio device of it, so that one's driver is meant where there is one.
    """
    folder = f"/sys/bus/pci/devices/{address}"
    driver = _driver(guest, folder)
    if driver != "virtio-pci":
        return driver
    within = [name for name in listed(guest, folder) if re.fullmatch(r"virtio\d+", name)]
    return _driver(guest, f"{folder}/{within[0]}") if within else ""


def _driver(guest: Guest, folder: str) -> str:
    try:
        return _target(guest, f"{folder}/driver").rpartition("/")[2]
    except GuestOSError:
        return ""


def _appeared(guest: Guest, folder: str, address: str) -> str:
    deadline = time.monotonic() + _APPEAR_SECONDS * guest.deadlines.scale
    while time.monotonic() < deadline:
        for name in listed(guest, folder):
            if f"/{address}/" in _target(guest, f"{folder}/{name}"):
                return name
    driver = driver_of(guest, address)
    raise GuestFailure(
        f"nothing in {folder} of the guest belongs to the device at {address}",
        observed=f"its driver is {driver}" if driver else "it has no driver",
        hint="load its driver first; a disk behind ahci needs sd_mod as well",
        evidence=guest.machine.console.tail(10),
    )


def _target(guest: Guest, path: str) -> str:
    result = guest.syscall(_READLINK, cstring(path), Out(_PATH), _PATH, what=f"readlink {path}")
    return result.outputs[0][: result.value].decode()
