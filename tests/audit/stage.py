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
from pathlib import Path
from tempfile import TemporaryDirectory

from audit_drivers import GALLERY, Driver, drivers

from harness.audit import Book, Finding, Ledger, Outside, Sites, build_ledger, findings
from harness.audit.log import read_log
from harness.forensics import Symbols
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
    "high": GuestOptions(memory_mib=3072),  # q35 has 2 GiB of them below 4 GiB
    "narrow": GuestOptions(devices=("edu,dma_mask=0xffffff",)),
    "iommu": GuestOptions(
        devices=("intel-iommu,intremap=off", "edu,dma_mask=0xffffffffffffffff"),
        cmdline=("intel_iommu=on",),  # Debian's kernels have the driver and leave it off
    ),
}
REACH = {"narrow": {"0000:00:02.0": 0xFFFFFF}}
"""What a machine's devices drive, as its options say."""
RECORDS = 4096
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
        return log_of(self.guest)


def log_of(guest: Guest) -> str:
    """Return a guest's kernel log."""
    call = (_SYSLOG, _READ_ALL, Out(_LOG_BYTES), _LOG_BYTES)
    result = guest.syscall(*call, what="syslog")
    return result.outputs[0][: result.value].decode(errors="replace")


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


@dataclass
class Audit:
    """One driver under the ledger, in a guest that is clean but for that.

    Attributes:
        show: the driver.
        ledger: it watches.
        book: what was read of it so far.
        outside: looks at what the book says is alive.
        sites: knows the driver's lines.
    """

    show: Show
    ledger: Ledger
    book: Book
    outside: Outside
    sites: Sites

    def run(self) -> list[Finding]:
        """Load the driver, use it, look, unload it, look again.

        Returns:
            What was found.
        """
        show, book = self.show, self.book
        self._drain()
        self.outside.begin()
        said = len(show.log())
        show.load()
        with show.mapped() if "mmap" in show.driver.needs else contextlib.nullcontext():
            self._drain()
            seen = self.outside.look(book)
        show.unload()
        self._drain()
        seen += self.outside.leftovers(book)
        seen += read_log(show.log()[said:], book, self.sites)
        assert (self.ledger.lost, self.ledger.missed) == (0, 0)
        return findings([*book.violations, *seen], self.sites, modules={show.driver.name})

    def _drain(self) -> None:
        events = self.ledger.drain()
        self.book.replay(events)
        self.sites.follow(events)


class Stage:
    """One guest at a time; another kernel or machine takes the place of the one before."""

    def __init__(self) -> None:
        self._images: dict[str, GuestImage] = {}
        self._builds: dict[str, dict[str, ModuleBuild]] = {}
        self._stack = ExitStack()
        self._place = ("", "", False)
        self._guest: Guest | None = None
        self._oracle: Oracle | None = None
        self._ledger: Ledger | None = None
        self._symbols: Symbols | None = None

    def close(self) -> None:
        """End the guest."""
        self._stack.close()
        self._guest = self._oracle = self._ledger = self._symbols = None
        self._place = ("", "", False)

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
        with self._shown(kernel, driver, watched=False) as show:
            yield show

    @contextmanager
    def audit(self, kernel: str, driver: Driver) -> Iterator[Audit]:
        """Have a clean guest with a ledger for one driver."""
        with self._shown(kernel, driver, watched=True) as show:
            ledger, files = self._ledger, {driver.name: show.build.ko_debug}
            assert ledger is not None
            ledger.again()
            book = Book(reach=REACH.get(driver.machine, {}))
            outside = Outside(show.guest, show.oracle)
            yield Audit(show, ledger, book, outside, Sites(files.get, self._symbols))

    @contextmanager
    def _shown(self, kernel: str, driver: Driver, *, watched: bool) -> Iterator[Show]:
        build = self.build(kernel, driver)
        guest, oracle = self._ready(kernel, driver.machine, watched=watched)
        show = Show(driver, build, guest, oracle)
        try:
            yield show
        finally:
            if show.loaded:
                with contextlib.suppress(GuestOSError):
                    show.unload()

    def _ready(self, kernel: str, machine: str, *, watched: bool) -> tuple[Guest, Oracle]:
        if (kernel, machine, watched) == self._place:
            assert self._guest is not None
            assert self._oracle is not None
            self._guest.restore()
            return self._guest, self._oracle
        self.close()
        guest = Guest(self.image(kernel), MACHINES[machine], SnapshotStore.default())
        self._guest = self._stack.enter_context(guest)
        self._oracle, self._place = Oracle(guest.machine), (kernel, machine, watched)
        if watched:
            self._watch(guest)
        return guest, self._oracle

    def _watch(self, guest: Guest) -> None:
        """Load a ledger once for all drivers: arming its probes takes longer than they do."""
        build = build_ledger(guest.image.kernel, SilentProgress())
        self._ledger = self._stack.enter_context(Ledger(guest, build, records=RECORDS))
        self._symbols = Symbols.of(guest)
        guest.keep(Path(self._stack.enter_context(TemporaryDirectory())))
