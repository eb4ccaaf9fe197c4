# SPDX-License-Identifier: MIT
"""A kernel module's debug information with every code section at an address of its own.

A module is a relocatable object: each of its sections begins at 0, and the addresses in its DWARF are
relocations.  pyelftools applies those one by one, which takes seconds for a module; here arrays do it.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.dwarfinfo import DWARFInfo
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section

from harness.errors import BadInput
from harness.images.modules import modinfo

_SHF_EXECINSTR: Final = 0x4
_SHF_COMPRESSED: Final = 0x800
_FIRST: Final = 0x1000
_GAP: Final = 0x1000
_SECTIONS: Final = 1 << 16
_SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_RELA: Final = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
# R_X86_64_64; R_X86_64_32 and _32S: what the compiler uses in debug sections (x86-64 psABI, table 4.9).
_WIDTHS: Final = (((1,), 8), ((10, 11), 4))
_FUNCTION_TYPES: Final = (0, 2)  # STT_NOTYPE (assembly), STT_FUNC


@dataclass(frozen=True)
class Place:
    """Where a symbol of the module lies.

    Attributes:
        address: in the placing made here.
        room: bytes to the next symbol or the end of its section, as kallsyms counts a size.
    """

    address: int
    room: int


@dataclass(frozen=True)
class Placed:
    """The module.

    Attributes:
        name: as /proc/modules says it.
        symbols: its functions; static ones of the same name are several.
        dwarf: its debug information, relocated.
    """

    name: str
    symbols: dict[str, tuple[Place, ...]]
    dwarf: DWARFInfo


def place(path: Path) -> Placed:
    """Read a module that was built with debug information.

    Raises:
        BadInput: it cannot be read, is no such module, or has no debug information.
    """
    try:
        data = bytearray(path.read_bytes())
        elf = ELFFile(io.BytesIO(data))
        if elf["e_machine"] != "EM_X86_64" or elf["e_type"] != "ET_REL":
            raise BadInput(f"{path} is no kernel module for x86-64")
        sections = list(elf.iter_sections())
        if not any(section.name == ".debug_info" for section in sections):
            raise BadInput(f"{path} has no debug information", hint="use the build's ko_debug")
        if any(s["sh_flags"] & _SHF_COMPRESSED for s in sections if s.name.startswith(".debug_")):
            raise BadInput(f"{path} has compressed debug sections", hint="build it without -gz")
        bases = _bases(sections)
        table = next(section for section in sections if section["sh_type"] == "SHT_SYMTAB")
        symbols = _entries(data, table, _SYMBOL)
        addresses = symbols["value"] + bases[symbols["section"]]
        _relocate(data, sections, addresses)
        names = elf.get_section(table["sh_link"])
        found = _functions(symbols, addresses, sections, bases, names)
        dwarf = ELFFile(io.BytesIO(data)).get_dwarf_info(relocate_dwarf_sections=False)
        name = modinfo(bytes(data)).get("name") or path.name.partition(".")[0]
        return Placed(name.replace("-", "_"), found, dwarf)
    except (OSError, ELFError, DWARFError, StopIteration, ValueError, IndexError) as error:
        raise BadInput(f"{path} is no kernel module that can be read", observed=str(error)) from error


def _bases(sections: list[Section]) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    bases, at = np.zeros(_SECTIONS, dtype=np.uint64), _FIRST
    for index, section in enumerate(sections):
        if section["sh_flags"] & _SHF_EXECINSTR:
            bases[index] = at
            at += (section["sh_size"] + 2 * _GAP - 1) & ~(_GAP - 1)
    return bases


def _entries(data: bytearray, section: Section, kind: "np.dtype[np.void]") -> "np.ndarray":
    count = section["sh_size"] // kind.itemsize
    return np.frombuffer(data, dtype=kind, count=count, offset=section["sh_offset"])


def _relocate(data: bytearray, sections: list[Section], addresses: "np.ndarray") -> None:
    target_bytes = np.frombuffer(data, dtype=np.uint8)
    for section in sections:
        if section["sh_type"] != "SHT_RELA" or not section.name.startswith(".rela.debug_"):
            continue
        start = sections[section["sh_info"]]["sh_offset"]
        relocations = _entries(data, section, _RELA)
        values = addresses[relocations["symbol"]] + relocations["addend"].astype(np.uint64)
        for types, width in _WIDTHS:
            chosen = np.isin(relocations["type"], types)
            where = relocations["offset"][chosen].astype(np.int64) + start
            for byte in range(width):
                target_bytes[where + byte] = (values[chosen] >> np.uint64(8 * byte)).astype(np.uint8)


def _functions(
    symbols: "np.ndarray",
    addresses: "np.ndarray",
    sections: list[Section],
    bases: "np.ndarray",
    names: Section,
) -> dict[str, tuple[Place, ...]]:
    strings = names.data()
    ends = np.array([int(bases[i]) + s["sh_size"] for i, s in enumerate(sections)], dtype=np.uint64)
    code = (bases[symbols["section"]] != 0) & np.isin(symbols["info"] & 15, _FUNCTION_TYPES)
    code &= symbols["name"] != 0
    begins = np.unique(addresses[code])
    found: dict[str, tuple[Place, ...]] = {}
    for index in np.flatnonzero(code).tolist():
        address, start = int(addresses[index]), int(symbols["name"][index])
        name = strings[start : strings.index(b"\0", start)].decode("utf-8", "replace")
        end = int(ends[symbols["section"][index]])
        after = int(np.searchsorted(begins, address, side="right"))
        limit = min(int(begins[after]), end) if after < len(begins) else end
        found[name] = (*found.get(name, ()), Place(address, limit - address))
    return found
