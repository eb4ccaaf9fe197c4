# SPDX-License-Identifier: MIT
"""Source lines of a kernel module's code, with what the compiler inlined there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarf_expr import DWARFExprParser
from elftools.dwarf.locationlists import LocationParser
from elftools.dwarf.ranges import BaseAddressEntry

from harness.errors import BadInput
from harness.forensics.placed import Place, Placed, place
from harness.forensics.splat import Frame

_DAMAGED: Final = (ELFError, DWARFError, LookupError, ValueError, AttributeError, AssertionError)
_FRAME_ADDRESS: Final = ["DW_OP_fbreg", "DW_OP_stack_value"]
_SPAN_TAGS: Final = {"DW_TAG_inlined_subroutine", "DW_TAG_lexical_block", "DW_TAG_try_block"}


@dataclass(frozen=True)
class SourceLine:
    """A line of source.

    Attributes:
        function: what it is in.
        file: as the compiler was told it, cut to what tells files apart.
        line: number, from 1.
    """

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class LineTable:
    """From a function and an offset in it to source lines, for one or several modules.

    What one compilation unit says is read when it is first asked for, some 40 ms, and kept.
    """

    def __init__(self, modules: tuple[Placed, ...]) -> None:
        self._modules = {module.name: _Module(module) for module in modules}

    @classmethod
    def of(cls, *debug_modules: Path) -> LineTable:
        """The table of modules built with debug information (`ModuleBuild.ko_debug`); files are read once.

        Raises:
            BadInput: one of them cannot be read, or has no debug information.
        """
        try:
            return _table(tuple((path, path.stat().st_mtime_ns) for path in debug_modules))
        except OSError as error:
            raise BadInput("a module's debug information cannot be read", observed=str(error)) from error

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules it knows."""
        return tuple(self._modules)

    def lookup(
        self, symbol: str, offset: int, *, module: str, size: int = 0, exact: bool = False
    ) -> tuple[SourceLine, ...]:
        """The line, innermost function first, then where each was inlined into the next.

        Args:
            symbol: a function of the module.
            offset: bytes into it.
            module: the module's name.
            size: as the kernel gives it; tells static functions of the same name apart. 0: unknown.
            exact: the offset is that of the instruction meant; else of the one after it, as on a stack.

        Returns:
            Nothing when the module, the function or the line is unknown.
        """
        known = self._modules.get(module)
        if known is None:
            return ()
        return known.lookup(symbol, offset if exact else offset - 1, size)

    def is_local(self, frame: Frame, function: str, parameter: str) -> bool:
        """Whether an inlined function was given the address of a local variable, at an exact place.

        Args:
            frame: the place.
            function: what was inlined there.
            parameter: the name of what it was given.

        Returns:
            False too where nothing is known.
        """
        known = self._modules.get(frame.module)
        return known is not None and known.is_local(frame, function, parameter)

    def source(self, frame: Frame, *, exact: bool = False) -> str:
        """``"file.c:123"``, or ``"list.h:72 (inlined: __list_add from file.c:40)"``, or ``""``."""
        chain = self.lookup(frame.symbol, frame.offset, module=frame.module, size=frame.size, exact=exact)
        if not chain:
            return ""
        steps = [f"{inner.function} from {outer}" for inner, outer in pairwise(chain)]
        return f"{chain[0]} (inlined: {', '.join(steps)})" if steps else str(chain[0])


@lru_cache(maxsize=8)
def _table(stamped: tuple[tuple[Path, int], ...]) -> LineTable:
    return LineTable(tuple(place(path) for path, _ in stamped))


@dataclass(frozen=True)
class _Span:
    """A function or a block, with the address ranges of its code."""

    die: DIE
    ranges: tuple[tuple[int, int], ...]

    def covers(self, address: int) -> bool:
        return any(low <= address < high for low, high in self.ranges)


@dataclass
class _Unit:
    """One compilation unit, read."""

    files: list[str]
    rows: list[tuple[int, int, int]]  # address, file, line; 0 for a gap
    functions: list[_Span]
    starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows.sort(key=lambda row: row[0])
        self.starts = [row[0] for row in self.rows]

    def row(self, address: int) -> tuple[str, int] | None:
        at = bisect_right(self.starts, address) - 1
        if at < 0 or self.rows[at][2] == 0:
            return None
        _, file, line = self.rows[at]
        return self.file(file), line

    def file(self, index: int) -> str:
        return self.files[index] if 0 <= index < len(self.files) else "?"


class _Module:
    def __init__(self, placed: Placed) -> None:
        self._symbols = placed.symbols
        self._dwarf = placed.dwarf
        self._aranges = placed.dwarf.get_aranges()
        self._ranges = placed.dwarf.range_lists()
        self._units: dict[int, _Unit] = {}
        self._found: dict[tuple[str, int, int], tuple[SourceLine, ...]] = {}

    def lookup(self, symbol: str, offset: int, size: int) -> tuple[SourceLine, ...]:
        key = (symbol, offset, size)
        if key not in self._found:
            self._found[key] = self._search(symbol, offset, size)
        return self._found[key]

    def is_local(self, frame: Frame, function: str, parameter: str) -> bool:
        try:
            for found in _candidates(self._symbols.get(frame.symbol, ()), frame.offset, frame.size):
                for span in self._nested(found.address + frame.offset):
                    if _name(span.die) == function:
                        return any(
                            self._is_address(child)
                            for child in span.die.iter_children()
                            if child.tag == "DW_TAG_formal_parameter" and _name(child) == parameter
                        )
        except _DAMAGED:
            pass
        return False

    def _is_address(self, die: DIE) -> bool:
        """Whether a parameter is somewhere a fixed distance from the frame (DWARF 5, 2.6.1.1.2, 2.5.1.2)."""
        location = die.attributes.get("DW_AT_location")
        if location is None:
            return False
        parsed = LocationParser(self._dwarf.location_lists()).parse_from_attribute(
            location, die.cu["version"], die
        )
        entries = parsed if isinstance(parsed, list) else [parsed]
        parser = DWARFExprParser(die.cu.structs)
        for entry in entries:
            expression = getattr(entry, "loc_expr", None)
            steps = parser.parse_expr(expression) if expression is not None else []
            if [step.op_name for step in steps] == _FRAME_ADDRESS:
                return True
        return False

    def _nested(self, address: int) -> list[_Span]:
        """The function an address is in, and what is inlined there, the outermost first."""
        unit = self._unit_at(address)
        functions = unit.functions if unit is not None else []
        function = next((span for span in functions if span.covers(address)), None)
        return [function, *self._inlined(function.die, address)] if function is not None else []

    def _search(self, symbol: str, offset: int, size: int) -> tuple[SourceLine, ...]:
        try:
            for found in _candidates(self._symbols.get(symbol, ()), offset, size):
                chain = self._chain(found.address + offset)
                if chain:
                    return chain
        except _DAMAGED:  # a report without lines is better than none
            pass
        return ()

    def _chain(self, address: int) -> tuple[SourceLine, ...]:
        unit = self._unit_at(address)
        row = unit.row(address) if unit is not None else None
        if unit is None or row is None:
            return ()
        nested = self._nested(address)
        if not nested:
            return (SourceLine("?", *row),)
        lines = [SourceLine(_name(nested[-1].die), *row)]
        for inner, outer in zip(reversed(nested[1:]), reversed(nested[:-1]), strict=True):
            file = unit.file(_number(inner.die, "DW_AT_call_file"))
            lines.append(SourceLine(_name(outer.die), file, _number(inner.die, "DW_AT_call_line")))
        return tuple(lines)

    def _inlined(self, die: DIE, address: int) -> Iterator[_Span]:
        for child in die.iter_children():
            if child.tag not in _SPAN_TAGS:
                continue
            span = _Span(child, self._ranges_of(child))
            if span.covers(address):
                if child.tag == "DW_TAG_inlined_subroutine":
                    yield span
                yield from self._inlined(child, address)
                return

    def _unit_at(self, address: int) -> _Unit | None:
        offset = self._aranges.cu_offset_at_addr(address) if self._aranges is not None else None
        if offset is None:
            return None
        if offset not in self._units:
            self._units[offset] = self._read(self._dwarf.get_CU_at(offset))
        return self._units[offset]

    def _read(self, unit: CompileUnit) -> _Unit:
        files, rows = self._line_rows(unit)
        functions = []
        for child in unit.get_top_DIE().iter_children():
            if child.tag == "DW_TAG_subprogram":
                ranges = self._ranges_of(child)
                if ranges:
                    functions.append(_Span(child, ranges))
        return _Unit(files, rows, functions)

    def _line_rows(self, unit: CompileUnit) -> tuple[list[str], list[tuple[int, int, int]]]:
        program = self._dwarf.line_program_for_CU(unit)
        if program is None:
            return [], []
        version = program["version"]
        folders = [item.decode("utf-8", "replace") for item in program["include_directory"]]
        first = 0 if version >= 5 else 1  # DWARF 5 counts files and folders from 0
        files = [] if version >= 5 else ["?"]
        for entry in program["file_entry"]:
            at = entry.dir_index - first
            folder = folders[at] if 0 <= at < len(folders) else ""
            files.append(_shortened(f"{folder}/{entry.name.decode('utf-8', 'replace')}"))
        rows = []
        for entry in program.get_entries():
            state = entry.state
            if state is not None:
                rows.append((state.address, state.file, 0 if state.end_sequence else state.line))
        return files, rows

    def _ranges_of(self, die: DIE) -> tuple[tuple[int, int], ...]:
        low, high = die.attributes.get("DW_AT_low_pc"), die.attributes.get("DW_AT_high_pc")
        if low is not None and high is not None:
            end = high.value if high.form == "DW_FORM_addr" else low.value + high.value
            return ((low.value, end),)
        listed = die.attributes.get("DW_AT_ranges")
        if listed is None or self._ranges is None:
            return ()
        base = _number(die.cu.get_top_DIE(), "DW_AT_low_pc")
        found = []
        unit: Any = die.cu  # pyelftools' annotations know of type units, which have no code
        entry: Any
        for entry in self._ranges.get_range_list_at_offset(listed.value, cu=unit):
            if isinstance(entry, BaseAddressEntry):
                base = entry.base_address
            else:
                shift = 0 if entry.is_absolute else base
                found.append((entry.begin_offset + shift, entry.end_offset + shift))
        return tuple(found)


def _candidates(places: tuple[Place, ...], offset: int, size: int) -> list[Place]:
    """Those of one name that may be meant, the likeliest first.

    The kernel's size runs up to the next symbol of the loaded module: more than here for a section's last.
    """
    fitting = [found for found in places if 0 <= offset <= found.room]
    return sorted(fitting, key=lambda found: found.room != size)


def _shortened(path: str) -> str:
    """A header of the kernel keeps its place below ``include``; other files are known by their names."""
    parts = path.split("/")
    if "include" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("include")
        return "/".join(parts[last:])
    return parts[-1]


def _name(die: DIE) -> str:
    for _ in range(4):
        named = die.attributes.get("DW_AT_name")
        if named is not None:
            return str(named.value.decode("utf-8", "replace"))
        for link in ("DW_AT_abstract_origin", "DW_AT_specification"):
            if link in die.attributes:
                die = die.get_DIE_from_attribute(link)
                break
        else:
            break
    return "?"


def _number(die: DIE, attribute: str) -> int:
    found = die.attributes.get(attribute)
    return int(found.value) if found is not None and isinstance(found.value, int) else 0
