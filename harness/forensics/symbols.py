# SPDX-License-Identifier: MIT
"""Names of a guest kernel's addresses: its own symbols, and those of the modules in it."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import numpy as np
import xxhash
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from numpy.typing import NDArray

from harness.errors import BadInput, HarnessError
from harness.forensics.kallsyms import Unreadable, symbols_in
from harness.forensics.kernel_log import numbers
from harness.forensics.splat import Frame
from harness.images import SilentProgress
from harness.images.modules import ModuleTree, module_bytes
from harness.images.store import Store
from harness.link import GuestOSError, Nr, Out

if TYPE_CHECKING:
    from harness.link import Guest

_KALLSYMS: Final = "/proc/kallsyms"
_MODULES: Final = "/proc/modules"
_FIRST: Final = "_stext"
_NOTE_BYTES: Final = 4096
#: The start of the kernel half of the address space; what is below are offsets of per-CPU variables.
_KERNEL_HALF: Final = 0xFFFF_8000_0000_0000
#: The first text symbols come after some 400 per-CPU ones of 30 bytes.
_HEAD_BYTES: Final = 64 * 1024
#: How far behind the last symbol of a table an address may lie and still be called by it.
_REACH: Final = 1 << 16
_TEXT: Final = frozenset(b"tTwW")
_SHF_EXECINSTR: Final = 0x4
_FUNCTION_TYPES: Final = ("STT_FUNC", "STT_NOTYPE")
_LINE: Final = re.compile(rb"([0-9a-f]{16}) (\w) (\S+)(?:\t\[([^\]]+)\])?")


@dataclass(frozen=True)
class Table:
    """Symbols by rising address.

    Attributes:
        addresses: of each.
        text: whether each is code.
        names: of each.
    """

    addresses: NDArray[np.uint64]
    text: NDArray[np.bool_]
    names: tuple[str, ...]

    @classmethod
    def of(cls, entries: Iterable[tuple[int, bool, str]]) -> Table:
        """The table of (address, is code, name) in any order; of several names the first counts.

        One without a name ends what comes before it.
        """
        ordered = sorted(entries, key=lambda entry: (entry[0], bool(entry[2])))
        return cls(
            np.array([entry[0] for entry in ordered], dtype=np.uint64),
            np.array([entry[1] for entry in ordered], dtype=np.bool_),
            tuple(entry[2] for entry in ordered),
        )

    def find(self, address: int) -> tuple[str, int, int, bool] | None:
        """Name, offset, size and whether it is code, of the symbol an address lies in."""
        at = int(np.searchsorted(self.addresses, np.uint64(address), side="right"))
        if at == 0:
            return None
        start = int(self.addresses[at - 1])
        first = int(np.searchsorted(self.addresses, np.uint64(start), side="left"))
        first += not self.names[first]
        if first == at:
            return None
        size = int(self.addresses[at]) - start if at < len(self.addresses) else _REACH
        if address - start >= size:
            return None
        return self.names[first], address - start, size, bool(self.text[first])


@dataclass(frozen=True)
class LoadedModule:
    """A module in the guest.

    Attributes:
        name: as /proc/modules has it.
        address: of its first byte of code.
        size: bytes, all of its memory taken together.
        sections: addresses of its code sections by name, as gdb's ``add-symbol-file`` wants them.
        table: its functions; empty when its file is unknown here.
    """

    name: str
    address: int
    size: int
    sections: Mapping[str, int]
    table: Table


_NOTHING: Final = Table.of(())


class Symbols:
    """Names for the addresses of one boot of one kernel.

    Attributes:
        modules: what is loaded.
        slide: bytes the kernel was moved by, against the boot its table was read in (KASLR).
    """

    def __init__(self, kernel: Table, modules: Iterable[LoadedModule] = (), slide: int = 0) -> None:
        self._kernel = kernel
        self._index: dict[str, int] | None = None
        self.modules = tuple(modules)
        self.slide = slide

    @classmethod
    def of(cls, guest: Guest, files: Mapping[str, Path] | None = None) -> Symbols:
        """The symbols of a guest that answers.

        The kernel's own are read from its memory, or else from /proc/kallsyms, once per kernel and are cached
        on the host.  Where the kernel lies, and its modules, is asked every time that something may have
        changed; that takes some ten milliseconds.

        Args:
            guest: it must answer; for one that does not, `known`.
            files: object files of modules that are neither the image's nor the kernel's, by name.

        Raises:
            GuestFailure: it does not answer.
        """
        loaded = guest.read_file(_MODULES)
        key = (guest.hello.boot_nonce, loaded, tuple(sorted((files or {}).items())))
        with _LOCK:
            held = _OF.get(guest)
        if held is not None and held[0] == key:
            return held[1]
        if held is not None and held[0][0] == key[0]:  # the same boot, other modules
            kernel, slide, kept = held[1]._kernel, held[1].slide, held[1].modules
        else:
            kernel = _kernel_table(guest)
            slide, kept = _slide(guest, kernel), ()
        found = cls(kernel, _loaded_modules(guest, loaded, files or {}, kept), slide)
        with _LOCK:
            _OF[guest] = (key, found)
        return found

    @classmethod
    def known(cls, guest: Guest) -> Symbols | None:
        """The symbols of a guest that may be dead: nobody is asked.

        What `of` gave last for this boot; else those of the kernel alone, read from outside, so that its
        modules have no names.  None where that does not work either.
        """
        with _LOCK:
            held = _OF.get(guest)
        if held is not None and held[0][0] == guest.hello.boot_nonce:
            return held[1]
        start = _facts(guest).get(_FIRST)
        if start is None:
            return None
        try:
            kernel = _kernel_table(guest, ask=False)
        except (HarnessError, OSError, ValueError, KeyError):
            return None
        return cls(kernel, (), _slide(guest, kernel)) if _FIRST in kernel.names else None

    def frame(self, address: int, *, sure: bool = True, exact: bool = True) -> Frame:
        """A frame for an address; one of an unknown address has it as its symbol.

        Args:
            address: in the guest kernel.
            sure: as in `Frame`.
            exact: as in `Frame`.
        """
        # A call may be a function's last instruction: the kernel's %pB looks one byte before, too.
        at, past = (address, 0) if exact else (address - 1, 1)
        module, found = "", None
        inside = next((m for m in self.modules if m.address <= at < m.address + m.size), None)
        if inside is not None:
            module, found = inside.name, inside.table.find(at)
        elif at >= _KERNEL_HALF:
            found = self._kernel.find((at - self.slide) & 0xFFFF_FFFF_FFFF_FFFF)
        if found is None:
            return Frame(f"{address:#x}", module=module, sure=sure, exact=exact)
        name, offset, size, _ = found
        return Frame(name, offset + past, size, module, sure=sure, exact=exact)

    def name(self, address: int) -> str:
        """``symbol+0x12/0x40 [module]``, or the address where no symbol is near."""
        return self.frame(address).place

    def is_code(self, address: int) -> bool:
        """Whether an address lies in a function."""
        for module in self.modules:
            if module.address <= address < module.address + module.size:
                found = module.table.find(address)
                return found is not None or not len(module.table.addresses)
        found = self._kernel.find((address - self.slide) & 0xFFFF_FFFF_FFFF_FFFF)
        return found is not None and found[3]

    def address(self, symbol: str, module: str = "") -> int:
        """The address of a symbol; the first one where several have the name.

        Args:
            symbol: its name.
            module: whose; ``""`` is the kernel itself.

        Raises:
            BadInput: there is none.
        """
        if not module:
            if self._index is None:
                self._index = {name: at for at, name in reversed(tuple(enumerate(self._kernel.names)))}
            at = self._index.get(symbol)
            if at is not None:
                return (int(self._kernel.addresses[at]) + self.slide) & 0xFFFF_FFFF_FFFF_FFFF
        for loaded in self.modules:
            if loaded.name == module and symbol in loaded.table.names:
                return int(loaded.table.addresses[loaded.table.names.index(symbol)])
        raise BadInput(f"the guest has no symbol {symbol}{f' in module {module}' if module else ''}")


_LOCK: Final = threading.Lock()
_OF: WeakKeyDictionary[Guest, tuple[tuple[bytes, bytes, object], Symbols]] = WeakKeyDictionary()


def read_kallsyms(text: bytes) -> Table:
    """The kernel's own symbols in the contents of /proc/kallsyms, without per-CPU offsets and modules."""
    entries = []
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is not None and found[4] is None:
            address = int(found[1], 16)
            if address >= _KERNEL_HALF:
                entries.append((address, found[2][0] in _TEXT, found[3].decode("utf-8", "replace")))
    return Table.of(entries)


def _kernel_table(guest: Guest, *, ask: bool = True) -> Table:
    """From the cache, from the guest's memory, or with *ask* told by the guest."""
    try:
        return _cached_table(guest, guest.image.kernel.boot_image, ask=ask)
    except (HarnessError, OSError, ValueError, KeyError):  # no cache to be had: it costs time, no more
        return _fresh_table(guest, ask=ask)


def _fresh_table(guest: Guest, *, ask: bool) -> Table:
    facts = _facts(guest)
    try:
        table = Table.of(
            (address, ord(letter) in _TEXT, name)
            for address, letter, name in symbols_in(guest.machine.ram, facts)
        )
        if (facts[_FIRST], _FIRST) not in zip(table.addresses, table.names, strict=True):
            raise Unreadable(f"the kernel's own symbol table knows no {_FIRST}")
        return table
    except Unreadable:
        if not ask:
            raise
        return read_kallsyms(guest.read_file(_KALLSYMS))


def _facts(guest: Guest) -> dict[str, int]:
    """What VMCOREINFO says, read from outside; nothing where it is not known where that is."""
    if guest.vitals.note is None:
        return {}
    try:
        return numbers(guest.machine.ram.read(guest.vitals.note, _NOTE_BYTES))
    except HarnessError:
        return {}


def _cached_table(guest: Guest, kernel: Path, *, ask: bool) -> Table:
    def build(folder: Path) -> None:
        table = _fresh_table(guest, ask=ask)
        np.savez(folder / "kernel.npz", addresses=table.addresses, text=table.text)
        (folder / "names").write_text("\n".join(table.names), encoding="utf-8")

    stat = kernel.stat()
    key = _digest(kernel, stat.st_size, stat.st_mtime_ns)
    store = Store.default()
    folder = store.path("symbols", key)
    if ask:  # what a broken guest has in its memory is not kept
        folder = store.entry("symbols", key, SilentProgress(), build)
    with np.load(folder / "kernel.npz") as arrays:
        addresses, text = arrays["addresses"], arrays["text"]
    names = tuple((folder / "names").read_text(encoding="utf-8").split("\n"))
    if not len(names) == len(addresses) == len(text):
        raise ValueError(f"{folder} is damaged")
    return Table(addresses, text, names)


@lru_cache(maxsize=16)
def _digest(path: Path, _size: int, _mtime: int) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _slide(guest: Guest, kernel: Table) -> int:
    """How far this boot's kernel lies from the table's, by its first function."""
    start = _facts(guest).get(_FIRST)
    if start is not None and _FIRST in kernel.names:
        return start - int(kernel.addresses[kernel.names.index(_FIRST)])
    fd = guest.open(_KALLSYMS, os.O_RDONLY)
    head = b""
    try:
        while len(head) < _HEAD_BYTES:
            result = guest.syscall(Nr.READ, fd, Out(4096), 4096, what=f"read {_KALLSYMS}")
            if result.value <= 0:
                break
            head += result.outputs[0][: result.value]
            for found in _LINE.finditer(head):
                address, name = int(found[1], 16), found[3].decode("utf-8", "replace")
                if address >= _KERNEL_HALF and found.end() < len(head) and name in kernel.names:
                    return address - int(kernel.addresses[kernel.names.index(name)])
    finally:
        guest.close(fd)
    return 0


def _loaded_modules(
    guest: Guest, listed: bytes, files: Mapping[str, Path], kept: Iterable[LoadedModule]
) -> list[LoadedModule]:
    known = {(module.name, module.address): module for module in kept if module.sections}
    tree = ModuleTree(guest.image.kernel.modules)
    found = []
    for line in listed.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) < 6:
            continue
        name, size, address = words[0], int(words[1]), int(words[5], 16)
        if (name, address) in known:
            found.append(known[name, address])
            continue
        path = files.get(name) or (guest.image.module.ko if name == "iobmd" else tree.find(name))
        sections, table = _placed(guest, name, path)
        found.append(LoadedModule(name, address, size, sections, table))
    return found


def _placed(guest: Guest, name: str, path: Path | None) -> tuple[dict[str, int], Table]:
    """Addresses of a module's code sections and functions; nothing where its file cannot be read."""
    if path is None:
        return {}, _NOTHING
    try:
        elf = ELFFile(io.BytesIO(module_bytes(path)))
        code = {
            index: section.name
            for index, section in enumerate(elf.iter_sections())
            if section["sh_flags"] & _SHF_EXECINSTR
        }
        sections: dict[str, int] = {}
        entries: list[tuple[int, bool, str]] = []
        for index, section in code.items():
            address = _section_address(guest, name, section)
            if address:
                sections[section] = address
                entries.append((address + elf.get_section(index)["sh_size"], False, ""))
        symbols = elf.get_section_by_name(".symtab")
        if isinstance(symbols, SymbolTableSection):
            for symbol in symbols.iter_symbols():
                base = sections.get(code.get(symbol["st_shndx"], ""))
                if base is not None and symbol.name and symbol["st_info"]["type"] in _FUNCTION_TYPES:
                    entries.append((base + symbol["st_value"], True, symbol.name))
        return sections, Table.of(entries)
    except (HarnessError, OSError, ELFError) as error:
        if isinstance(error, HarnessError) and not isinstance(error, BadInput | GuestOSError):
            raise
        return {}, _NOTHING


def _section_address(guest: Guest, module: str, section: str) -> int:
    """Where a section of a module lies, or 0: those of the start are freed after it."""
    try:
        return int(guest.read_file(f"/sys/module/{module}/sections/{section}"), 16)
    except GuestOSError:
        return 0
