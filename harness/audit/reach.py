# SPDX-License-Identifier: MIT
"""What devices reach by the addresses they were given: everything that is theirs, and nothing of another's.

Behind an Intel DMA remapping unit that is read out of its tables; of what no unit translates the bus address
is the physical one, or that of a bounce buffer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.audit.book import Violation
from harness.audit.events import Direction, Event, Kind
from harness.audit.live import Entry, bus_ranges
from harness.audit.places import Stretch
from harness.oracle import NOWHERE, Domain, Mode, Remapping, View, read_root, requester

PAGE = 4096
_PAGE = np.uint64(PAGE)
_READS = {Direction.TO_DEVICE, Direction.BIDIRECTIONAL}
_WRITES = {Direction.FROM_DEVICE, Direction.BIDIRECTIONAL}
_STREAMING = {Kind.MAP_PAGE, Kind.MAP_SG, Kind.MAP_SGTABLE}
_SEES_ITS_OWN = ("virtio-iommu", "amd-iommu")
"""Units whose tables are not in RAM, or of a format nobody reads here."""


@dataclass(frozen=True)
class Machinery:
    """What of a machine decides where bus addresses lead.

    Attributes:
        monitor: runs a line of QEMU's human monitor.
        devices: the machine's ``-device`` values.
        cmdline: words of its kernel's command line.
    """

    monitor: Callable[[str], str]
    devices: Sequence[str] = ()
    cmdline: Sequence[str] = ()

    def has(self, *names: str) -> bool:
        """Tell whether one of the devices is of a family, such as ``intel-iommu``."""
        return any(device.split(",")[0].startswith(names) for device in self.devices)


class Bus:
    """Where bus addresses lead in one view.

    Args:
        view: the stopped machine.
        machinery: what it is made of.
    """

    def __init__(self, view: View, machinery: Machinery) -> None:
        self._unit: Remapping | None = None
        self._blind = machinery.has(*_SEES_ITS_OWN)
        self._bounces = any(word.startswith("swiotlb=") and "force" in word for word in machinery.cmdline)
        if machinery.has("intel-iommu"):
            root = read_root(machinery.monitor)
            self._unit = None if root is None else view.remapping(root)
        self._domains: dict[str, Domain | None] = {}

    def judge(self, stretches: Sequence[Stretch]) -> Iterator[Violation]:
        """Yield what is wrong with the addresses of live entries, once per entry.

        Args:
            stretches: by bus address.
        """
        told: set[int] = set()
        for domain, mine in self._by_domain(stretches):
            wrong = _refused(mine) if domain is None else self._judge(domain, mine)
            for violation in wrong:
                if id(violation.entry) not in told:
                    told.add(id(violation.entry))
                    yield violation

    def judge_gone(self, gone: Iterable[Entry], live: Sequence[Stretch]) -> Iterator[Violation]:
        """Yield entries that have ended and whose pages the unit still lets their devices use.

        Entries go out of its tables with the call that ends a mapping, however lazily the unit's own memory
        of them is flushed. What was ended with another size or direction is none of this: that call is wrong.

        Args:
            gone: entries that have ended.
            live: stretches of all that have not, by bus address.
        """
        ended = [Stretch(entry, *piece) for entry in gone if _ended_well(entry) for piece in _pages(entry)]
        used: dict[Domain, set[int]] = defaultdict(set)
        for domain, mine in self._by_domain(live):
            if domain is not None:
                for one in mine:
                    used[domain].update(range(one.address // PAGE, -(-(one.address + one.length) // PAGE)))
        for domain, mine in self._by_domain(ended):
            if domain is None or domain.mode is Mode.UNTRANSLATED:
                continue
            left = [one for one in mine if one.address // PAGE not in used[domain]]
            yield from self._still_there(domain, left)

    def _still_there(self, domain: Domain, pages: Sequence[Stretch]) -> Iterator[Violation]:
        assert self._unit is not None  # noqa: S101  without one there are no domains
        reach = self._unit.translate(domain, [one.address for one in pages])
        told: set[int] = set()
        for number in np.flatnonzero(reach.read | reach.write).tolist():
            entry = pages[number].entry
            if id(entry) in told or entry.ended is None:
                continue
            told.add(id(entry))
            how = (
                f"{pages[number].address:#x} was unmapped at record {entry.ended.number} and still leads to "
                f"{int(reach.physical[number]):#x} ({_rights(reach.read[number], reach.write[number])})"
            )
            yield Violation("wrong-iommu-permission", entry.ended, entry, how)

    def _by_domain(self, stretches: Iterable[Stretch]) -> Iterator[tuple[Domain | None, list[Stretch]]]:
        """Yield stretches by what translates them; None where requests are refused.

        Those of devices behind a unit nobody here can read are left out.
        """
        parted: dict[Domain | None, list[Stretch]] = defaultdict(list)
        for one in stretches:
            made = one.entry.made
            if self._blind and requester(made.name) is not None:
                continue
            parted[self._domain(made)].append(one)
        yield from parted.items()

    def _domain(self, made: Event) -> Domain | None:
        if made.name not in self._domains:
            at = requester(made.name)
            here = _DIRECT
            found = here if self._unit is None or at is None else self._unit.domain(*at)
            self._domains[made.name] = found
        return self._domains[made.name]

    def _judge(self, domain: Domain, stretches: Sequence[Stretch]) -> Iterator[Violation]:
        if domain.mode is Mode.UNTRANSLATED:
            yield from filter(None, map(self._untranslated, stretches))
            return
        pages = _Pages.of(stretches)
        assert self._unit is not None  # noqa: S101  without one there are no domains
        reach = self._unit.translate(domain, pages.bus)
        reads = np.array([one.entry.direction in _READS for one in stretches])[pages.owner]
        writes = np.array([one.entry.direction in _WRITES for one in stretches])[pages.owner]
        elsewhere = (pages.physical != np.uint64(NOWHERE)) & (reach.physical != pages.physical)
        # Linux's Intel code sets the read bit of every entry: it is the first-level format's "present"
        # (drivers/iommu/intel/iommu.c, __domain_mapping).  Reading more than was asked is no driver's doing.
        wrong = elsewhere | (reads & ~reach.read) | (reach.write != writes)
        for page in np.flatnonzero(wrong).tolist():
            one = stretches[int(pages.owner[page])]
            there, bus = int(reach.physical[page]), int(pages.bus[page])
            rights = _rights(reach.read[page], reach.write[page])
            entry = one.entry
            if there == NOWHERE:
                yield Violation("unreachable-bus-address", entry.made, entry, f"{bus:#x} leads nowhere")
            elif elsewhere[page]:
                how = f"{bus:#x} leads to {there:#x}, the memory is at {int(pages.physical[page]):#x}"
                yield Violation("not-where-claimed", entry.made, entry, how)
            else:
                how = f"{bus:#x} is mapped {rights} for {entry.direction.name}"
                yield Violation("wrong-iommu-permission", entry.made, entry, how)

    def _untranslated(self, one: Stretch) -> Violation | None:
        """Judge an address that no unit translates; a bounce buffer is somewhere else, and has to be."""
        made = one.entry.made
        if one.physical < 0 or one.address == one.physical:
            return None
        beyond = bool(made.mask) and one.physical + one.length - 1 > made.mask
        if made.kind in _STREAMING and (beyond or self._bounces):
            return None
        how = f"the device is given {one.address:#x}, the memory is at {one.physical:#x}"
        return Violation("not-where-claimed", made, one.entry, how)


_DIRECT = Domain(Mode.UNTRANSLATED, 0, 0, -1)


@dataclass(frozen=True, eq=False)
class _Pages:
    """Every page of bus addresses of some stretches, as arrays: whose, which, and where it should lead."""

    owner: np.ndarray
    bus: np.ndarray
    physical: np.ndarray

    @classmethod
    def of(cls, stretches: Sequence[Stretch]) -> _Pages:
        start = np.array([one.address for one in stretches], dtype=np.uint64)
        length = np.array([one.length for one in stretches], dtype=np.uint64)
        known = np.array([one.physical >= 0 for one in stretches], dtype=np.bool_)
        physical = np.array([max(one.physical, 0) for one in stretches], dtype=np.uint64)
        first, end = start // _PAGE, (start + length + _PAGE - np.uint64(1)) // _PAGE
        count = (end - first).astype(np.int64)
        owner = np.repeat(np.arange(len(stretches)), count)
        within = (np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)).astype(np.uint64)
        # The first byte may lie inside its page, and has to at the same place on both sides.
        leads = physical[owner] - start[owner] % _PAGE + within * _PAGE
        return cls(owner, (first[owner] + within) * _PAGE, np.where(known[owner], leads, np.uint64(NOWHERE)))


def _refused(stretches: Sequence[Stretch]) -> Iterator[Violation]:
    for one in stretches:
        how = f"{one.address:#x}: the unit refuses every request of {one.entry.made.name}"
        yield Violation("unreachable-bus-address", one.entry.made, one.entry, how)


def _ended_well(entry: Entry) -> bool:
    made, ended = entry.made, entry.ended
    if ended is None or ended.device != made.device or ended.bus != made.bus:
        return False
    return ended.size == made.size or made.kind not in {*_STREAMING, Kind.ALLOC, Kind.MAP_RESOURCE}


def _pages(entry: Entry) -> Iterator[tuple[int, int, int]]:
    for start, length in bus_ranges(entry.made):
        for page in range(start // PAGE, -(-(start + length) // PAGE)):
            yield page * PAGE, -1, PAGE


def _rights(read: bool, write: bool) -> str:
    return "+".join(word for word, have in (("read", read), ("write", write)) if have) or "nothing"
