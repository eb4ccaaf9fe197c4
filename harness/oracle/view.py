# SPDX-License-Identifier: MIT
"""One stopped moment of a guest: translations, aliases and memory types, read from its registers and RAM."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from harness.oracle import pagetypes, paging
from harness.oracle.aliases import LeafTable, PhysRange
from harness.oracle.cpu import CpuState
from harness.oracle.directmap import DirectMap, find_direct_map, odd_leaves
from harness.oracle.errors import OracleError, Unmapped, ViewExpired
from harness.oracle.leaf import Leaf, typed_leaves, walked_leaf
from harness.oracle.memtype import MemoryType, TypeRules
from harness.oracle.pages import Buffer, Placed, Spans, extents
from harness.oracle.pagetypes import joined, types_in
from harness.oracle.paging import U8, U64, Tables
from harness.oracle.recall import Ram, Recall
from harness.oracle.survey import Survey, survey_of
from harness.oracle.timing import Clock
from harness.oracle.translate import translate
from harness.oracle.vtd import Remapping


class View:
    """What a stopped guest shows. Only valid inside `Oracle.frozen`.

    A page walk shows page tables, not what a TLB still holds, and types, not caching: TCG has no caches.

    Attributes:
        cpus: registers of every vCPU.
        levels: levels of page tables in use, 4 or 5.
        note: where PAT and MTRRs are from, as a sentence, if not of this moment; else ``""``.
    """

    def __init__(
        self,
        ram: Ram,
        cpus: Sequence[CpuState],
        clock: Clock | None = None,
        recall: Recall | None = None,
        *,
        note: str = "",
    ) -> None:
        """Prepare to read; nothing is scanned before it is asked for.

        Args:
            ram: the machine's RAM, as it is now.
            cpus: registers of all vCPUs.
            clock: where steps are timed.
            recall: what earlier views of the same machine have left.
            note: where PAT and MTRRs are from, if not of this moment.

        Raises:
            NotLongMode: no vCPU pages in 64-bit mode. One that was never started is left out of everything.
            OracleError: vCPUs page with different numbers of levels.
            ReservedType: a PAT slot or an MTRR in use holds a reserved encoding.
        """
        self.cpus = tuple(cpus)
        self.note = note
        self._ram = ram
        self._clock = clock or Clock()
        self._recall = recall or Recall()
        self._closed = False
        self._remappings: list[Remapping] = []
        self._tables = Tables(ram)
        running = [cpu for cpu in cpus if cpu.paging] or list(cpus[:1])
        levels = {cpu.levels for cpu in running}
        if len(levels) != 1:
            raise OracleError(f"vCPUs page with different numbers of levels: {sorted(levels)}")
        self.levels = levels.pop()
        self._no_execute = all(cpu.no_execute for cpu in running)
        self._roots = tuple(dict.fromkeys(paging.kernel_root(self._tables, cpu.cr3) for cpu in running))
        self._rules: dict[TypeRules, tuple[int, ...]] = {}
        for cpu in running:
            rules = cpu.type_rules()
            self._rules[rules] = (*self._rules.get(rules, ()), cpu.index)

    def close(self) -> None:
        """End the view; `Oracle.frozen` does this before the guest goes on."""
        self._closed = True
        for remapping in self._remappings:
            remapping.close()
        self._forget()
        for name in ("_tables", "_ram"):  # arrays over all RAM would keep it from being unmapped
            self.__dict__.pop(name, None)

    @property
    def address_spaces(self) -> tuple[int, ...]:
        """Top tables of the vCPUs and then of all other processes, as values for the *cr3* arguments.

        Raises:
            OracleError: the first vCPU's top table maps no kernel.
        """
        with self._step("scan"):
            return self._spaces

    @property
    def uniform(self) -> bool:
        """Whether all vCPUs type memory alike (same PAT, MTRRs and CR0.CD)."""
        return len(self._rules) == 1

    def walk(self, va: int, cr3: int | None = None) -> Leaf | None:
        """Translate one virtual address.

        Args:
            va: a kernel address; a user address is looked up in what the vCPUs have loaded, in their order.
            cr3: another address space, as a CR3 value.

        Returns:
            The leaf with the types at *va* as the lowest-numbered vCPU sees them, or None if unmapped.
        """
        with self._step("walk"):
            found = self._walk(va, cr3)
            if not found.mapped:
                return None
            return walked_leaf(found, self._rules)

    def physical_of(self, va: int, length: int, cr3: int | None = None) -> tuple[PhysRange, ...]:
        """Return where *length* bytes from *va* lie, in virtual order; neighbours are joined.

        Raises:
            Unmapped: a byte of it has no translation.
        """
        with self._step("walk"):
            parts: list[PhysRange] = []
            position, end = va, va + length
            while position < end:
                found = self._walk(position, cr3)
                if not found.mapped:
                    tried = f"translating {length} bytes from {va:#x}"
                    raise Unmapped(position, found.level, found.entry, tried=tried)
                step = min(found.base + found.size, end) - position
                start = found.pa + position - found.base
                if parts and parts[-1].end == start:
                    parts[-1] = PhysRange(parts[-1].start, parts[-1].length + step)
                else:
                    parts.append(PhysRange(start, step))
                position += step
            return tuple(parts)

    def aliases(self, ranges: Iterable[PhysRange]) -> tuple[Leaf, ...]:
        """Return every leaf that maps any byte of *ranges*, by rising virtual address.

        Looked at are the tables of all vCPUs and of every process found in RAM (`paging.process_roots`).
        The types of a leaf are those of the bytes in question.
        """
        wanted = tuple(ranges)
        with self._step("aliases"):
            touching = self._all.take(self._all.touching(wanted))
            return tuple(typed_leaves(touching.by_address(), self._rules, wanted))

    def types_of(self, buf: Buffer) -> set[MemoryType]:
        """Return the effective types of every alias of every page of *buf*; one element when all agree.

        Raises:
            Unmapped: a page of the buffer is not mapped at its own address.
        """
        return self.types_of_many([buf])[0]

    def types_of_many(self, bufs: Iterable[Buffer]) -> list[set[MemoryType]]:
        """Return `types_of` for each buffer; thousands cost little more than one."""
        rules = tuple(self._rules)
        return self._types(bufs, lambda slots, pages: pagetypes.effective_types_of_pages(rules, slots, pages))

    def pat_types_of(self, buf: Buffer) -> set[MemoryType]:
        """Return the PAT types of every alias of every page of *buf*, MTRRs left aside.

        Raises:
            Unmapped: a page of the buffer is not mapped at its own address.
        """
        return self.pat_types_of_many([buf])[0]

    def pat_types_of_many(self, bufs: Iterable[Buffer]) -> list[set[MemoryType]]:
        """Return `pat_types_of` for each buffer."""
        rules = tuple(self._rules)
        return self._types(bufs, lambda slots, _: pagetypes.pat_types_of_pages(rules, slots))

    def survey(self, address: ArrayLike, storage: ArrayLike) -> Survey:
        """Look at thousands of buffers at once: where they are, all their aliases and the types of those.

        One pass over all page tables serves any number of buffers. A buffer that is not mapped is a finding,
        not an error.

        Args:
            address: virtual addresses of the first bytes; looked up as `walk` does.
            storage: bytes from there on; one number for all or one each.

        Returns:
            A row per buffer in the same order; the survey outlives the view.

        Raises:
            BadInput: a negative number, a buffer beyond the last address, or more than 64 GiB of buffers.
        """
        with self._step("survey"):
            spans = Spans.of(address, storage)
            return survey_of(self._placed(spans), self._all, self._rules)

    def survey_physical(self, start: ArrayLike, length: ArrayLike) -> Survey:
        """Look at thousands of stretches of physical memory at once: their aliases, and the types of those.

        `survey` for memory of which the physical address is known and a virtual one is not. Every row says
        ``mapped``; memory that no leaf maps has no ``aliases`` and no types.

        Args:
            start: physical addresses of the first bytes; need not be RAM.
            length: bytes from there on; one number for all or one each.

        Raises:
            BadInput: as for `survey`.
        """
        with self._step("survey"):
            spans = Spans.of(start, length)
            return survey_of(Placed(spans, spans.va), self._all, self._rules)

    def remapping(self, root: int) -> Remapping:
        """Read the tables of a DMA remapping unit (see `vtd`).

        Args:
            root: what its root table address register holds; RAM does not tell.

        Returns:
            The tables; they expire with this view.
        """
        self._check()
        self._remappings.append(Remapping(self._tables, root))
        return self._remappings[-1]

    def mtrr_type(self, pa: int) -> MemoryType:
        """Return the MTRR type of a physical address on the lowest-numbered vCPU."""
        self._check()
        return next(iter(self._rules)).mtrr.at(pa)

    @property
    def direct_map(self) -> DirectMap:
        """Where the kernel maps all RAM, found from the tables alone (see `directmap`).

        Raises:
            OracleError: the tables show none.
        """
        with self._step("direct map"):
            return self._direct_map

    def direct_map_anomalies(self, besides: Survey | None = None) -> tuple[Leaf, ...]:
        """Return every direct-map leaf over RAM whose PAT index is not 0.

        At rest there is none: whatever made pages uncached or write-combined has to put them back.

        Args:
            besides: buffers that may have changed the type of their memory: leaves that lie in them with all
                their pages are left out. With thousands of them alive this is also much quicker.
        """
        with self._step("direct map"):
            ram = self._ram_ranges()
            odd = odd_leaves(self._all, self._direct_map, ram)
            if besides is not None:
                odd = odd.take(~besides.covers(odd.pa, odd.size))
            return tuple(typed_leaves(odd.by_address(), self._rules, ram))

    def read(self, pa: int, n: int) -> bytes:
        """Return *n* bytes of RAM from physical address *pa*.

        Raises:
            BadInput: part of it is not RAM.
        """
        self._check()
        return self._ram.read(pa, n)

    def write(self, pa: int, data: bytes) -> None:
        """Store *data* at physical address *pa*, behind the guest's back.

        Raises:
            BadInput: part of it is not RAM.
        """
        self._check()
        self._ram.write(pa, data)
        self._forget()  # it may have been a page table

    def _check(self) -> None:
        if self._closed:
            raise ViewExpired

    def _step(self, name: str) -> AbstractContextManager[None]:
        self._check()
        return self._clock.step(name)

    def _forget(self) -> None:
        for name in ("_spaces", "_all", "_direct_map"):
            self.__dict__.pop(name, None)

    def _ram_ranges(self) -> tuple[PhysRange, ...]:
        return tuple(PhysRange(start, length) for start, length in self._ram.ranges)

    @cached_property
    def _all(self) -> LeafTable:
        with self._clock.step("scan"):
            scanner = self._recall.scanner
            return scanner.scan(self._tables, self._spaces, self.levels, no_execute=self._no_execute)

    @cached_property
    def _spaces(self) -> tuple[int, ...]:
        processes = self._recall.touched.search(
            self._ram, lambda stretches: paging.process_roots(self._tables, self._roots[0], stretches)
        )
        return tuple(dict.fromkeys(self._roots + processes))

    @cached_property
    def _direct_map(self) -> DirectMap:
        return find_direct_map(self._all, self._ram_ranges())

    def _walk(self, va: int, cr3: int | None) -> paging.Walk:
        roots = self._roots if cr3 is None else (paging.kernel_root(self._tables, cr3),)
        deepest = None
        for root in roots:
            found = paging.walk(self._tables, root, self.levels, va, no_execute=self._no_execute)
            if found.mapped:
                return found
            if deepest is None or found.level < deepest.level:
                deepest = found
        assert deepest is not None  # noqa: S101  there is always a root
        return deepest

    def _types(self, bufs: Iterable[Buffer], masks_of: Callable[[U8, U64], U8]) -> list[set[MemoryType]]:
        """Return for each buffer the types that *masks_of* gives for its pages' PAT indices and numbers."""
        with self._step("types"):
            placed = self._placed(Spans.of(*extents(bufs)))
            if not placed.mapped.all():
                missing = int(placed.spans.va[np.argmin(placed.mapped)])
                self.physical_of(missing, 1)  # raises, and says at which level the walk ends
            owner, pages = placed.owned
            every, place = np.unique(pages, return_inverse=True)
            masks = masks_of(pagetypes.pat_slots_of_pages(self._all, every), every)[place]
            return [set(types_in(mask)) for mask in joined(masks, owner, len(placed.spans)).tolist()]

    def _placed(self, spans: Spans) -> Placed:
        return Placed(spans, translate(self._tables, self._roots, self.levels, spans.va))
