# SPDX-License-Identifier: MIT
"""One look at the stopped machine from outside: where a buffer really is, of which type, with which bytes.

Everything starts from the kernel virtual address the module claims and goes on by the page tables alone; what
the module says about physical addresses is never asked here.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.contract.outcome import Broken, Trail
from harness.oracle import Buffer, CpuState, Leaf, MemoryType, PhysRange, Unmapped, View, decode_pat


class Look:
    """A view of the stopped machine that keeps what it showed as evidence.

    Args:
        view: the oracle's view; valid while the machine stands still.
        trail: where the evidence goes.
    """

    def __init__(self, view: View, trail: Trail) -> None:
        self._view = view
        self._trail = trail

    @property
    def cpus(self) -> Sequence[CpuState]:
        """Every vCPU's state."""
        return self._view.cpus

    @property
    def pat_types(self) -> frozenset[MemoryType]:
        """The memory types every vCPU's IA32_PAT can express now."""
        return frozenset.intersection(*(frozenset(decode_pat(cpu.pat)) for cpu in self._view.cpus))

    def page(self, address: int) -> Leaf:
        """Return the leaf that maps kernel virtual *address*.

        Raises:
            Broken: it is not mapped.
        """
        leaf = self._view.walk(address)
        if leaf is None:
            raise Broken(f"{address:#x} mapped in the kernel's page tables", "no translation")
        return leaf

    def mapped(self, address: int) -> bool:
        """Return whether *address* has a translation at all."""
        return self._view.walk(address) is not None

    def at(self, address: int) -> int:
        """Return the physical address behind kernel virtual *address*."""
        leaf = self.page(address)
        return leaf.pa + address - leaf.va

    def where(self, buf: Buffer, offset: int = 0, length: int | None = None) -> tuple[PhysRange, ...]:
        """Return where bytes of *buf* lie, coalesced; by default all of its storage.

        Raises:
            Broken: a byte of it is not mapped.
        """
        length = buf.storage - offset if length is None else length
        try:
            ranges = tuple(self._view.physical_of(buf.address + offset, length))
        except Unmapped as error:
            raise Broken(f"all {length} bytes at {buf.address + offset:#x} mapped", error.summary) from error
        self._trail.saw_ranges(repr(buf), ranges)
        return ranges

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

    def read(self, buf: Buffer, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of *buf* as guest RAM holds them; by default all of its storage."""
        return b"".join(self._view.read(one.start, one.length) for one in self.where(buf, offset, length))

    def write(self, buf: Buffer, offset: int, data: bytes) -> None:
        """Put *data* into guest RAM where byte *offset* of *buf* lies."""
        done = 0
        for one in self.where(buf, offset, len(data)):
            self._view.write(one.start, data[done : done + one.length])
            done += one.length

    def not_at_rest(self) -> tuple[Leaf, ...]:
        """Return the leaves of the direct map over RAM whose PAT index is not 0."""
        found = tuple(self._view.direct_map_anomalies())
        self._trail.saw_leaves("direct map", found)
        return found
