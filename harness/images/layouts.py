# SPDX-License-Identifier: MIT
"""Structures as the compiler laid them out: pack and unpack without typing an offset twice."""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from harness.errors import BadInput
from harness.images.dwarf import read_types
from harness.images.store import read_json, write_json

Value = int | bytes | list[Any] | dict[str, Any]
"""What a field holds: an integer, the bytes of a byte array, a list, or a nested structure's fields."""

_SCHEMA = 1


@dataclass(frozen=True)
class Field:
    """One member of a structure.

    Attributes:
        offset: bytes from the start of the structure.
        size: of one element, bytes.
        count: elements; 1 for what is no array.
        signed: whether an element is a signed integer.
        shape: the array's dimensions, ``()`` for what is no array.
        struct: name of the nested structure, or ``""`` for integers.
        text: whether an element is a plain ``char``.
    """

    offset: int
    size: int
    count: int
    signed: bool
    shape: tuple[int, ...] = ()
    struct: str = ""
    text: bool = False

    @property
    def is_bytes(self) -> bool:
        """Whether the field is an array of bytes, read and written as `bytes`."""
        return bool(self.shape) and self.size == 1 and not self.struct


@dataclass(frozen=True)
class StructLayout:
    """One structure.

    Attributes:
        name: its tag.
        size: bytes, padding included.
        fields: its members by name, in order.
        nested: the layouts of structures inside it, by name.
    """

    name: str
    size: int
    fields: Mapping[str, Field]
    nested: Mapping[str, "StructLayout"]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The structure as a little-endian NumPy record; a char array is an ``S`` field."""
        names, formats, offsets = [], [], []
        for name, field in self.fields.items():
            names.append(name)
            formats.append(self._format(field))
            offsets.append(field.offset)
        spec: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": self.size}
        record: np.dtype[Any] = np.dtype(spec)
        return record

    def pack(self, **values: Value) -> bytes:
        """Return the structure's bytes; fields that are not named are zero.

        Raises:
            BadInput: no such field, a number that does not fit, too many bytes or elements, or a wrong kind.
        """
        data = bytearray(self.size)
        for name, value in values.items():
            field = self.fields.get(name)
            if field is None:
                raise BadInput(
                    f"struct {self.name} has no field {name!r}", hint="it has: " + ", ".join(self.fields)
                )
            packed = self._pack_field(name, field, value)
            data[field.offset : field.offset + len(packed)] = packed
        return bytes(data)

    def unpack(self, data: bytes | bytearray | memoryview) -> dict[str, Value]:
        """Return every field's value; arrays of bytes as `bytes` with their padding.

        Raises:
            BadInput: fewer bytes than the structure has.
        """
        if len(data) < self.size:
            raise BadInput(f"struct {self.name} takes {self.size} bytes", observed=f"{len(data)} bytes")
        view = memoryview(data)
        return {
            name: self._unpack_field(field, view[field.offset : field.offset + field.size * field.count])
            for name, field in self.fields.items()
        }

    def _format(self, field: Field) -> Any:
        if field.struct:
            element: Any = self.nested[field.struct].dtype
        elif field.text and field.shape:
            return (f"S{field.shape[-1]}", field.shape[:-1]) if len(field.shape) > 1 else f"S{field.shape[0]}"
        else:
            element = f"<{'i' if field.signed and not field.text else 'u'}{field.size}"
        return (element, field.shape) if field.shape else element

    def _pack_field(self, name: str, field: Field, value: Value) -> bytes:
        where = f"{self.name}.{name}"
        if field.is_bytes:
            if not isinstance(value, (bytes, bytearray, memoryview)):
                raise _wrong_kind(where, "bytes", value)
            if len(value) > field.count:
                raise BadInput(f"{where} takes at most {field.count} bytes", observed=f"{len(value)} bytes")
            return bytes(value)
        if not field.shape:
            return self._pack_element(where, field, value)
        flat = np.ravel(np.array(value, dtype=object)).tolist() if isinstance(value, (list, tuple)) else None
        if flat is None:
            raise _wrong_kind(where, "a list", value)
        if len(flat) > field.count:
            raise BadInput(f"{where} takes at most {field.count} elements", observed=f"{len(flat)} elements")
        return b"".join(self._pack_element(where, field, item) for item in flat)

    def _pack_element(self, where: str, field: Field, value: Value) -> bytes:
        if field.struct:
            if not isinstance(value, Mapping):
                raise _wrong_kind(where, "a mapping of fields", value)
            return self.nested[field.struct].pack(**value)
        if not isinstance(value, int):
            raise _wrong_kind(where, "an integer", value)
        try:
            return int(value).to_bytes(field.size, "little", signed=field.signed)
        except OverflowError as error:
            kind = "signed" if field.signed else "unsigned"
            raise BadInput(f"{where} is {8 * field.size} bits, {kind}", observed=f"{value:#x}") from error

    def _unpack_field(self, field: Field, data: memoryview) -> Value:
        if field.is_bytes:
            return bytes(data)
        elements: list[Any] = [
            self._unpack_element(field, data[at : at + field.size]) for at in range(0, len(data), field.size)
        ]
        if not field.shape:
            return elements[0]  # type: ignore[no-any-return]
        for dimension in reversed(field.shape[1:]):
            elements = [elements[at : at + dimension] for at in range(0, len(elements), dimension)]
        return elements

    def _unpack_element(self, field: Field, data: memoryview) -> Value:
        if field.struct:
            return self.nested[field.struct].unpack(data)
        return int.from_bytes(data, "little", signed=field.signed)


class Layouts:
    """The structures and enumerations of a built object's ABI headers."""

    def __init__(self, types: Mapping[str, Any]) -> None:
        """Take what `dwarf.read_types` returned, or the same from JSON."""
        self._enums = {name: MappingProxyType(dict(values)) for name, values in types["enums"].items()}
        self.constants: Mapping[str, int] = MappingProxyType(dict(types["constants"]))
        self._structs: dict[str, StructLayout] = {}
        for name, row in types["structs"].items():
            fields = {
                item: Field(**{**spec, "shape": tuple(spec["shape"])}) for item, spec in row["fields"].items()
            }
            self._structs[name] = StructLayout(name, row["size"], MappingProxyType(fields), self._structs)

    @classmethod
    def from_elf(cls, path: Path, declared_in: str = "*_abi.h") -> "Layouts":
        """Read the types that headers matching ``declared_in`` declare from an ELF with DWARF.

        Headers below a folder named ``include`` are the kernel's or the C library's, and left out.

        The result is kept as JSON beside the file when that folder can be written.

        Args:
            path: an executable or a relocatable object, built with ``-g``.
            declared_in: pattern of the declaring file's name; ``"*"`` takes everything.

        Raises:
            BadInput: no ELF, no DWARF, or a type that cannot be laid out in bytes (bit-fields, floats).
        """
        try:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BadInput(f"{path} cannot be read", observed=str(error)) from error
        stamp = {"schema": _SCHEMA, "sha256": digest, "declared_in": declared_in}
        cache = path.with_name(path.name + ".layouts.json")
        known = read_json(cache)
        if known is not None and known.get("stamp") == stamp:
            return cls(known["types"])
        types = read_types(path, declared_in)
        with contextlib.suppress(OSError):  # a read-only folder only costs the next reader the parsing
            write_json(cache, {"stamp": stamp, "types": types})
        return cls(types)

    @property
    def structs(self) -> tuple[str, ...]:
        """The names of all structures."""
        return tuple(self._structs)

    @property
    def enums(self) -> tuple[str, ...]:
        """The names of all enumerations that have one."""
        return tuple(self._enums)

    def struct(self, name: str) -> StructLayout:
        """Return one structure.

        Raises:
            BadInput: the object has none of that name.
        """
        if name not in self._structs:
            known = ", ".join(sorted(self._structs))
            raise BadInput(f"there is no struct {name}", hint=f"there are: {known}")
        return self._structs[name]

    def enum(self, name: str) -> Mapping[str, int]:
        """Return an enumeration's constants by name, in order.

        Raises:
            BadInput: the object has none of that name.
        """
        if name not in self._enums:
            known = ", ".join(sorted(self._enums))
            raise BadInput(f"there is no enum {name}", hint=f"there are: {known}")
        return self._enums[name]


def _wrong_kind(where: str, wanted: str, value: object) -> BadInput:
    return BadInput(f"{where} takes {wanted}", observed=f"{type(value).__name__}")
