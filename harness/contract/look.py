# SPDX-License-Identifier: MIT
"""One look at the stopped machine from outside: where a buffer really is, of which type, with which bytes.

Everything starts from the kernel virtual address the module claims and goes on by the page tables alone; what
the module says about physical addresses is never asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.contract.outcome import Broken, Trail
from harness.errors import BadInput
from harness.oracle import Buffer, CpuState, Leaf, MemoryType, PhysRange, Unmapped, View, decode_pat

_PAGE = 4096


@dataclass(frozen=True)
class Place:
    """A stretch of virtual addresses that no descriptor names, such as a mapping.

    Attributes:
        address: its first byte.
        storage: bytes.
    """

    address: int
    storage: int

    def __str__(self) -> str:
        return f"{self.storage} bytes at {self.address:#x}"


class Look:
    """A view of the stopped machine that keeps what it showed as evidence.

    Args:
        view: the oracle's view; valid while the machine stands still.
        trail: where the evidence goes.
        space: the address space user addresses are looked up in; by default what the vCPUs have loaded.
    """

    def __init__(self, view: View, trail: Trail, space: int | None = None) -> None:
        self._view = view
        self._trail = trail
        self._space = space

    @property
    def cpus(self) -> Sequence[CpuState]:
        """Every vCPU's state."""
        return self._view.cpus

    @property
    def pat_types(self) -> frozenset[MemoryType]:
        """The memory types every vCPU's IA32_PAT can express now."""
        return frozenset.intersection(*(frozenset(decode_pat(cpu.pat)) for cpu in self._view.cpus))

    def page(self, address: int) -> Leaf:
        """Return the leaf that maps virtual *address*.

        Raises:
            Broken: it is not mapped.
        """
        leaf = self._view.walk(address, self._space)
        if leaf is None:
            raise Broken(f"{address:#x} mapped in the page tables", "no translation")
        return leaf

    def mapped(self, address: int) -> bool:
        """Return whether *address* has a translation at all."""
        return self._view.walk(address, self._space) is not None

    def at(self, address: int) -> int:
        """Return the physical address behind virtual *address*."""
        leaf = self.page(address)
        return leaf.pa + address - leaf.va

    def where(self, buf: Buffer, offset: int = 0, length: int | None = None) -> tuple[PhysRange, ...]:
        """Return where bytes of *buf* lie, coalesced; by default all of its storage.

        Raises:
            Broken: a byte of it is not mapped.
        """
        length = buf.storage - offset if length is None else length
        try:
            ranges = tuple(self._view.physical_of(buf.address + offset, length, self._space))
        except Unmapped as error:
            raise Broken(f"all {length} bytes at {buf.address + offset:#x} mapped", error.summary) from error
        self._trail.saw_ranges(repr(buf), ranges)
        return ranges

    def mapped_pages(self, place: Place) -> int:
        """Return how many pages of *place* have a translation now."""
        pages = range(place.address, place.address + place.storage, _PAGE)
        return sum(self._view.walk(page, self._space) is not None for page in pages)

    def leaves(self, buf: Buffer) -> tuple[Leaf, ...]:
        """Return the leaves of the buffer's own mapping, whole storage."""
        found: list[Leaf] = []
        address = buf.address
        while address < buf.address + buf.storage:
            leaf = self.page(address)
            found.append(leaf)
            address = leaf.va + leaf.size
        self._trail.saw_leaves(repr(buf), found)
        return tuple(found)

    def aliases(self, buf: Buffer) -> tuple[Leaf, ...]:
        """Return every leaf of every page table that maps a byte of the buffer's storage."""
        return self.aliases_of(repr(buf), self.where(buf))

    def aliases_of(self, name: str, ranges: Sequence[PhysRange]) -> tuple[Leaf, ...]:
        """Return every leaf that maps a byte of *ranges*; *name* is what the evidence calls them."""
        found = tuple(self._view.aliases(ranges))
        self._trail.saw_leaves(name, found)
        return found

    def beside_direct_map(self, leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
        """Return those of *leaves* that are not the kernel's own map of all RAM."""
        base = self._view.direct_map.base
        return tuple(leaf for leaf in leaves if leaf.va - leaf.pa != base)

    def read(self, buf: Buffer, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of *buf* as guest RAM holds them; by default all of its storage."""
        return b"".join(self._view.read(one.start, one.length) for one in self.where(buf, offset, length))

    def read_at(self, address: int, length: int) -> bytes:
        """Return *length* bytes of guest RAM from physical *address*.

        Raises:
            Broken: there is no RAM at it.
        """
        try:
            return self._view.read(address, length)
        except BadInput as error:
            raise Broken(f"{length} bytes of RAM at {address:#x}", error.summary) from error

    def write(self, buf: Buffer, offset: int, data: bytes) -> None:
        """Put *data* into guest RAM where byte *offset* of *buf* lies."""
        done = 0
        for one in self.where(buf, offset, len(data)):
            self._view.write(one.start, data[done : done + one.length])
            done += one.length

    def write_at(self, address: int, data: bytes) -> None:
        """Put *data* into guest RAM at physical *address*, as a device would.

        Raises:
            Broken: there is no RAM at it.
        """
        try:
            self._view.write(address, data)
        except BadInput as error:
            raise Broken(f"{len(data)} bytes of RAM at {address:#x}", error.summary) from error

    def not_at_rest(self) -> tuple[Leaf, ...]:
        """Return the leaves of the direct map over RAM whose PAT index is not 0."""
        found = tuple(self._view.direct_map_anomalies())
        self._trail.saw_leaves("direct map", found)
        return found
