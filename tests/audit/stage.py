# SPDX-License-Identifier: MIT
"""Where a driver of the gallery shows itself: a guest of its kernel and machine, clean each time."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from audit_drivers import GALLERY, Driver, drivers

from harness.images import (
    GuestImage,
    KernelSelector,
    ModuleBuild,
    SilentProgress,
    build_modules,
    prepare_guest,
    prepare_kernel,
)
from harness.link import Guest, GuestOptions, GuestOSError, Nr, Out
from harness.oracle import Oracle
from harness.vm import SnapshotStore

KERNELS = ("debian-6.1-cloud", "debian-6.12-cloud")
MACHINES = {
    "plain": GuestOptions(),
    "narrow": GuestOptions(devices=("edu,dma_mask=0xffffff",)),
    "iommu": GuestOptions(
        devices=("intel-iommu,intremap=off", "edu,dma_mask=0xffffffffffffffff"),
        cmdline=("intel_iommu=on",),  # Debian's kernels have the driver and leave it off
    ),
}
PAGE = 4096

_SYSLOG, _READ_ALL, _LOG_BYTES = 103, 3, 512 * 1024
_GETDENTS64, _ENTRIES = 217, 16 * 1024
_ENTRY = struct.Struct("<QqHB")  # struct linux_dirent64, include/linux/dirent.h; the name follows


@dataclass(frozen=True)
class Region:
    """A buffer, as `harness.oracle` wants one."""

    address: int
    storage: int


@dataclass
class Show:
    """One driver, loaded in a clean guest.

    Attributes:
        driver: which.
        build: its module.
        guest: the guest.
        oracle: the observer outside.
        loaded: whether it is in the guest now.
    """

    driver: Driver
    build: ModuleBuild
    guest: Guest
    oracle: Oracle
    loaded: bool = False

    def load(self) -> None:
        """Load it; its probe runs before this returns."""
        self.guest.load_module(self.build.ko.read_bytes())
        self.loaded = True

    def unload(self) -> None:
        """Unload it; it is unbound on the way."""
        self.guest.unload_module(self.driver.name)
        self.loaded = False

    def parameter(self, name: str) -> int:
        """Return one of its numbers: ``va``, ``dma``."""
        return int(self.guest.read_file(f"/sys/module/{self.driver.name}/parameters/{name}"))

    def region(self, storage: int) -> Region:
        """Return the first *storage* bytes from its ``va``."""
        return Region(self.parameter("va"), storage)

    @property
    def bound(self) -> bool:
        """Whether it drives its device."""
        bus = "pci" if "edu" in self.driver.needs else "platform"
        entries = listed(self.guest, f"/sys/bus/{bus}/drivers/{self.driver.name}")
        return self.driver.name in entries or any(":" in entry for entry in entries)

    @contextmanager
    def mapped(self) -> Iterator[int]:
        """Map the first page of its device node in the agent while the block runs, and touch it."""
        guest = self.guest
        node = guest.open(f"/dev/{self.driver.name}", os.O_RDWR)
        try:
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            call = (Nr.MMAP, 0, PAGE, protection, mmap.MAP_SHARED, node, 0)
            address = guest.syscall(*call, what="map the driver's page").value
            try:
                guest.peek(address, 8)
                yield address
            finally:
                guest.syscall(Nr.MUNMAP, address, PAGE, what="munmap")
        finally:
            guest.close(node)

    def log(self) -> str:
        """Return the guest's kernel log."""
        call = (_SYSLOG, _READ_ALL, Out(_LOG_BYTES), _LOG_BYTES)
        return self.guest.syscall(*call, what="syslog").outputs[0].decode(errors="replace")


def listed(guest: Guest, folder: str) -> set[str]:
    """Return the names in a folder of the guest that has a few."""
    handle = guest.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        result = guest.syscall(_GETDENTS64, handle, Out(_ENTRIES), _ENTRIES, what=f"list {folder}")
    finally:
        guest.close(handle)
    data, names, at = result.outputs[0], set(), 0
    while at < result.value:
        size = _ENTRY.unpack_from(data, at)[2]
        names.add(data[at + _ENTRY.size : at + size].split(b"\0")[0].decode())
        at += size
    return names


class Stage:
    """One guest at a time; another kernel or machine takes the place of the one before."""

    def __init__(self) -> None:
        self._images: dict[str, GuestImage] = {}
        self._builds: dict[str, dict[str, ModuleBuild]] = {}
        self._stack = ExitStack()
        self._place = ("", "")
        self._guest: Guest | None = None
        self._oracle: Oracle | None = None

    def close(self) -> None:
        """End the guest."""
        self._stack.close()
        self._guest = self._oracle = None
        self._place = ("", "")

    def build(self, kernel: str, driver: Driver) -> ModuleBuild:
        """Return a driver's build for one kernel; the first asks for all of the gallery, by one make."""
        if kernel not in self._builds:
            names = [one.name for one in drivers()]
            self._builds[kernel] = build_modules(self.image(kernel).kernel, GALLERY, SilentProgress(), names)
        return self._builds[kernel][driver.name]

    def image(self, kernel: str) -> GuestImage:
        """Return what a guest of this kernel is booted from."""
        if kernel not in self._images:
            selector = KernelSelector(recipe=kernel, vmlinuz=None, modules=None, headers=None)
            self._images[kernel] = prepare_guest(prepare_kernel(selector, SilentProgress()), SilentProgress())
        return self._images[kernel]

    @contextmanager
    def show(self, kernel: str, driver: Driver) -> Iterator[Show]:
        """Have a clean guest for one driver; what is still loaded at the end is unloaded, if it can be."""
        build = self.build(kernel, driver)
        guest, oracle = self._ready(kernel, driver.machine)
        show = Show(driver, build, guest, oracle)
        try:
            yield show
        finally:
            if show.loaded:
                with contextlib.suppress(GuestOSError):
                    show.unload()

    def _ready(self, kernel: str, machine: str) -> tuple[Guest, Oracle]:
        if (kernel, machine) == self._place:
            assert self._guest is not None
            assert self._oracle is not None
            self._guest.restore()
            return self._guest, self._oracle
        self.close()
        # edu forgets its registers in a snapshot (it has no vmstate): those guests are booted each time.
        snapshots = SnapshotStore.default() if machine == "plain" else None
        guest = self._stack.enter_context(Guest(self.image(kernel), MACHINES[machine], snapshots))
        self._guest, self._oracle, self._place = guest, Oracle(guest.machine), (kernel, machine)
        return guest, self._oracle
