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
from functools import lru_cache
from struct import Struct
from typing import Any

from harness.oracle.cpu import CpuState
from harness.oracle.errors import StreamError

_MAGIC = b"QEVM\x00\x00\x00\x03"
_SECTION_FULL = 0x04
_SUBSECTION = 0x05
_VMDESCRIPTION = 0x06
_FOOTER = 0x7E
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


def parse_device_state(stream: bytes) -> tuple[CpuState, ...]:
    """Return the state of every vCPU in a migration stream, by rising index.

    Args:
        stream: a whole stream as `Machine.device_state` returns it.

    Raises:
        StreamError: not a QEMU stream, truncated, of another architecture, or its sections do not end where
            its own description says.
    """
    if not stream.startswith(_MAGIC):
        raise StreamError(
            "the device state is not a QEMU migration stream of version 3",
            observed=f"it starts with {stream[:8].hex()!r}",
        )
    body, description = _split(stream)
    layouts = _cpu_layouts(description)
    return tuple(_cpu_state(body, layout) for layout in layouts)


def _split(stream: bytes) -> tuple[bytes, bytes]:
    """Return what precedes the description, and the description (tag, length, JSON up to the end)."""
    last_nul = stream.rfind(b"\0")  # JSON has none, the top byte of its length is one
    for start in range(last_nul + 1, min(last_nul + 5, len(stream))):
        if (
            start > 5
            and stream[start - 5] == _VMDESCRIPTION
            and _BE32.unpack_from(stream, start - 4)[0] == len(stream) - start
        ):
            return stream[: start - 5], stream[start:]
    raise StreamError(
        "the migration stream has no description at its end",
        observed=f"{len(stream)} bytes",
        hint="it is truncated, or QEMU was told to leave the description out (suppress-vmdesc)",
    )


@lru_cache(maxsize=8)  # the same machine describes itself in the same words at every capture
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


def _cpu_state(body: bytes, layout: _CpuLayout) -> CpuState:
    start = _section_start(body, layout)

    def values(name: str) -> list[int]:
        return [_BE64.unpack_from(body, start + offset)[0] for offset in layout.offsets[name]]

    scalars = {attribute: values(name)[0] for attribute, name in _SCALARS.items()}
    if scalars["cr0"] >> 32 or scalars["efer"] >> 32:
        raise StreamError(
            f"the registers of vCPU {layout.instance} cannot be: the upper halves of CR0 and EFER are zero",
            observed=f"cr0={scalars['cr0']:#x} efer={scalars['efer']:#x}",
        )
    variable = tuple(
        (_BE64.unpack_from(body, start + offset)[0], _BE64.unpack_from(body, start + offset + 8)[0])
        for offset in layout.offsets[_VARIABLE]
    )
    return CpuState(index=layout.instance, mtrr_fixed=tuple(values(_FIXED)), mtrr_var=variable, **scalars)


def _section_start(body: bytes, layout: _CpuLayout) -> int:
    """Find the one section of this vCPU that ends where its description says."""
    tail = bytes([len(_CPU)]) + _CPU + _BE32.pack(layout.instance) + _BE32.pack(layout.version)
    proved = []
    position = body.find(tail, 5)
    while position >= 0:
        section_id = body[position - 4 : position]
        start = position + len(tail)
        if body[position - 5] == _SECTION_FULL and _ends_well(body, start, layout, section_id):
            proved.append(start)
        position = body.find(tail, position + 1)
    if len(proved) != 1:
        raise StreamError(
            f"vCPU {layout.instance}: {len(proved)} sections of the stream fit its description, not one",
            hint="the stream is damaged, or this QEMU writes a layout its description does not tell",
        )
    return proved[0]


def _ends_well(body: bytes, start: int, layout: _CpuLayout, section_id: bytes) -> bool:
    end = _skip_subsections(body, start + layout.size, layout.subsections)
    return end is not None and body[end : end + 5] == bytes([_FOOTER]) + section_id


def _skip_subsections(body: bytes, position: int, expected: tuple[_Subsection, ...]) -> int | None:
    end: int | None = position
    for entry in expected:
        if end is None:
            return None
        header = bytes([_SUBSECTION, len(entry.name)]) + entry.name + _BE32.pack(entry.version)
        if body[end : end + len(header)] != header:
            return None
        end = _skip_subsections(body, end + len(header) + entry.size, entry.children)
    return end
