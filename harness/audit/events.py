# SPDX-License-Identifier: MIT
"""The ledger's records, decoded: one `Event` for each call of the DMA API.

Layouts come from the module's own DWARF (``kext_shim/ledger/dma_ledger_abi.h``); the numbers here are
compared with it before a record is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.images import Layouts

ABI_VERSION = 1
"""Version of the ledger's layouts that is understood here."""


class Kind(IntEnum):
    """What was called; ``enum dma_ledger_kind`` without its prefix."""

    NOTHING = 0
    MODULE_COMING = 1
    MODULE_GOING = 2
    PIECE = 3
    ALLOC = 4
    FREE = 5
    ALLOC_PAGES = 6
    FREE_PAGES = 7
    ALLOC_NONCONTIGUOUS = 8
    FREE_NONCONTIGUOUS = 9
    MAP_PAGE = 10
    UNMAP_PAGE = 11
    MAP_SG = 12
    MAP_SGTABLE = 13
    UNMAP_SG = 14
    MAP_RESOURCE = 15
    UNMAP_RESOURCE = 16
    SYNC_FOR_CPU = 17
    SYNC_FOR_DEVICE = 18
    SYNC_SG_FOR_CPU = 19
    SYNC_SG_FOR_DEVICE = 20
    POOL_CREATE = 21
    POOL_ALLOC = 22
    POOL_FREE = 23
    POOL_DESTROY = 24
    SET_MASK = 25
    SET_COHERENT_MASK = 26
    MMAP = 27
    MEMORY_UC = 28
    MEMORY_WC = 29
    MEMORY_WB = 30
    PAGES_UC = 31
    PAGES_WB = 32
    PAGES_ARRAY_UC = 33
    PAGES_ARRAY_WC = 34
    PAGES_ARRAY_WB = 35
    USER_PAGE = 36
    USER_PAGES = 37
    USER_RANGE = 38
    USER_FRAME = 39
    USER_FRAME_PROT = 40
    USER_MIXED = 41
    BIND = 42
    UNBIND = 43


class Flag(IntFlag):
    """What was noticed; ``enum dma_ledger_flag`` without its prefix."""

    IRQS_OFF = 0x1
    ATOMIC = 0x2
    NOT_ZEROED = 0x4
    NO_RAM = 0x8
    VMALLOC = 0x10
    STACK = 0x20
    SHORT_STACK = 0x40


_NO_FLAG = Flag(0)


class Direction(IntEnum):
    """The kernel's ``enum dma_data_direction`` (include/linux/dma-direction.h)."""

    BIDIRECTIONAL = 0
    TO_DEVICE = 1
    FROM_DEVICE = 2
    NONE = 3
    UNSAID = 0xFFFF


@dataclass(frozen=True, slots=True)
class Piece:
    """A physical run of a buffer, or an entry of a list.

    Attributes:
        physical: address of the first byte.
        length: bytes.
        bus: DMA address; 0 for what is no list's.
        bus_length: bytes the device sees from there; 0 when the entry was merged into another one.
    """

    physical: int
    length: int
    bus: int = 0
    bus_length: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One call of the DMA API, or a module that came or went.

    Attributes:
        number: the record's, from 0; the order in which things became true.
        kind: what was called.
        time: nanoseconds of the guest's kernel log's clock.
        direction: as the driver said it.
        cpu: the processor's number.
        pid: the thread.
        flags: what was noticed.
        device: address of its ``struct device``.
        mask: streaming mask when the call was made.
        coherent_mask: coherent mask when the call was made.
        boundary: its segment boundary mask, 0 for none.
        size: bytes; the new mask, or pages for memory types.
        bus: DMA address; the alignment for a pool's making; for `Kind.USER_PAGE` to `Kind.USER_MIXED` the
            physical address of the process's top page table.
        virtual: kernel address, or the object's.
        physical: address of the first byte, 0 where unknown.
        attrs: DMA_ATTR_*.
        gfp: how it was allocated; of a user mapping the low half of the page protection asked for.
        owner: the pool, or a user mapping's address.
        error: 0 or a negative errno.
        module: name of the module of the first frame that is in one; ``""`` for the kernel itself. Of
            `Kind.BIND` and `Kind.UNBIND` the driver's; of a user mapping without such a frame the one whose
            file is mapped.
        driver: the device's driver, at most 15 characters.
        subsystem: the device's bus, at most 11 characters.
        name: the device's, at most 19 characters; the pool's for its making.
        stack: return addresses, the caller's first.
        pieces: the physical runs where there is more than one; of a list, its entries.
        init: of a module, whether this is about the code that is dropped after init.
    """

    number: int
    kind: Kind
    time: int = 0
    direction: Direction = Direction.UNSAID
    cpu: int = 0
    pid: int = 0
    flags: Flag = _NO_FLAG
    device: int = 0
    mask: int = 0
    coherent_mask: int = 0
    boundary: int = 0
    size: int = 0
    bus: int = 0
    virtual: int = 0
    physical: int = 0
    attrs: int = 0
    gfp: int = 0
    owner: int = 0
    error: int = 0
    module: str = ""
    driver: str = ""
    subsystem: str = ""
    name: str = ""
    stack: tuple[int, ...] = ()
    pieces: tuple[Piece, ...] = ()
    init: bool = False

    @property
    def caller(self) -> str:
        """The module that made the call, or ``"kernel"``."""
        return self.module or "kernel"

    @property
    def runs(self) -> tuple[Piece, ...]:
        """Where the memory is; empty where nobody knows."""
        if self.pieces:
            return self.pieces
        return (Piece(self.physical, self.size, self.bus, self.size),) if self.physical else ()


_NUMBERS = (
    *("time", "cpu", "pid", "device", "mask", "coherent_mask", "boundary", "size", "bus", "virtual_address"),
    *("physical", "attrs", "gfp", "owner", "error"),
)
_TEXTS = ("driver", "subsystem", "name")
_KINDS = {int(one): one for one in Kind}
_DIRECTIONS = {int(one): one for one in Direction}


def check_layouts(layouts: Layouts) -> None:
    """Compare a module's ABI with what is understood here.

    Raises:
        BadInput: another version, another number of a kind or a flag.
    """
    for enum, ours in (("dma_ledger_kind", Kind), ("dma_ledger_flag", Flag)):
        theirs = dict(layouts.enum(enum))
        theirs.pop("DMA_LEDGER_KINDS", None)
        expected = {f"DMA_LEDGER_{one.name}": int(one) for one in ours}
        if theirs != expected:
            different = sorted(set(theirs.items()) ^ set(expected.items()))
            raise BadInput(f"the module has another enum {enum}", observed=str(different))
    version = layouts.enum("dma_ledger_number")["DMA_LEDGER_ABI_VERSION"]
    if version != ABI_VERSION:
        raise BadInput("the ledger has another ABI", observed=f"version {version}, not {ABI_VERSION}")


@dataclass
class Decoder:
    """Turns records into events; remembers modules, and a call whose pieces have not all come.

    Attributes:
        layouts: the module's.
        modules: names of all modules seen, by id.
    """

    layouts: Layouts
    modules: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compare the ABI."""
        check_layouts(self.layouts)
        self.dtype = self.layouts.struct("dma_ledger_record").dtype
        self._piece = self.layouts.struct("dma_ledger_piece").dtype
        self._module = self.layouts.struct("dma_ledger_module").dtype
        self._rest: NDArray[Any] = np.empty(0, self.dtype)

    def feed(self, records: NDArray[Any]) -> Iterator[Event]:
        """Decode the records that follow those fed before.

        Args:
            records: ``struct dma_ledger_record``, in the ring's order.

        Raises:
            BadInput: a record is missing, or a piece is nobody's.
        """
        rows = np.concatenate((self._rest, records)).astype(self.dtype, copy=False)
        if len(rows) and np.any(np.diff(rows["sequence"].astype(np.int64)) != 1):
            raise BadInput("records are missing between those that were read")
        pieces, modules = rows.view(self._piece), rows.view(self._module)
        kinds, counts = rows["kind"].tolist(), rows["pieces"].tolist()
        calls = _calls(rows)
        at = 0
        try:
            while at < len(rows):
                kind, begin = _KINDS[kinds[at]], at
                if kind is Kind.PIECE:
                    raise BadInput("a piece follows no call", observed=f"record {calls[at][0] - 1}")
                end = at + 1 + counts[at]
                if kind is Kind.MODULE_COMING or kind is Kind.MODULE_GOING:
                    at += 1
                    yield self._moved(kind, modules[begin])
                elif end > len(rows):
                    break
                else:
                    at = end
                    yield self._called(
                        kind, calls[begin], pieces[begin + 1 : end] if end > begin + 1 else None
                    )
        finally:
            self._rest = rows[at:].copy()

    def _moved(self, kind: Kind, row: Any) -> Event:
        name = _text(row["name"])
        self.modules[int(row["id"])] = name
        return Event(
            number=int(row["sequence"]) - 1,
            kind=kind,
            time=int(row["time"]),
            module=name,
            virtual=int(row["base"]),
            size=int(row["size"]),
            init=bool(row["init"]),
        )

    def _called(self, kind: Kind, call: _Call, pieces: NDArray[Any] | None) -> Event:
        sequence, direction, flags, module, texts, stack, frames, numbers = call
        time, cpu, pid, device, mask, coherent, boundary, size, bus, virtual, physical = numbers[:11]
        attrs, gfp, owner, error = numbers[11:]
        driver, subsystem, name = map(_text, texts)
        runs = () if pieces is None else _runs(sequence - 1, pieces)
        # By place: half of the time goes into making these.
        return Event(
            *(sequence - 1, kind, time, _DIRECTIONS[direction], cpu, pid, _flag(flags), device, mask),
            *(coherent, boundary, size, bus, virtual, physical, attrs, gfp, owner, error),
            *(self.modules.get(module, ""), driver, subsystem, name, tuple(stack[:frames]), runs),
        )


_Call = tuple[int, int, int, int, tuple[bytes, ...], list[int], int, tuple[int, ...]]


def _calls(rows: NDArray[Any]) -> list[_Call]:
    """Take records apart, a whole column at a time."""

    def columns(*names: str) -> Iterator[list[Any]]:
        return (rows[name].tolist() for name in names)

    texts, numbers = zip(*columns(*_TEXTS), strict=True), zip(*columns(*_NUMBERS), strict=True)
    plain = columns("sequence", "direction", "flags", "module")
    return list(zip(*plain, texts, *columns("stack", "frames"), numbers, strict=True))


def _runs(number: int, pieces: NDArray[Any]) -> tuple[Piece, ...]:
    if not np.all((pieces["kind"] == Kind.PIECE) & (pieces["parent"] == number)):
        raise BadInput("a call's pieces are not its own", observed=f"record {number}")
    return tuple(Piece(*run) for run in pieces[["physical", "length", "bus", "bus_length"]].tolist())


@cache
def _flag(value: int) -> Flag:
    return Flag(value)


@lru_cache(4096)
def _text(field: bytes) -> str:
    """Return a C string; what lies behind its end is of no meaning."""
    return field.partition(b"\0")[0].decode("utf-8", "replace")
