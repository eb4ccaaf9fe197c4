# SPDX-License-Identifier: MIT
"""The kernel's symbol table, read out of the guest's memory: no answer of the guest's is needed.

An emulated guest takes seconds to print /proc/kallsyms, and a dead one never does.  Where the packed table
lies is in VMCOREINFO since 6.0 (kernel/kallsyms.c: kallsyms_expand_symbol, kallsyms_sym_address; scripts/
kallsyms.c writes it): names are strings of token numbers, each with its length before it.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from harness.errors import HarnessError

_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
_KERNEL_HALF: Final = 0xFFFF_8000_0000_0000
_MASK: Final = (1 << 64) - 1
_TOKENS: Final = 256
#: No token is longer than a symbol (KSYM_NAME_LEN); a table that says otherwise is none.
_TOKEN_MAX: Final = 512
#: No kernel has more; a count beyond is no count.
_SYMBOLS_MAX: Final = 1 << 21
#: Bytes of packed names per symbol at most on average; some 12 are usual.
_PACKED: Final = 64
_NEEDED: Final = (
    "phys_base",
    "_stext",
    "kallsyms_names",
    "kallsyms_num_syms",
    "kallsyms_token_table",
    "kallsyms_token_index",
    "kallsyms_offsets",
    "kallsyms_relative_base",
)


class Memory(Protocol):
    """Guest RAM by physical address; `harness.vm.GuestRam` is one."""

    def read(self, gpa: int, length: int, /) -> bytes:
        """Return bytes."""

    def contains(self, gpa: int, length: int = 1, /) -> bool:
        """Return whether all of it is RAM."""


class Unreadable(ValueError):
    """There is no symbol table where the kernel says one is."""


def symbols_in(memory: Memory, facts: Mapping[str, int]) -> Iterator[tuple[int, str, str]]:
    """Address, type letter and name of every symbol of the kernel itself, as /proc/kallsyms has them.

    Args:
        memory: the guest's.
        facts: VMCOREINFO's numbers by name (`kernel_log.numbers`).

    Raises:
        Unreadable: the kernel does not say where its table is, or there is none.
    """
    missing = [name for name in _NEEDED if name not in facts]
    if missing:
        raise Unreadable(f"the kernel does not say where its {missing[0]} is")
    try:
        yield from _symbols(memory, facts)
    except (HarnessError, struct.error, LookupError, ValueError) as error:
        raise Unreadable(f"the kernel's symbol table cannot be read: {error}") from error


def _symbols(memory: Memory, facts: Mapping[str, int]) -> Iterator[tuple[int, str, str]]:
    def at(name: str, length: int) -> bytes:
        return memory.read(facts[name] - _KERNEL_MAP + facts["phys_base"], length)

    count = int.from_bytes(at("kallsyms_num_syms", 4), "little")
    if not 0 < count <= _SYMBOLS_MAX:
        raise Unreadable(f"the kernel claims to have {count} symbols")
    relative = int.from_bytes(at("kallsyms_relative_base", 8), "little")
    offsets = struct.unpack(f"<{count}i", at("kallsyms_offsets", 4 * count))
    tokens = _tokens(at)
    start = facts["kallsyms_names"] - _KERNEL_MAP + facts["phys_base"]
    packed = memory.read(start, _room(memory, start, count * _PACKED))
    # Addresses of per-CPU variables are kept as they are, the others below the base (ABSOLUTE_PERCPU); a
    # kernel without that knows only offsets above it.
    percpu = any(offset < 0 for offset in offsets)
    position = 0
    for offset in offsets:
        length = packed[position]
        position += 1
        if length & 0x80:  # since 6.1
            length = length & 0x7F | packed[position] << 7
            position += 1
        spelled = b"".join([tokens[byte] for byte in packed[position : position + length]])
        position += length
        if not percpu:
            address = relative + (offset & 0xFFFF_FFFF)
        elif offset < 0:
            address = relative - 1 - offset
        else:
            address = offset
        if spelled and address & _MASK >= _KERNEL_HALF:
            text = spelled.decode("utf-8", "replace")
            yield address & _MASK, text[0], text[1:]


def _room(memory: Memory, start: int, most: int) -> int:
    """How many of *most* bytes from an address are RAM."""
    sizes = range(most + 1)
    return bisect_left(sizes, True, lo=1, key=lambda size: not memory.contains(start, size)) - 1


def _tokens(at: "_Reader") -> list[bytes]:
    index = struct.unpack(f"<{_TOKENS}H", at("kallsyms_token_index", 2 * _TOKENS))
    table = at("kallsyms_token_table", index[-1] + _TOKEN_MAX)
    return [table[start : table.index(b"\0", start)] for start in index]


class _Reader(Protocol):
    def __call__(self, name: str, length: int, /) -> bytes:
        """Return bytes of the object of that name."""
