# SPDX-License-Identifier: MIT
"""Reading C types out of a built object's DWARF, as plain dictionaries that go into JSON."""

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo
from elftools.elf.elffile import ELFFile

from harness.errors import BadInput

_TRANSPARENT = {
    "DW_TAG_typedef",
    "DW_TAG_const_type",
    "DW_TAG_volatile_type",
    "DW_TAG_atomic_type",
    "DW_TAG_restrict_type",
}
_TYPES = {"DW_TAG_structure_type", "DW_TAG_enumeration_type", "DW_TAG_typedef"}
_SIGNED = {5, 6, 13}  # DW_ATE_signed, DW_ATE_signed_char, DW_ATE_signed_fixed
_FLOATS = {3, 4, 9}  # DW_ATE_complex_float, DW_ATE_float, DW_ATE_imaginary_float


def read_types(path: Path, declared_in: str) -> dict[str, Any]:
    """Return ``structs``, ``enums`` and ``constants`` that files matching ``declared_in`` declare.

    Raises:
        BadInput: no ELF, no DWARF, nothing declared in such a file, or a type that has no byte layout.
    """
    found = _Reader(path, declared_in)
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            if not elf.has_dwarf_info():
                raise BadInput(f"{path} has no debug information", hint="build it with -g, do not strip it")
            info = elf.get_dwarf_info()
            for unit in info.iter_CUs():
                found.take(info, unit)
    except (OSError, ELFError) as error:
        raise BadInput(f"{path} is no ELF file that can be read", observed=str(error)) from error
    if not (found.structs or found.constants):
        raise BadInput(
            f"{path} knows no type from a file {declared_in}",
            hint="build it with -fno-eliminate-unused-debug-types, and include the header",
        )
    return {"structs": found.structs, "enums": found.enums, "constants": found.constants}


class _Reader:
    """Collects types over all compilation units; the first declaration of a name counts."""

    def __init__(self, path: Path, declared_in: str) -> None:
        self._path, self._pattern = path, declared_in
        self.structs: dict[str, Any] = {}
        self.enums: dict[str, dict[str, int]] = {}
        self.constants: dict[str, int] = {}

    def take(self, info: DWARFInfo, unit: CompileUnit) -> None:
        """Add one compilation unit's types."""
        declared = self._declaring_files(info, unit)
        if not declared:
            return
        for die in unit.get_top_DIE().iter_children():
            if die.tag in _TYPES and _number(die, "DW_AT_decl_file") in declared:
                self._take_type(die)

    def _declaring_files(self, info: DWARFInfo, unit: CompileUnit) -> set[int]:
        program = info.line_program_for_CU(unit)
        if program is None:
            return set()
        entries = program["file_entry"]
        first = 0 if unit["version"] >= 5 else 1  # DWARF 5 counts files from 0
        folders = [item.decode("utf-8", "replace") for item in program["include_directory"]]
        declared = set()
        for index, entry in enumerate(entries, start=first):
            folder = folders[entry.dir_index - first] if entry.dir_index >= first else ""
            path = f"{folder}/{entry.name.decode('utf-8', 'replace')}"
            ours = "include" not in path.split("/")  # the kernel's and the C library's headers are not
            if ours and fnmatch.fnmatch(path.rpartition("/")[2], self._pattern):
                declared.add(index)
        return declared

    def _take_type(self, die: DIE) -> None:
        name = _name(die)
        if die.tag == "DW_TAG_typedef":  # typedef struct { ... } name;
            target = _strip(die)
            if target is None or _name(target) or target.tag not in _TYPES:
                return
            die = target
        if "DW_AT_declaration" in die.attributes:
            return
        if die.tag == "DW_TAG_enumeration_type":
            self._take_enum(name, die)
        elif name and name not in self.structs:
            self._take_struct(name, die)

    def _take_enum(self, name: str, die: DIE) -> None:
        items = (child for child in die.iter_children() if child.tag == "DW_TAG_enumerator")
        values = {_name(item): _number(item, "DW_AT_const_value") for item in items}
        self.constants |= values
        if name:
            self.enums.setdefault(name, values)

    def _take_struct(self, name: str, die: DIE) -> None:
        fields: dict[str, Any] = {}
        self.structs[name] = {"size": _number(die, "DW_AT_byte_size"), "fields": fields}
        for member, offset in _members(die, 0):
            where = f"struct {name}, field {_name(member)}"
            if "DW_AT_bit_size" in member.attributes:
                raise self._no_layout(where, "a bit-field")
            fields[_name(member)] = self._field(member, offset, where)

    def _field(self, member: DIE, offset: int, where: str) -> dict[str, Any]:
        shape: tuple[int, ...] = ()
        die = _strip(member)
        while die is not None and die.tag == "DW_TAG_array_type":
            shape += tuple(_dimensions(die))
            die = _strip(die)
        if die is None:
            raise self._no_layout(where, "of no type")
        size, encoding, nested = _number(die, "DW_AT_byte_size", 8), _number(die, "DW_AT_encoding"), ""
        signed = encoding in _SIGNED
        if die.tag == "DW_TAG_structure_type":
            nested = _name(die) or f"{where.split()[1].rstrip(',')}::{_name(member)}"
            if nested not in self.structs:
                self._take_struct(nested, die)
        elif die.tag == "DW_TAG_enumeration_type":
            underlying = _strip(die)
            signed = underlying is not None and _number(underlying, "DW_AT_encoding") in _SIGNED
        elif die.tag not in ("DW_TAG_base_type", "DW_TAG_pointer_type") or encoding in _FLOATS:
            raise self._no_layout(where, str(die.tag).removeprefix("DW_TAG_"))
        count = 1
        for dimension in shape:
            count *= dimension
        text = die.tag == "DW_TAG_base_type" and _name(die) == "char"
        return {
            "offset": offset,
            "size": size,
            "count": count,
            "signed": signed,
            "shape": list(shape),
            "struct": nested,
            "text": text,
        }

    def _no_layout(self, where: str, what: str) -> BadInput:
        return BadInput(
            f"{where} is {what}, which this harness does not pass between machines",
            observed=f"in {self._path}",
            hint="use integers of fixed width, arrays and structures of them",
        )


def _members(die: DIE, base: int) -> Iterator[tuple[DIE, int]]:
    """Yield named members with their offsets; those of unnamed structures count as the outer one's."""
    for child in die.iter_children():
        if child.tag != "DW_TAG_member":
            continue
        offset = base + _number(child, "DW_AT_data_member_location")
        inner = _strip(child)
        if _name(child):
            yield child, offset
        elif inner is not None and inner.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
            yield from _members(inner, offset)


def _dimensions(die: DIE) -> Iterator[int]:
    for child in die.iter_children():
        if child.tag == "DW_TAG_subrange_type":
            if "DW_AT_count" in child.attributes:
                yield _number(child, "DW_AT_count")
            else:  # a flexible array has no bound
                yield _number(child, "DW_AT_upper_bound", -1) + 1


def _strip(die: DIE) -> DIE | None:
    """Follow DW_AT_type through typedefs and qualifiers."""
    while "DW_AT_type" in die.attributes:
        die = die.get_DIE_from_attribute("DW_AT_type")
        if die.tag not in _TRANSPARENT:
            return die
    return None


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode() if attribute is not None else ""


def _number(die: DIE, attribute: str, missing: int = 0) -> int:
    found = die.attributes.get(attribute)
    return int(found.value) if found is not None and isinstance(found.value, int) else missing
