# SPDX-License-Identifier: MIT
"""Modules with one mistake each: read, built in one go, loaded into running guests."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.images import Kernel, SilentProgress, build_module, cache_root, source_root

DATA = tuple(sorted(Path(__file__).parent.glob("mutants*.toml")))
# Two hundred modules: two minutes on an idle machine, a quarter of an hour beside five other such builds.
_BUILD_TIMEOUT = 3600.0


class StaleMutant(Exception):
    """A mutant no longer fits the sources: its text occurs not once, but never or several times."""


@dataclass(frozen=True)
class Edit:
    """What is replaced in which source file."""

    file: str
    find: str
    replace: str


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake; the fields are those of mutants.toml."""

    name: str
    edits: tuple[Edit, ...]
    breaks: tuple[str, ...]
    poisons: bool = False
    memory: int = 0
    devices: tuple[str, ...] = ()
    cmdline: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """It gets a guest of its own."""
        return self.poisons or self.memory > 0 or bool(self.devices)


def load(paths: Iterable[Path] = DATA) -> tuple[Mutant, ...]:
    """Return the mutants of all files."""
    tables = [tomllib.loads(path.read_text(encoding="utf-8")) for path in paths]
    return tuple(
        Mutant(
            name,
            tuple(Edit(**edit) for edit in entry.pop("edit")),
            tuple(entry.pop("breaks")),
            **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()},
        )
        for table in tables
        for name, entry in table["mutant"].items()
    )


def mutated(mutant: Mutant, sources: Path) -> Mapping[str, str]:
    """Return the files *mutant* changes, with their new text.

    Raises:
        StaleMutant: a text to be replaced is not there exactly once.
    """
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        text = texts.get(edit.file) or (sources / edit.file).read_text(encoding="utf-8")
        count = text.count(edit.find)
        if count != 1:
            raise StaleMutant(f"{mutant.name}: {edit.file} has this {count} times: {edit.find!r}")
        texts[edit.file] = text.replace(edit.find, edit.replace)
    return texts


def build(kernel: Kernel, mutants: Sequence[Mutant]) -> Mapping[str, Path]:
    """Build all *mutants* for *kernel* in two runs of make and return their modules by name.

    Only the changed files are compiled; the others come as objects from a build of the unchanged sources, by
    kbuild's ``_shipped`` rule.  The result of the same inputs is kept in the cache.  A stale mutant is left
    out, and fails where it is asked for.
    """
    sources = source_root() / "kext_shim"
    files = sorted(path for path in sources.iterdir() if path.suffix in {".c", ".h"} or path.name == "Kbuild")
    changed: dict[str, Mapping[str, str]] = {}
    for mutant in mutants:
        with contextlib.suppress(StaleMutant):
            changed[mutant.name] = mutated(mutant, sources)
    # The unchanged module's build id stands for the kernel, its compiler and the sources.
    unchanged = build_module(kernel, sources, SilentProgress()).build_id
    key = hashlib.sha256(repr((unchanged, changed)).encode()).hexdigest()[:16]
    folder = cache_root() / "mutants" / key
    modules = {name: folder / f"{_module(number)}.ko" for number, name in enumerate(changed)}
    if all(path.is_file() for path in modules.values()):
        return modules
    work = folder.with_name(f".tmp.{key}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        _build_base(kernel, files, work / "base")
        for number, texts in enumerate(changed.values()):
            _prepare(work / _module(number), _module(number), files, texts, work / "base")
        _kbuild(work, (_module(number) for number in range(len(changed))))
        _make(kernel, work)
        ready = work / "ready"
        ready.mkdir()
        for path in modules.values():
            (work / path.stem / path.name).rename(ready / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        ready.rename(folder)  # all of them or none: an interrupted build leaves nothing that looks complete
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return modules


def _module(number: int) -> str:
    # One build refuses two modules of the same name (scripts/modules-check.sh).
    return f"iobmd_m{number:03}"


def _build_base(kernel: Kernel, files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
    _make(kernel, folder)


def _prepare(folder: Path, module: str, files: Iterable[Path], texts: Mapping[str, str], base: Path) -> None:
    folder.mkdir()
    for path in files:
        if path.name == "Kbuild":
            text = path.read_text(encoding="utf-8")
            text = text.replace("iobmd.o", f"{module}.o").replace("iobmd-y", f"{module}-y")
            (folder / path.name).write_text(text, encoding="utf-8")
        elif path.suffix == ".h" or path.name in texts:
            (folder / path.name).write_text(texts.get(path.name) or path.read_text(encoding="utf-8"))
        else:
            # modpost wants to know how each object was made.
            shutil.copyfile(base / f"{path.stem}.o", folder / f"{path.stem}.o_shipped")
            shutil.copyfile(base / f".{path.stem}.o.cmd", folder / f".{path.stem}.o.cmd")


def _kbuild(work: Path, folders: Iterable[str]) -> None:
    (work / "Kbuild").write_text(f"obj-m := {' '.join(f'{name}/' for name in folders)}\n")


def _make(kernel: Kernel, folder: Path) -> None:
    argv = ["make", "-C", str(kernel.headers), f"M={folder}", f"-j{len(os.sched_getaffinity(0))}"]
    # BTF would need pahole, and nobody reads a mutant's debug information.
    argv += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "KCFLAGS=-g0", "modules"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_BUILD_TIMEOUT, check=False)
    if done.returncode:
        raise AssertionError(f"a mutant does not compile:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
