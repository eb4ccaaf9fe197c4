# SPDX-License-Identifier: MIT
"""Columns of structures that travel to the guest and back, and where they lie in a frame's arena."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput

if TYPE_CHECKING:
    from harness.link.frames import Protocol

ALIGN: Final = 8
"""Columns start on boundaries of the largest scalar of a structure."""

Records = NDArray[Any]


class Way(enum.Enum):
    """Which way a column travels."""

    IN = enum.auto()
    IN_OUT = enum.auto()
    OUT = enum.auto()


@dataclass(eq=False)
class Column:
    """One structure, or one number, per row, which calls get the address of.

    Attributes:
        records: an element per row; what came back, once the row is done.
        way: which way it travels.
    """

    records: Records
    way: Way
    pointers: list[tuple[int, Column]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return self.records.dtype.itemsize

    def loaded(self, name: str) -> Loaded:
        """The signed 32-bit field *name*, as it is when the call that uses it is made."""
        return Loaded(self, self._offset(name, 4))

    def point(self, name: str, target: Column) -> None:
        """Store the address of the row's element of *target* in the 64-bit field *name*."""
        self.pointers.append((self._offset(name, 8), target))

    def _offset(self, name: str, size: int) -> int:
        spec = self.records.dtype.fields and self.records.dtype.fields.get(name)
        if not spec or spec[0].itemsize != size:
            raise BadInput(f"the column has no field {name!r} of {8 * size} bits")
        return int(spec[1])


@dataclass(frozen=True, eq=False)
class Loaded:
    """An argument that is read from a column by the agent; see `Column.loaded`."""

    column: Column
    offset: int


class Arena:
    """Where columns lie in a frame with so many rows.

    What is only read comes first, then what goes both ways, then what is only filled: the front travels
    there and the back travels back.

    Args:
        columns: in that order.
        rows: elements of each.

    Attributes:
        rows: as given.
        filled: bytes that travel there.
        window: first byte that travels back.
        size: bytes.
    """

    def __init__(self, columns: Sequence[Column], rows: int) -> None:
        self.rows = rows
        self.filled = 0
        self._columns = columns
        self._offsets: dict[int, int] = {}
        end, window = 0, None
        for column in columns:
            at = -(-end // ALIGN) * ALIGN
            if window is None and column.way is not Way.IN:
                window = at
            self._offsets[id(column)] = at
            end = at + rows * column.size
            if column.way is not Way.OUT:
                self.filled = end
        self.window = end if window is None else window
        self.size = end

    def offset(self, column: Column) -> int:
        """Where a column starts."""
        return self._offsets[id(column)]

    def places(self, column: Column, within: int = 0) -> NDArray[np.uint64]:
        """Where byte *within* of each element of a column is."""
        rows = np.arange(self.rows, dtype=np.uint64)
        return rows * np.uint64(column.size) + np.uint64(self.offset(column) + within)

    def contents(self, start: int, stop: int) -> bytearray:
        """What travels there, of rows *start* to *stop*."""
        filled = bytearray(self.filled)
        for column in self._columns:
            if column.way is not Way.OUT:
                at = self.offset(column)
                filled[at : at + self.rows * column.size] = column.records[start:stop].tobytes()
        return filled

    def relocs(self, protocol: Protocol) -> Records:
        """The ``struct link_reloc`` records of all pointers between columns."""
        pairs = [(column, *pointer) for column in self._columns for pointer in column.pointers]
        records = np.zeros((len(pairs), self.rows), protocol.layouts.struct("link_reloc").dtype)
        records["kind"] = protocol.reloc_arena
        for record, (column, within, target) in zip(records, pairs, strict=True):
            record["place"] = self.places(column, within)
            record["target"] = self.places(target)
        return records
