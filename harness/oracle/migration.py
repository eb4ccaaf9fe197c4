# SPDX-License-Identifier: MIT
"""vCPU registers out of QEMU's migration stream.

The stream is the only place where QEMU shows IA32_PAT and the MTRRs: the monitor, the gdb stub and the QOM
tree do not have them. It ends with a description of itself in JSON, from which the offsets are computed;
the sections then have to end exactly where the description says, or nothing is believed. Format: QEMU
migration/savevm.c and migration/vmstate.c; fields of a vCPU: target/i386/machine.c.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any

from harness.oracle.cpu import CpuState
from harness.oracle.errors import StreamError

_MAGIC = b"QEVM\x00\x00\x00\x03"
_SECTION_FULL = 0x04
_SUBSECTION = 0x05
_VMDESCRIPTION = 0x06
_FOOTER = 0x7E
_DESCRIPTION_HEADER = 5  # the tag and a length
_SECTION_HEADER = 5  # the tag and a number
_CPU = b"cpu"
_BE32 = Struct(">I")
_BE64 = Struct(">Q")

_SCALARS = {
    "cr0": "env.cr[0]",
    "cr3": "env.cr[3]",
    "cr4": "env.cr[4]",
    "efer": "env.efer",
    "pat": "env.pat",
    "mtrr_def_type": "env.mtrr_deftype",
}
_FIXED, _FIXED_COUNT = "env.mtrr_fixed", 11
_VARIABLE, _VARIABLE_COUNT = "env.mtrr_var", 8


@dataclass(frozen=True)
class _Subsection:
    name: bytes
    version: int
    size: int
    """Bytes of its fields, without its own subsections."""
    children: tuple["_Subsection", ...]


@dataclass(frozen=True)
class _CpuLayout:
    """Where things are in one vCPU's section, relative to the first byte after its header."""

    instance: int
    version: int
    size: int
    offsets: Mapping[str, tuple[int, ...]]
    subsections: tuple[_Subsection, ...]


class StreamReader:
    """Reads streams of one machine, which describes itself in the same words every time.

    The words are compared every time, byte by byte; only what they say is remembered.
    """

    def __init__(self) -> None:
        self._description = b""
        self._layouts: tuple[_CpuLayout, ...] = ()

    def parse(self, stream: bytes) -> tuple[CpuState, ...]:
        """Return the state of every vCPU in a migration stream, by rising index.

        Args:
            stream: a whole stream as `Machine.device_state` returns it.

        Raises:
            StreamError: not a QEMU stream, truncated, of another architecture, or its sections do not end
                where its own description says.
        """
        if not stream.startswith(_MAGIC):
            raise StreamError(
                "the device state is not a QEMU migration stream of version 3",
                observed=f"it starts with {stream[:8].hex()!r}",
            )
        if not (self._description and stream.endswith(self._description)):
            start = _description_start(stream)
            self._layouts = _cpu_layouts(stream[start + _DESCRIPTION_HEADER :])
            self._description = stream[start:]
        end = len(stream) - len(self._description)
        return tuple(_cpu_state(stream, end, layout) for layout in self._layouts)


def parse_device_state(stream: bytes) -> tuple[CpuState, ...]:
    """Return the state of every vCPU in one migration stream; see `StreamReader.parse`."""
    return StreamReader().parse(stream)


def _description_start(stream: bytes) -> int:
    """Return where the description (tag, length, JSON up to the end) starts."""
    last_nul = stream.rfind(b"\0")  # JSON has none, the top byte of its length is one
    for text in range(last_nul + 1, min(last_nul + 5, len(stream))):
        start = text - _DESCRIPTION_HEADER
        if (
            start > 0
            and stream[start] == _VMDESCRIPTION
            and _BE32.unpack_from(stream, start + 1)[0] == len(stream) - text
        ):
            return start
    raise StreamError(
        "the migration stream has no description at its end",
        observed=f"{len(stream)} bytes",
        hint="it is truncated, or QEMU was told to leave the description out (suppress-vmdesc)",
    )


def _cpu_layouts(description: bytes) -> tuple[_CpuLayout, ...]:
    try:
        devices = json.loads(description)["devices"]
        layouts = [_layout(device) for device in devices if device["name"] == "cpu"]
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise StreamError(
            "the description in the migration stream cannot be read",
            observed=f"{type(error).__name__}: {error}",
        ) from error
    if not layouts:
        raise StreamError("the migration stream describes no x86 vCPU (no device called 'cpu')")
    layouts.sort(key=lambda layout: layout.instance)
    if len({layout.instance for layout in layouts}) != len(layouts):
        raise StreamError("the migration stream describes one vCPU twice")
    return tuple(layouts)


def _layout(device: Mapping[str, Any]) -> _CpuLayout:
    offsets: dict[str, list[int]] = {}
    position = 0
    for field in device["fields"]:
        size, count = _length(field)
        offsets.setdefault(field["name"], []).extend(position + size * n for n in range(count))
        _check_shape(field, size)
        position += size * count
    wanted = dict.fromkeys(_SCALARS.values(), 1) | {_FIXED: _FIXED_COUNT, _VARIABLE: _VARIABLE_COUNT}
    for name, count in wanted.items():
        if len(offsets.get(name, ())) != count:
            raise StreamError(
                f"the vCPU section has no {count} x {name}",
                observed=f"{len(offsets.get(name, ()))} of them",
                hint="this is not an x86-64 machine, or QEMU renamed the field",
            )
    return _CpuLayout(
        instance=int(device["instance_id"]),
        version=int(device["version"]),
        size=position,
        offsets={name: tuple(offsets[name]) for name in wanted},
        subsections=_subsections(device),
    )


def _length(field: Mapping[str, Any]) -> tuple[int, int]:
    size, count = field["size"], field.get("array_len", 1)
    if not (
        isinstance(size, int) and isinstance(count, int) and 0 <= size <= 1 << 24 and 0 <= count <= 1 << 16
    ):
        raise ValueError(f"field {field['name']}: size {size!r} times {count!r}")
    return size, count


def _check_shape(field: Mapping[str, Any], size: int) -> None:
    name = field["name"]
    if name == _VARIABLE:
        inner = [(part["name"], part["size"]) for part in field["struct"]["fields"]]
        if inner != [("base", 8), ("mask", 8)]:
            raise ValueError(f"{name} consists of {inner}")
    elif (name == _FIXED or name in _SCALARS.values()) and size != 8:
        raise ValueError(f"{name} has {size} bytes, not 8")


def _subsections(device: Mapping[str, Any]) -> tuple[_Subsection, ...]:
    found = []
    for entry in device.get("subsections", ()):
        size = sum(each * count for each, count in map(_length, entry["fields"]))
        found.append(
            _Subsection(entry["vmsd_name"].encode(), int(entry["version"]), size, _subsections(entry))
        )
    return tuple(found)


def _cpu_state(stream: bytes, end: int, layout: _CpuLayout) -> CpuState:
    start = _section_start(stream, end, layout)

    def values(name: str) -> list[int]:
        return [_BE64.unpack_from(stream, start + offset)[0] for offset in layout.offsets[name]]

    scalars = {attribute: values(name)[0] for attribute, name in _SCALARS.items()}
    if scalars["cr0"] >> 32 or scalars["efer"] >> 32:
        raise StreamError(
            f"the registers of vCPU {layout.instance} cannot be: the upper halves of CR0 and EFER are zero",
            observed=f"cr0={scalars['cr0']:#x} efer={scalars['efer']:#x}",
        )
    variable = tuple(
        (_BE64.unpack_from(stream, start + offset)[0], _BE64.unpack_from(stream, start + offset + 8)[0])
        for offset in layout.offsets[_VARIABLE]
    )
    return CpuState(index=layout.instance, mtrr_fixed=tuple(values(_FIXED)), mtrr_var=variable, **scalars)


def _section_start(stream: bytes, end: int, layout: _CpuLayout) -> int:
    """Find the one section of this vCPU before *end* that ends where its description says."""
    tail = bytes([len(_CPU)]) + _CPU + _BE32.pack(layout.instance) + _BE32.pack(layout.version)
    proved = []
    position = stream.find(tail, _SECTION_HEADER, end)
    while position >= 0:
        section_id = stream[position - 4 : position]
        start = position + len(tail)
        if stream[position - _SECTION_HEADER] == _SECTION_FULL and _ends_well(
            stream, end, start, layout, section_id
        ):
            proved.append(start)
        position = stream.find(tail, position + 1, end)
    if len(proved) != 1:
        raise StreamError(
            f"vCPU {layout.instance}: {len(proved)} sections of the stream fit its description, not one",
            hint="the stream is damaged, or this QEMU writes a layout its description does not tell",
        )
    return proved[0]


def _ends_well(stream: bytes, end: int, start: int, layout: _CpuLayout, section_id: bytes) -> bool:
    footer = bytes([_FOOTER]) + section_id
    at = _skip_subsections(stream, start + layout.size, layout.subsections)
    return at is not None and at + len(footer) <= end and stream.startswith(footer, at)


def _skip_subsections(stream: bytes, position: int, expected: tuple[_Subsection, ...]) -> int | None:
    at: int | None = position
    for entry in expected:
        if at is None:
            return None
        header = bytes([_SUBSECTION, len(entry.name)]) + entry.name + _BE32.pack(entry.version)
        if not stream.startswith(header, at):
            return None
        at = _skip_subsections(stream, at + len(header) + entry.size, entry.children)
    return at
