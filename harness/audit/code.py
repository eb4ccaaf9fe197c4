# SPDX-License-Identifier: MIT
"""The code of a module, laid out as the kernel lays it out: from its file and where its text begins alone.

Nobody has to be asked in the guest, so that an address has a name also when its module, or the code that is
dropped after init, has long gone.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

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


@dataclass(frozen=True)
class ModuleCode:
    """What a module's file says about its code.

    Attributes:
        name: as the kernel writes it.
        text: functions by their offset from the start of the module's text.
        init: the same for the text that is dropped after init.
        depends: modules it needs, itself.
        lines: its source lines; None when it has no debug information.
    """

    name: str
    text: Table
    init: Table
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
        except (ELFError, ValueError, KeyError) as error:
            raise BadInput(f"{path} is no kernel module that can be read", observed=str(error)) from error
        info = modinfo(data)
        name = canonical(info.get("name") or path.name)
        depends = tuple(canonical(one) for one in info.get("depends", "").split(",") if one)
        return cls(name, text, init, depends, _lines(path))

    def frame(self, offset: int, *, init: bool = False) -> Frame | None:
        """Return the frame of a return address; None when no function is there.

        Args:
            offset: bytes from the start of the text.
            init: of the text that is dropped after init.
        """
        # A call may be a function's last instruction, and the address the next one's.
        found = (self.init if init else self.text).find(offset - 1)
        if found is None:
            return None
        symbol, before, size, _ = found
        return Frame(symbol, before + 1, size, self.name)

    def source(self, frame: Frame) -> tuple[SourceLine, ...]:
        """Return the line of a frame, and those it was inlined into; nothing without debug information."""
        if self.lines is None:
            return ()
        return self.lines.lookup(
            frame.symbol, frame.offset, module=self.name, size=frame.size, exact=frame.exact
        )


def _laid_out(elf: ELFFile, *, init: bool) -> Table:
    """Functions by offset, as kernel/module/main.c (layout_sections) puts their sections, code first."""
    at, starts = 0, {}
    entries: list[tuple[int, bool, str]] = []
    for index, section in enumerate(elf.iter_sections()):
        if section["sh_flags"] & _CODE != _CODE or section.name.startswith(".init") != init:
            continue
        alignment = section["sh_addralign"] or 1
        starts[index] = at = -(-at // alignment) * alignment
        at += section["sh_size"]
        entries.append((at, False, ""))
    table = elf.get_section_by_name(".symtab")
    if isinstance(table, SymbolTableSection):
        for symbol in sorted(table.iter_symbols(), key=lambda one: one.name in _ALIASES):
            start = starts.get(symbol["st_shndx"])
            if start is not None and symbol.name and symbol["st_info"]["type"] in _FUNCTION_TYPES:
                entries.append((start + symbol["st_value"], True, symbol.name))
    return Table.of(entries)


def _lines(path: Path) -> LineTable | None:
    try:
        return LineTable.of(path)
    except BadInput:
        return None
