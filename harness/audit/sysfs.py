# SPDX-License-Identifier: MIT
"""Which modules, drivers and devices a guest has, by its sysfs."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.link import Guest, GuestOSError, Out
from harness.link.syscalls import cstring

# arch/x86/entry/syscalls/syscall_64.tbl
_READLINK, _GETDENTS64 = 89, 217
_ENTRY = struct.Struct("<QqHB")  # struct linux_dirent64, include/linux/dirent.h; the name follows
_BYTES = 16 * 1024
_LINK = 10  # DT_LNK
_PATH_MAX = 4096
_ACCESS_PLATFORM = 33  # VIRTIO_F_ACCESS_PLATFORM, include/uapi/linux/virtio_config.h


@dataclass(frozen=True)
class BoundDevice:
    """A device and who drives it.

    Attributes:
        bus: ``pci``, ``platform``, ``virtio``, ...
        driver: its driver's name.
        name: its own.
        above: names of the devices it hangs on, the outermost first; a virtio device does its DMA as the PCI
            device above it.
    """

    bus: str
    driver: str
    name: str
    above: tuple[str, ...] = ()


def loaded_modules(guest: Guest) -> frozenset[str]:
    """Return the names of all modules in a guest."""
    lines = guest.read_file("/proc/modules").decode().splitlines()
    return frozenset(line.partition(" ")[0] for line in lines)


def drivers_of(guest: Guest, modules: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return bus and name of every driver that modules have registered."""
    found = []
    for module in modules:
        for name, _ in _entries(guest, f"/sys/module/{module}/drivers"):
            bus, _, driver = name.partition(":")
            if driver:
                found.append((bus, driver))
    return tuple(found)


def devices_of(guest: Guest, drivers: Iterable[tuple[str, str]]) -> tuple[BoundDevice, ...]:
    """Return the devices that drivers drive now."""
    found = []
    for bus, driver in drivers:
        folder = f"/sys/bus/{bus}/drivers/{driver}"
        for name, kind in _entries(guest, folder):
            if kind != _LINK or name == "module":
                continue
            parts = _link(guest, f"{folder}/{name}").partition("/devices/")[2].split("/")
            found.append(BoundDevice(bus, driver, name, tuple(parts[:-1])))
    return tuple(found)


def past_the_dma_api(guest: Guest, devices: Iterable[BoundDevice]) -> tuple[str, ...]:
    """Return the virtio devices whose drivers hand out physical addresses themselves.

    That is what they do where VIRTIO_F_ACCESS_PLATFORM was not offered (drivers/virtio/virtio_ring.c:
    vring_use_dma_api, virtqueue_use_dma_api).
    """
    found = []
    for device in devices:
        if device.bus == "virtio":
            bits = guest.read_file(f"/sys/bus/virtio/devices/{device.name}/features").decode().strip()
            if bits[_ACCESS_PLATFORM : _ACCESS_PLATFORM + 1] != "1":
                found.append(device.name)
    return tuple(found)


def _entries(guest: Guest, folder: str) -> Iterator[tuple[str, int]]:
    """Yield name and kind of what is in a folder; nothing where there is none."""
    try:
        handle = guest.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except GuestOSError:
        return
    try:
        while True:
            got = guest.syscall(_GETDENTS64, handle, Out(_BYTES), _BYTES, what=f"list {folder}")
            if not got.value:
                return
            yield from _listed(got.outputs[0][: got.value])
    finally:
        guest.close(handle)


def _listed(data: bytes) -> Iterator[tuple[str, int]]:
    at = 0
    while at < len(data):
        size, kind = _ENTRY.unpack_from(data, at)[2:4]
        name = data[at + _ENTRY.size : at + size].split(b"\0")[0].decode()
        if name not in (".", ".."):
            yield name, kind
        at += size


def _link(guest: Guest, path: str) -> str:
    got = guest.syscall(_READLINK, cstring(path), Out(_PATH_MAX), _PATH_MAX, what=f"readlink {path}")
    return got.outputs[0][: got.value].decode()
