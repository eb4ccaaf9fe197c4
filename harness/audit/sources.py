# SPDX-License-Identifier: MIT
"""What is audited: a folder that is built, a module that is built already, or one of the kernel's own."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from elftools.elf.elffile import ELFFile

from harness.errors import BadInput
from harness.images import Kernel, ModuleMismatch, Progress, build_modules, cached_kernels, check_module
from harness.images.build import module_names
from harness.images.modules import ModuleTree, canonical, modinfo, module_bytes, unsigned

_PACKED = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


class Origin(Enum):
    """Where a driver comes from; the value is how a report says it."""

    FOLDER = "built from"
    FILE = "the file"
    TREE = "the kernel's own"


@dataclass(frozen=True)
class KernelModule:
    """A module to load.

    Attributes:
        name: as the kernel writes it.
        ko: its file, packed or not.
        debug: a file of it with DWARF; None: there are no lines to be named.
    """

    name: str
    ko: Path
    debug: Path | None = None

    def read(self) -> bytes:
        """Return what is loaded; with its lines, so that a warning of the kernel's gets some as well.

        Raises:
            BadInput: its file cannot be read.
        """
        return unsigned(module_bytes(self.debug or self.ko))


@dataclass(frozen=True)
class Subject:
    """A driver that is audited on one kernel.

    Attributes:
        path: as it was typed.
        origin: what that is.
        module: the driver.
        needs: modules it needs that the kernel does not have built in, in load order.
        log: what the compiler said; None where nothing was compiled.
        folder: its sources; None where only the kernel's people have them.
    """

    path: str
    origin: Origin
    module: KernelModule
    needs: tuple[KernelModule, ...] = ()
    log: Path | None = None
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The module's name."""
        return self.module.name

    @property
    def modules(self) -> tuple[KernelModule, ...]:
        """All that is loaded, in order."""
        return (*self.needs, self.module)

    def describe(self) -> str:
        """Return where it comes from, for people."""
        if self.origin is Origin.TREE:
            return f"{self.origin.value} {self.name}"
        return f"{self.origin.value} {self.path}"


def kind_of(path: str) -> Origin:
    """Return what a path or name means, before anything is downloaded or built for it.

    Raises:
        BadInput: it is neither a folder with sources, nor a module, nor could it be a module's name.
    """
    file = Path(path)
    if file.is_dir():
        if any((file / name).is_file() for name in ("Kbuild", "Makefile")):
            return Origin.FOLDER
        raise BadInput(
            f"{path} has no Kbuild and no Makefile",
            tried="looked for the sources of a kernel module",
            hint=f"obj-m := NAME.o in {file / 'Kbuild'} says that NAME.c there is a module",
        )
    if path.endswith(_PACKED) or "/" in path or file.is_file():
        if not file.is_file():
            raise BadInput(f"there is no {path}", hint="name a folder, a .ko file or a module of the kernel")
        if not path.endswith(_PACKED):
            raise BadInput(
                f"{path} is no folder and no .ko file",
                hint=f"a driver's sources are named by their folder: {file.parent}",
            )
        return Origin.FILE
    if not re.fullmatch(r"\w+", canonical(path), re.ASCII):
        raise BadInput(f"{path!r} is no module's name", hint="name a folder, a .ko file or a module: e1000e")
    return Origin.TREE


def resolve(
    path: str, kernel: Kernel, progress: Progress, *, module: str = "", also: Sequence[str] = ()
) -> Subject:
    """Return a driver ready to be loaded into a kernel, with all that it needs.

    Args:
        path: a folder with a Kbuild or Makefile, a ``.ko`` (packed or not), or the name of a module that the
            kernel brings along.
        kernel: what it is to be loaded into.
        progress: hears of the compilation.
        module: of a folder that builds several, which one is meant.
        also: modules of the kernel's that are to be loaded before it although it does not name them.

    Raises:
        BadInput: nothing of that kind is there, it is built into the kernel, or a module it needs is missing.
        ModuleMismatch: it was built for another kernel; the error names expected and observed.
        BuildFailed: the compiler refused it.
        HostLacks: no compiler, no make, no space.
    """
    origin = kind_of(path)
    tree = ModuleTree(kernel.modules)
    log: Path | None = None
    folder: Path | None = None
    siblings: dict[str, KernelModule] = {}
    if origin is Origin.FOLDER:
        folder = Path(path).resolve()
        names, chosen = _chosen(folder, kernel, module)
        builds = build_modules(kernel, folder, progress, names)
        siblings = {
            canonical(name): KernelModule(canonical(name), one.ko, one.ko_debug)
            for name, one in builds.items()
        }
        found = siblings.pop(canonical(chosen))
        log = builds[chosen].log
    elif origin is Origin.FILE:
        file = Path(path).resolve()
        _check_file(file, kernel)
        found = KernelModule(canonical(file.name), file, file if _has_lines(file) else None)
    else:
        found = _own(path, kernel, tree)
    return Subject(path, origin, found, _needs(found, tree, siblings, also), log, folder)


def _chosen(folder: Path, kernel: Kernel, wanted: str) -> tuple[tuple[str, ...], str]:
    """Return the modules of a folder, and which of them is meant."""
    names = module_names(kernel, folder)
    if wanted:
        fitting = [name for name in names if canonical(name) == canonical(wanted)]
    else:
        same = [name for name in names if canonical(name) == canonical(folder.name)]
        fitting = same or (list(names) if len(names) == 1 else [])
    if fitting:
        return names, fitting[0]
    if not names:
        raise BadInput(
            f"{folder} builds no module itself",
            tried="asked make for obj-m",
            hint=f"write obj-m := {folder.name}.o in its Kbuild, or name the folder below it that is meant",
        )
    raise BadInput(
        f"{folder} builds no module {wanted}" if wanted else f"{folder} builds several modules",
        observed=", ".join(names),
        hint=f"say which one: --module {names[0]}",
    )


def _check_file(file: Path, kernel: Kernel) -> None:
    try:
        check_module(file, kernel.release, kernel.modules, kernel.headers)
    except ModuleMismatch as error:
        release = modinfo(module_bytes(file)).get("vermagic", "").partition(" ")[0]
        other = next((one.recipe for one in cached_kernels() if one.recipe and one.release == release), "")
        if other and release != kernel.release:
            error.hint = f"--kernel {other} is the kernel it was built for; or name its sources: a folder"
        raise


def _has_lines(file: Path) -> bool:
    # has_dwarf_info() takes .eh_frame for DWARF, which says nothing of lines.
    elf = ELFFile(io.BytesIO(file.read_bytes())) if file.suffix == ".ko" else None
    return elf is not None and elf.get_section_by_name(".debug_info") is not None


def _own(name: str, kernel: Kernel, tree: ModuleTree) -> KernelModule:
    plain = canonical(name)
    file = tree.find(plain)
    if file is not None:
        return KernelModule(plain, file)
    if plain in tree.builtin:
        raise BadInput(
            f"{name} is built into the kernel {kernel.release} and was running before anybody could watch it",
            hint=_elsewhere(plain, kernel) or "audit it on a kernel that has it as a module",
        )
    known = sorted(canonical(path.name) for path in tree.paths())
    close = difflib.get_close_matches(plain, known, n=3, cutoff=0.6)
    raise BadInput(
        f"the kernel {kernel.release} has no module {name}"
        + (f"; did you mean {' or '.join(close)}?" if close else ""),
        tried=f"looked among {len(known)} modules in {kernel.modules}",
        hint=_elsewhere(plain, kernel)
        or "debian-6.1 and debian-6.12 have every driver, the cloud kernels those of virtual machines; "
        f"a folder is named as ./{name}",
    )


def _elsewhere(plain: str, kernel: Kernel) -> str:
    """Say which of the kernels in the cache have a module that this one lacks."""
    others = (one for one in cached_kernels() if one.recipe and one.recipe != kernel.label)
    trees = {one.recipe: ModuleTree(one.path / "lib/modules" / one.release) for one in others}
    having = [recipe for recipe, tree in trees.items() if tree.find(plain) is not None]
    has = "has" if len(having) == 1 else "have"
    return f"{' and '.join(having)} {has} it as a module: --kernel {having[0]}" if having else ""


def _needs(
    found: KernelModule, tree: ModuleTree, siblings: Mapping[str, KernelModule], also: Sequence[str]
) -> tuple[KernelModule, ...]:
    """Return what has to be loaded first: the kernel's modules, then those that were built beside it."""
    beside: dict[str, KernelModule] = {}
    wanted = [canonical(name) for name in also]

    def visit(module: KernelModule) -> None:
        for name in filter(None, modinfo(module_bytes(module.ko)).get("depends", "").split(",")):
            if canonical(name) not in siblings:
                wanted.append(name)
            elif canonical(name) not in beside:
                visit(siblings[canonical(name)])
                beside[canonical(name)] = siblings[canonical(name)]

    visit(found)
    files = tree.load_order(wanted)
    return (*(KernelModule(canonical(file.name), file) for file in files), *beside.values())
