# SPDX-License-Identifier: MIT
"""A kernel's modules folder: what is built in, what depends on what, and the bytes of a module."""

import gzip
import io
import lzma
import struct
from collections.abc import Iterable
from pathlib import Path

import zstandard
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from harness.errors import BadInput

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">8xI")
"""struct module_signature (include/linux/module_signature.h): its last field is the signature's size."""


def canonical(name: str) -> str:
    """Return a module's name as the kernel writes it, from a name, a file name or a path."""
    base = name.rpartition("/")[2]
    for suffix in _SUFFIXES:
        base = base.removesuffix(suffix)
    return base.replace("-", "_")


def module_bytes(path: Path) -> bytes:
    """Return a module's ELF, unpacked when the file is packed.

    Raises:
        BadInput: it cannot be read or unpacked.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".zst":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise BadInput(f"the kernel module {path} cannot be read", observed=str(error)) from error


def unsigned(ko: bytes) -> bytes:
    """Return a module without the signature at its end (kernel/module/signing.c:mod_verify_sig).

    Raises:
        BadInput: it says that it is signed, and has no room for a signature.
    """
    if not ko.endswith(_SIGNED):
        return ko
    end = len(ko) - len(_SIGNED) - _SIGNATURE.size
    size = _SIGNATURE.unpack_from(ko, end)[0] if end >= 0 else 0
    if not 0 < size < end:
        raise BadInput("a kernel module's signature is damaged", observed=f"{size} of {len(ko)} bytes")
    return ko[: end - size]


def modinfo(ko: bytes) -> dict[str, str]:
    """Return a module's .modinfo fields (include/linux/moduleinfo.h); the first of repeated ones.

    Raises:
        BadInput: this is no module.
    """
    try:
        section = ELFFile(io.BytesIO(ko)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise BadInput("this is no kernel module", observed=str(error)) from error
    fields: dict[str, str] = {}
    for item in (section.data() if section is not None else b"").split(b"\0"):
        name, separator, value = item.decode("utf-8", "replace").partition("=")
        if separator:
            fields.setdefault(name, value)
    return fields


def _spellings(path: Path) -> tuple[Path, ...]:
    """Return the names a module can have on disk; modules.order never says that it is packed."""
    if path.suffix != ".ko":
        return (path,)
    return tuple(path.with_suffix(suffix) for suffix in _SUFFIXES)


class ModuleTree:
    """One ``lib/modules/<release>`` folder.

    Dependencies come from ``modules.dep`` when depmod has run there, else from ``modules.order`` and the
    modules themselves: Debian's packages leave depmod to their installation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.builtin = frozenset(canonical(line) for line in self._lines("modules.builtin"))
        self._listed = self._read_dep()
        names = self._listed or self._lines("modules.order")
        self._paths = {canonical(name): folder / name for name in names}

    def find(self, name: str) -> Path | None:
        """Return the file of a module, or None."""
        path = self._paths.get(canonical(name))
        if path is None:
            return None
        return next((packed for packed in _spellings(path) if packed.is_file()), None)

    def paths(self) -> tuple[Path, ...]:
        """Return the file of every module, by the name lists give it: it may lie there packed."""
        return tuple(self._paths.values())

    def any_module(self) -> Path | None:
        """Return some module of this kernel, or None when it has none."""
        return next((path for path in map(self.find, self._paths) if path is not None), None)

    def depends(self, name: str) -> tuple[str, ...]:
        """Return the names of the modules that ``name`` needs, as far as they are no built-in ones."""
        path = self.find(name)
        if path is None:
            return ()
        listed = self._listed.get(str(path.relative_to(self.folder)))
        if listed is None:
            listed = tuple(filter(None, modinfo(module_bytes(path)).get("depends", "").split(",")))
        return tuple(canonical(item) for item in listed)

    def load_order(self, wanted: Iterable[str]) -> tuple[Path, ...]:
        """Return the modules to load, needed ones before those that need them; built-in ones are left out.

        Raises:
            BadInput: the kernel has a wanted or needed module neither built in nor as a file.
        """
        order: dict[str, Path] = {}
        for name in wanted:
            self._visit(canonical(name), order, ())
        return tuple(order.values())

    def _visit(self, name: str, order: dict[str, Path], above: tuple[str, ...]) -> None:
        if name in order or name in self.builtin:
            return
        path = self.find(name)
        if path is None or name in above:
            chain = " <- ".join((name, *reversed(above)))
            problem = f"has no module {name}" if path is None else "has modules that depend in a circle"
            raise BadInput(
                f"the kernel {problem}",
                tried=f"looked in {self.folder}, modules.builtin included",
                observed=f"needed by: {chain}",
                hint="take a kernel that has it, built in or as a module; "
                "a guest's own channel needs VIRTIO_PCI and VIRTIO_CONSOLE",
            )
        for needed in self.depends(name):
            self._visit(needed, order, (*above, name))
        order[name] = path

    def _read_dep(self) -> dict[str, tuple[str, ...]]:
        rows = (line.partition(":") for line in self._lines("modules.dep"))
        return {name.strip(): tuple(reversed(needed.split())) for name, _, needed in rows}

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
