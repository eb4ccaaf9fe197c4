# SPDX-License-Identifier: MIT
"""The code of a module, laid out as the kernel lays it out: from its file and where its text begins alone.

Nobody has to be asked in the guest, so that an address has a name also when its module, or the code that is
dropped after init, has long gone.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness.errors import BadInput
from harness.forensics import Frame, LineTable, SourceLine
from harness.forensics.symbols import Table
from harness.images.modules import canonical, modinfo, module_bytes

_CODE: Final = 0x2 | 0x4  # SHF_ALLOC | SHF_EXECINSTR
_FUNCTION_TYPES: Final = ("STT_FUNC", "STT_NOTYPE")
#: Second names of the functions that module_init() and module_exit() were given.
_ALIASES: Final = frozenset({"init_module", "cleanup_module"})
_RELA: Final = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_BRANCHES: Final = (
    2,
    4,
)  # R_X86_64_PC32, R_X86_64_PLT32: what a call or a jump has (x86-64 psABI, table 4.9)
_CALL, _JUMP, _LONG = 0xE8, 0xE9, 0x0F  # Intel SDM Vol. 2: CALL rel32, JMP rel32, and the escape of Jcc rel32
_JCC: Final = range(0x80, 0x90)
_OPERAND: Final = 4

Target = str | int
"""What is called or jumped to: a function of somebody else by its name, or an offset in the same text."""


@dataclass(frozen=True, eq=False)
class CodeText:
    """One of a module's two texts; all offsets are bytes from its start.

    Attributes:
        functions: by offset.
        image: its bytes, before the kernel changed any.
        targets: of relative branches that the linker was to fill in, by the offset of their operand.
    """

    functions: Table
    image: bytes
    targets: dict[int, Target]

    def called(self, after: int) -> Target | None:
        """Return what the call before an offset calls; None where a register says that, or there is none."""
        operand = after - _OPERAND
        if operand < 1 or after > len(self.image) or self.image[operand - 1] != _CALL:
            return None
        near = int.from_bytes(self.image[operand:after], "little", signed=True)
        return self.targets.get(operand, after + near)

    def jumps(self, names: Collection[str], start: int = 0, end: int | None = None) -> Iterator[int]:
        """Yield the offsets of the jumps in a range to functions of somebody else, by their names."""
        for operand, target in self.targets.items():
            if target not in names or not start <= operand < (len(self.image) if end is None else end):
                continue
            if self.image[operand - 1] == _JUMP:
                yield operand - 1
            elif self.image[operand - 2] == _LONG and self.image[operand - 1] in _JCC:
                yield operand - 2


@dataclass(frozen=True, eq=False)
class ModuleCode:
    """What a module's file says about its code.

    Attributes:
        name: as the kernel writes it.
        text: what stays.
        init: what is dropped after init.
        depends: modules it needs, itself.
        lines: its source lines; None when it has no debug information.
    """

    name: str
    text: CodeText
    init: CodeText
    depends: tuple[str, ...]
    lines: LineTable | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a module's file, packed or not.

        Raises:
            BadInput: it cannot be read, or is no module.
        """
        data = module_bytes(path)
        try:
            elf = ELFFile(io.BytesIO(data))
            text, init = _laid_out(elf, init=False), _laid_out(elf, init=True)
        except (ELFError, ValueError, KeyError, IndexError) as error:
            raise BadInput(f"{path} is no kernel module that can be read", observed=str(error)) from error
        info = modinfo(data)
        name = canonical(info.get("name") or path.name)
        depends = tuple(canonical(one) for one in info.get("depends", "").split(",") if one)
        return cls(name, text, init, depends, _lines(path))

    def frame(self, offset: int, *, init: bool = False, exact: bool = False) -> Frame | None:
        """Return the frame of an address; None when no function is there.

        Args:
            offset: bytes from the start of the text.
            init: of the text that is dropped after init.
            exact: of an instruction, not of the one after a call.
        """
        # A call may be a function's last instruction, and the address the next one's.
        past = 0 if exact else 1
        found = (self.init if init else self.text).functions.find(offset - past)
        if found is None:
            return None
        symbol, before, size, _ = found
        return Frame(symbol, before + past, size, self.name, exact=exact)

    def source(self, frame: Frame) -> tuple[SourceLine, ...]:
        """Return the line of a frame, and those it was inlined into; nothing without debug information."""
        if self.lines is None:
            return ()
        return self.lines.lookup(
            frame.symbol, frame.offset, module=self.name, size=frame.size, exact=frame.exact
        )


def _laid_out(elf: ELFFile, *, init: bool) -> CodeText:
    """Put sections where kernel/module/main.c (layout_sections) does: code first, in the file's order."""
    image, starts = bytearray(), {}
    entries: list[tuple[int, bool, str]] = []
    for index, section in enumerate(elf.iter_sections()):
        if section["sh_flags"] & _CODE != _CODE or section.name.startswith(".init") != init:
            continue
        image += bytes(-len(image) % (section["sh_addralign"] or 1))
        starts[index] = len(image)
        image += section.data()
        entries.append((len(image), False, ""))
    table = elf.get_section_by_name(".symtab")
    symbols = list(table.iter_symbols()) if isinstance(table, SymbolTableSection) else []
    places: list[Target | None] = []
    for symbol in symbols:
        start = starts.get(symbol["st_shndx"])
        outside = symbol.name if symbol["st_shndx"] == "SHN_UNDEF" else None
        places.append(outside if start is None else start + symbol["st_value"])
    for symbol in sorted(symbols, key=lambda one: one.name in _ALIASES):
        start = starts.get(symbol["st_shndx"])
        if start is not None and symbol.name and symbol["st_info"]["type"] in _FUNCTION_TYPES:
            entries.append((start + symbol["st_value"], True, symbol.name))
    return CodeText(Table.of(entries), bytes(image), _targets(elf, starts, places))


def _targets(elf: ELFFile, starts: dict[int, int], places: list[Target | None]) -> dict[int, Target]:
    found: dict[int, Target] = {}
    for section in elf.iter_sections():
        start = starts.get(section["sh_info"]) if section["sh_type"] == "SHT_RELA" else None
        if start is None:
            continue
        rows = np.frombuffer(section.data(), _RELA)
        for offset, _, symbol, addend in rows[np.isin(rows["type"], _BRANCHES)].tolist():
            place = places[symbol]
            if isinstance(place, int):
                place += addend + _OPERAND
            if place is not None:
                found[start + offset] = place
    return found


def _lines(path: Path) -> LineTable | None:
    try:
        return LineTable.of(path)
    except BadInput:
        return None
