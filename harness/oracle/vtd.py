# SPDX-License-Identifier: MIT
"""What an Intel DMA remapping unit lets devices do, read out of its tables in RAM.

Where the tables are is told by a register of the unit and nothing else. That is read through QEMU's monitor,
as a device register and from outside: the guest is not asked. From there on it is RAM: root table, context
table, in scalable mode the PASID directory and table, and the page tables of the device's domain.

What is seen is what the unit would find if it walked now. What it still remembers of earlier walks (its
IOTLB) is not in RAM: where Linux flushes lazily, a device may for some milliseconds go on using a mapping
whose entry is gone (Documentation/admin-guide/kernel-parameters.txt, ``iommu.strict``).

Source of the formats: Intel Virtualization Technology for Directed I/O, Architecture Specification, chapter
9.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.oracle import paging
from harness.oracle.errors import OracleError, ViewExpired
from harness.oracle.paging import ENTRIES, PAGE, U64, Tables
from harness.oracle.translate import NOWHERE

UNIT: Final = 0xFED9_0000
"""Where QEMU's q35 has the registers of its only unit (include/hw/i386/intel_iommu.h)."""
_CAPABILITIES, _STATUS, _ROOT = 0x08, 0x1C, 0x20
_FAULT_IS_READ = 1 << 62
_ENABLED = 1 << 31
_SCALABLE = 1 << 10
_PRESENT = 1
_READ, _WRITE = 1, 2
_WORDS_OF_ROOT, _WORDS_OF_CONTEXT, _WORDS_OF_SCALABLE, _WORDS_OF_PASID = 2, 2, 4, 8
_HALF_BUS = 128
_PASIDS_OF_TABLE = 64
_PASS_THROUGH_TYPE = 2
_FIRST_ONLY, _SECOND_ONLY, _PASS_THROUGH_PASID = 1, 2, 4
_WIDEST = 57
_BDF = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")
_MONITOR_WORD = re.compile(r": (0x[0-9a-f]+)\s*$")


class Mode(Enum):
    """How a device's requests are translated."""

    SECOND_LEVEL = "second-level tables"
    FIRST_LEVEL = "first-level tables"
    UNTRANSLATED = "no translation"


@dataclass(frozen=True)
class Domain:
    """The address space of a device.

    Attributes:
        mode: how it is translated.
        root: physical address of its top page table; 0 where nothing is translated.
        levels: of its page tables; 0 likewise.
        number: the domain's id; devices with the same one share what the unit remembers.
    """

    mode: Mode
    root: int
    levels: int
    number: int


@dataclass(frozen=True, eq=False)
class Reach:
    """Where addresses of a device lead; parallel arrays.

    Attributes:
        physical: physical address of each byte, `NOWHERE` where the device has access to nothing.
        read: whether the device may read it.
        write: whether the device may write it.
    """

    physical: U64
    read: NDArray[np.bool_]
    write: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.physical)


def requester(name: str) -> tuple[int, int] | None:
    """Return the bus and the device-and-function number of a PCI device's name; None for another name.

    Args:
        name: as the kernel writes it, ``0000:00:03.0``. QEMU's unit serves segment 0 only.
    """
    found = _BDF.fullmatch(name)
    if found is None:
        return None
    _, bus, device, function = (int(part, 16) for part in found.groups())
    return bus, device << 3 | function


def read_root(monitor: Callable[[str], str], unit: int = UNIT) -> int | None:
    """Return what the unit's root table address register holds; None while it translates nothing.

    Args:
        monitor: runs a line of QEMU's human monitor, as `harness.vm.Qmp.hmp`; the machine stands still.
        unit: physical address of its registers.

    Raises:
        OracleError: the monitor does not show them.
    """
    if not _register(monitor, "w", unit + _STATUS) & _ENABLED:
        return None
    return _register(monitor, "g", unit + _ROOT)


@dataclass(frozen=True)
class StoppedTransfer:
    """The last transfer that a unit has stopped.

    Attributes:
        device: bus in the high byte, device and function in the low one.
        address: of the page the device asked for.
        writes: whether it wanted to write.
        reason: the specification's number: 5 no right to write, 6 none to read.
    """

    device: int
    address: int
    writes: bool
    reason: int


def read_fault(monitor: Callable[[str], str], unit: int = UNIT) -> StoppedTransfer | None:
    """Return what the unit's first fault recording register says; None if it has never said anything.

    The register keeps its words when the kernel has read them, which tells the first few faults of every five
    seconds only (drivers/iommu/intel/dmar.c, dmar_fault). QEMU's unit has no other one, and writes into it
    what it finds out by walking its tables: what it remembers to be forbidden is stopped without a word
    (hw/i386/intel_iommu.c, vtd_do_iommu_translate).

    Args:
        monitor: runs a line of QEMU's human monitor.
        unit: physical address of its registers.

    Raises:
        OracleError: the monitor does not show them.
    """
    at = unit + 16 * (_register(monitor, "g", unit + _CAPABILITIES) >> 24 & 0x3FF)
    low, high = _register(monitor, "g", at), _register(monitor, "g", at + 8)
    reason = high >> 32 & 0xFF
    if not reason:
        return None
    return StoppedTransfer(high & 0xFFFF, low & ~(PAGE - 1), not high & _FAULT_IS_READ, reason)


def _register(monitor: Callable[[str], str], size: str, address: int) -> int:
    line = f"xp/1{size}x {address:#x}"
    said = monitor(line)
    found = _MONITOR_WORD.search(said)
    if found is None:
        raise OracleError(
            f"no register at {address:#x}",
            tried=line,
            observed=said.strip(),
            hint="the machine needs -device intel-iommu, which q35 has only",
        )
    return int(found[1], 16)


class Remapping:
    """A unit's tables. Valid while the machine stands still.

    Args:
        tables: the machine's RAM.
        root: what the root table address register holds.
    """

    def __init__(self, tables: Tables, root: int) -> None:
        self._open: Tables | None = tables
        self._root = root & paging.ADDRESS
        self.scalable = bool(root & _SCALABLE)

    def close(self) -> None:
        """Let go of the machine's RAM."""
        self._open = None

    @property
    def _tables(self) -> Tables:
        if self._open is None:
            raise ViewExpired
        return self._open

    def domain(self, bus: int, devfn: int) -> Domain | None:
        """Return what a device's requests are translated by; None where every one of them is refused.

        Args:
            bus: its bus number.
            devfn: device and function, as `requester` returns it.

        Raises:
            OracleError: an entry that is present says what the specification reserves.
            ViewExpired: the guest runs again.
        """
        if self.scalable:
            return self._scalable(bus, devfn)
        table = self._word(self._root, _WORDS_OF_ROOT * bus)
        if not table & _PRESENT:
            return None
        low = self._word(table & paging.ADDRESS, _WORDS_OF_CONTEXT * devfn)
        high = self._word(table & paging.ADDRESS, _WORDS_OF_CONTEXT * devfn + 1)
        if not low & _PRESENT:
            return None
        number = high >> 8 & 0xFFFF
        if low >> 2 & 3 == _PASS_THROUGH_TYPE:
            return Domain(Mode.UNTRANSLATED, 0, 0, number)
        return Domain(Mode.SECOND_LEVEL, low & paging.ADDRESS, _levels(high & 7), number)

    def translate(self, domain: Domain, addresses: ArrayLike) -> Reach:
        """Translate many addresses of a device, as the unit would.

        Args:
            domain: from `domain`.
            addresses: what the device is given, in any order.

        Raises:
            ViewExpired: the guest runs again.
        """
        tables, wanted = self._tables, np.array(addresses, dtype=np.uint64, ndmin=1)
        if domain.mode is Mode.UNTRANSLATED:
            every = np.ones(len(wanted), dtype=np.bool_)
            return Reach(wanted, every, every.copy())
        return _walk(tables, domain, wanted)

    def _scalable(self, bus: int, devfn: int) -> Domain | None:
        """Legacy mode has requests without a PASID; here they get the one their context entry names."""
        half, place = divmod(devfn, _HALF_BUS)
        table = self._word(self._root, _WORDS_OF_ROOT * bus + half)
        if not table & _PRESENT:
            return None
        context = [self._word(table & paging.ADDRESS, _WORDS_OF_SCALABLE * place + word) for word in range(2)]
        if not context[0] & _PRESENT:
            return None
        pasid = context[1] & 0xF_FFFF
        directory = (context[0] & paging.ADDRESS) + 8 * (pasid // _PASIDS_OF_TABLE)
        pointer = self._word(directory & ~(PAGE - 1), directory % PAGE // 8)
        if not pointer & _PRESENT:
            return None
        begin = _WORDS_OF_PASID * (pasid % _PASIDS_OF_TABLE)
        entry = [self._word(pointer & paging.ADDRESS, begin + word) for word in range(3)]
        return _scalable_domain(entry) if entry[0] & _PRESENT else None

    def _word(self, table: int, index: int) -> int:
        return self._tables.entry(table, index) or 0


def _walk(tables: Tables, domain: Domain, wanted: U64) -> Reach:
    first = domain.mode is Mode.FIRST_LEVEL
    physical = np.full(len(wanted), NOWHERE, dtype=np.uint64)
    rights = np.zeros(len(wanted), dtype=np.uint64)
    bits = min(paging.shift_of(domain.levels + 1), _WIDEST)
    going = np.flatnonzero(wanted >> np.uint64(bits) == 0)
    table = np.full(len(going), domain.root, dtype=np.uint64)
    may = np.full(len(going), _READ | _WRITE, dtype=np.uint64)
    for level in range(domain.levels, 0, -1):
        index = wanted[going] >> np.uint64(paging.shift_of(level)) & np.uint64(ENTRIES - 1)
        entry = tables.entries(table, index)
        may = may & _rights(entry, first=first)
        leaf = (may != 0) & _ends(entry, level)
        inside = np.uint64(paging.leaf_size(level) - 1)
        mine = going[leaf]
        physical[mine] = entry[leaf] & np.uint64(paging.ADDRESS) & ~inside | wanted[mine] & inside
        rights[mine] = may[leaf]
        on = (may != 0) & ~leaf
        going, table, may = going[on], entry[on] & np.uint64(paging.ADDRESS), may[on]
    return Reach(physical, rights & np.uint64(_READ) != 0, rights & np.uint64(_WRITE) != 0)


def _scalable_domain(entry: list[int]) -> Domain:
    kind, number = entry[0] >> 6 & 7, entry[1] & 0xFFFF
    if kind == _PASS_THROUGH_PASID:
        return Domain(Mode.UNTRANSLATED, 0, 0, number)
    if kind == _SECOND_ONLY:
        return Domain(Mode.SECOND_LEVEL, entry[0] & paging.ADDRESS, _levels(entry[0] >> 2 & 7), number)
    if kind == _FIRST_ONLY:
        return Domain(Mode.FIRST_LEVEL, entry[2] & paging.ADDRESS, 4 + (entry[2] >> 2 & 1), number)
    raise OracleError(
        f"a PASID entry with translation type {kind}: nested or reserved",
        observed=f"entry {entry[0]:#x}",
        hint="nested translation needs a guest inside the guest; nobody here makes one",
    )


def _levels(width: int) -> int:
    """Return the levels of second-level tables for an entry's address width: 39, 48 or 57 bits."""
    if width not in (1, 2, 3):
        raise OracleError(f"a context entry with the reserved address width {width}")
    return width + 2


def _rights(entry: U64, *, first: bool) -> U64:
    """Return what an entry allows. First-level entries are those of the processor: present, writable."""
    if not first:
        return entry & np.uint64(_READ | _WRITE)
    present = entry & np.uint64(paging.PRESENT) != 0
    return np.where(present, np.uint64(_READ) | entry & np.uint64(_WRITE), np.uint64(0))


def _ends(entry: U64, level: int) -> NDArray[np.bool_]:
    if level == 1:
        return np.ones(len(entry), dtype=np.bool_)
    if level > paging.LARGEST_LEAF_LEVEL:
        return np.zeros(len(entry), dtype=np.bool_)
    sized: NDArray[np.bool_] = entry & np.uint64(paging.PAGE_SIZE_BIT) != 0
    return sized
