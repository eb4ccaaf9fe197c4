# SPDX-License-Identifier: MIT
"""What a test expects of a driver's buffer; a breach is an assertion error with evidence from outside.

::

    expect(buffer).below(32).aligned(4096).type("WC")
"""

from __future__ import annotations

from typing import Self

from harness.audit.buffers import Buffer, Sight
from harness.audit.events import Direction
from harness.errors import BadInput
from harness.oracle import MemoryType
from harness.oracle.expect import summary_of

_SHOWN = 6
_WIDEST = 64


class NotAsExpected(AssertionError):
    """A buffer is not what a test expects."""


class Expect:
    """Expectations of one buffer, to be chained; each is checked when it is said.

    The buffer is looked at once, when the first expectation needs it: all of a chain is about one moment.
    """

    def __init__(self, buffer: Buffer) -> None:
        """Name the buffer; one of `AuditRun.buffers` or `AuditRun.mappings`."""
        self._buffer = buffer
        self._sight: Sight | None = None

    def below(self, bits: int) -> Self:
        """Expect every byte at a bus address of at most so many bits.

        Raises:
            NotAsExpected: one is above.
            BadInput: no number of address lines.
        """
        if not 1 <= bits <= _WIDEST:
            raise BadInput(f"below({bits}): a bus has 1 to 64 address lines", hint="below(32) is below 4 GiB")
        above = [one for one in self._buffer.bus_ranges if one[0] + one[1] > 1 << bits]
        if above:
            self._fail(f"every byte below {1 << bits:#x} (2^{bits})", _ranges(above))
        return self

    def aligned(self, alignment: int) -> Self:
        """Expect a bus address, and a physical one, that so many bytes divide.

        Raises:
            NotAsExpected: one of them is not.
            BadInput: not a positive number.
        """
        if alignment < 1:
            raise BadInput(f"aligned({alignment}): alignment is in bytes, from 1 on")
        if self._buffer.bus % alignment:
            self._fail(f"a bus address that {alignment:#x} divides", f"{self._buffer.bus:#x}")
        first = self._look().physical[:1]
        if first and first[0].start % alignment:
            self._fail(f"a physical address that {alignment:#x} divides", f"{first[0].start:#x}")
        return self

    def type(self, *names: str | MemoryType) -> Self:
        """Expect this effective memory type over every mapping of every page; several: all these together.

        Args:
            names: ``"WB"``, ``"WC"``, ``"UC"``, ``"WT"`` or ``"WP"``, or a `MemoryType`; UC- shows as UC.

        Raises:
            NotAsExpected: there is another one, or one of them is missing.
            BadInput: there is no such type.
        """
        wanted = frozenset(_type(name) for name in names)
        if not wanted:
            raise BadInput("type() expects nothing", hint='type("WC")')
        seen = self._look().types
        if seen != wanted:
            self._fail(f"memory type {_names(wanted)} over all mappings", _names(seen))
        return self

    def contiguous(self) -> Self:
        """Expect one piece of physical memory.

        Raises:
            NotAsExpected: there are several.
        """
        parts = self._look().physical
        if len(parts) != 1:
            self._fail("one contiguous piece of memory", f"{len(parts)} pieces")
        return self

    def direction(self, name: str | Direction) -> Self:
        """Expect a direction: ``"TO_DEVICE"``, ``"FROM_DEVICE"`` or ``"BIDIRECTIONAL"``.

        Raises:
            NotAsExpected: it was made for another.
            BadInput: there is no such direction.
        """
        try:
            wanted = Direction[name] if isinstance(name, str) else name
        except KeyError:
            known = ", ".join(one.name for one in Direction)
            raise BadInput(f"there is no direction {name!r}", hint=f"one of {known}") from None
        if self._buffer.direction is not wanted:
            self._fail(f"direction {wanted.name}", self._buffer.direction.name)
        return self

    def holds(self, data: bytes, offset: int = 0) -> Self:
        """Expect these bytes in physical memory, *offset* bytes into the buffer.

        Raises:
            NotAsExpected: there are others.
            BadInput: they do not fit into the buffer.
        """
        end = offset + len(data)
        if offset < 0 or end > self._buffer.size:
            raise BadInput(f"{len(data)} bytes at {offset} are not inside a buffer of {self._buffer.size}")
        seen = self._buffer.look(end).data[offset:end]
        if seen != data:
            at = next((n for n, (a, b) in enumerate(zip(data, seen, strict=False)) if a != b), len(seen))
            self._fail(
                f"{data[at : at + 16].hex(' ')} at offset {offset + at:#x}", seen[at : at + 16].hex(" ")
            )
        return self

    def zeroed(self) -> Self:
        """Expect nothing but zeroes.

        Raises:
            NotAsExpected: there is something else.
        """
        return self.holds(bytes(self._buffer.size))

    def _look(self) -> Sight:
        if self._sight is None:
            self._sight = self._buffer.look()
        return self._sight

    def _fail(self, expected: str, observed: str) -> None:
        sight = self._look()
        how = "its page tables, walked from outside" if sight.walked else "the ledger"
        lines = [
            f"the {self._buffer.describe()} is not as expected",
            f"  expected: {expected}",
            f"  observed: {observed}",
            f"  made by:  {self._buffer.site}",
            f"  bus:      {_ranges(self._buffer.bus_ranges)}",
            f"  physical: {_ranges([(part.start, part.length) for part in sight.physical])}, by {how}",
            *(f"  | {line}" for line in summary_of(sight.leaves)),
        ]
        raise NotAsExpected("\n".join(lines))


def expect(buffer: Buffer) -> Expect:
    """Begin a chain of expectations of one buffer.

    Args:
        buffer: one of `AuditRun.buffers` or `AuditRun.mappings`.
    """
    return Expect(buffer)


def _type(name: str | MemoryType) -> MemoryType:
    if isinstance(name, MemoryType):
        return name
    try:
        return MemoryType(name)
    except ValueError:
        known = ", ".join(one.value for one in MemoryType)
        raise BadInput(f"there is no memory type {name!r}", hint=f"one of {known}") from None


def _names(types: frozenset[MemoryType]) -> str:
    return " and ".join(one.value for one in MemoryType if one in types) or "none"


def _ranges(ranges: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> str:
    shown = ", ".join(f"{start:#x}..{start + length - 1:#x}" for start, length in ranges[:_SHOWN])
    return shown + (f" and {len(ranges) - _SHOWN} more" if len(ranges) > _SHOWN else "")
