# SPDX-License-Identifier: MIT
"""Whether a kernel will take a module, asked before anything is booted.

The kernel's own answers are "Exec format error" and "Invalid argument" (kernel/module/main.c:
check_modinfo, simplify_symbols; kernel/module/version.c: check_version).  Here the mismatch has a name.
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness.errors import BadInput
from harness.images.modules import ModuleTree, modinfo, module_bytes

_VERSION_SIZE = 64
"""sizeof(struct modversion_info): an unsigned long and a name (include/linux/module.h)."""


class ModuleMismatch(BadInput):
    """A kernel would refuse this module."""


@dataclass(frozen=True)
class ModuleFacts:
    """What a module says it needs.

    Attributes:
        vermagic: release and configuration it was built for.
        undefined: symbols it takes from the kernel or other modules; weak ones are left out.
        versions: the checksum it expects of each symbol; empty without CONFIG_MODVERSIONS.
    """

    vermagic: str
    undefined: frozenset[str]
    versions: Mapping[str, int]


def module_facts(ko: bytes) -> ModuleFacts:
    """Read a module.

    Raises:
        BadInput: this is no module.
    """
    vermagic = modinfo(ko).get("vermagic", "")
    elf = ELFFile(io.BytesIO(ko))
    undefined = set()
    table = elf.get_section_by_name(".symtab")
    if isinstance(table, SymbolTableSection):
        for symbol in table.iter_symbols():
            bound = symbol["st_info"]["bind"]
            if symbol["st_shndx"] == "SHN_UNDEF" and bound == "STB_GLOBAL" and symbol.name:
                undefined.add(symbol.name)
    section = elf.get_section_by_name("__versions")
    versions = _versions(section.data() if section is not None else b"")
    return ModuleFacts(vermagic, frozenset(undefined), versions)


def check_module(ko: Path, release: str, modules: Path, headers: Path, *, beside: Path | None = None) -> None:
    """Compare a module with the kernel it is to be loaded into.

    Args:
        ko: the module.
        release: the kernel's ``uname -r``.
        modules: the kernel's ``lib/modules/<release>``.
        headers: its headers; Module.symvers says which symbols it exports.
        beside: another Module.symvers: what modules that were built together with it export.

    Raises:
        ModuleMismatch: other release or configuration, a symbol the kernel does not export, or one whose
            checksum differs; the error names expected and observed.
    """
    facts = module_facts(module_bytes(ko))
    _check_vermagic(ko, facts, release, modules)
    exported = read_symvers(headers / "Module.symvers")
    if beside is not None and beside.is_file():
        exported |= read_symvers(beside)
    unknown = sorted(facts.undefined - exported.keys())
    if unknown:
        raise ModuleMismatch(
            f"{ko.name} uses what the kernel {release} does not export: {', '.join(unknown[:5])}",
            tried=f"looked for {len(facts.undefined)} symbols in {headers / 'Module.symvers'}",
            observed=f"{len(unknown)} not exported",
            hint="use an exported function, or a kernel that exports it; "
            "a function that drivers/ uses may still be built in only",
            evidence=unknown,
        )
    wrong = [
        f"{name}: module {crc:#010x}, kernel {exported[name]:#010x}"
        for name, crc in sorted(facts.versions.items())
        if name in exported and exported[name] != crc
    ]
    if wrong:
        raise ModuleMismatch(
            f"{ko.name} was built for other structures than those of the kernel {release}",
            tried="compared the checksums of its symbols with Module.symvers (CONFIG_MODVERSIONS)",
            observed=wrong[0],
            hint="build it again with the headers of exactly this kernel",
            evidence=wrong,
        )


def read_symvers(path: Path) -> dict[str, int]:
    """Return the checksum of every symbol a kernel exports.

    Raises:
        BadInput: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read", observed=str(error), hint="name complete kernel headers"
        ) from error
    rows = (line.split("\t", 2) for line in lines)
    return {row[1]: int(row[0], 16) for row in rows if len(row) == 3}


def _check_vermagic(ko: Path, facts: ModuleFacts, release: str, modules: Path) -> None:
    sample = ModuleTree(modules).any_module()
    expected = modinfo(module_bytes(sample)).get("vermagic", release) if sample is not None else release
    observed = facts.vermagic if sample is not None else facts.vermagic.partition(" ")[0]
    if observed.split() != expected.split():
        raise ModuleMismatch(
            f"{ko.name} was built for another kernel than {release}",
            tried=f"expected vermagic {expected!r}" + (f", as {sample.name} has it" if sample else ""),
            observed=f"vermagic {facts.vermagic!r}",
            hint="build it again with the headers of exactly this kernel",
        )


def _versions(data: bytes) -> dict[str, int]:
    found = {}
    for position in range(0, len(data) - _VERSION_SIZE + 1, _VERSION_SIZE):
        crc, name = struct.unpack_from(f"<Q{_VERSION_SIZE - 8}s", data, position)
        found[name.split(b"\0")[0].decode()] = crc & 0xFFFFFFFF
    return found
