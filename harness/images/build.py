# SPDX-License-Identifier: MIT
"""Compiling the kernel module and the agent; the result of the same inputs is kept and has the same bytes."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BadInput, HarnessError
from harness.images.kernel import Kernel, kernel_identity
from harness.images.modcheck import check_module
from harness.images.paths import source_root
from harness.images.progress import Progress
from harness.images.run import ProgramFailed, clean_environment, need, run
from harness.images.store import Store, cache_errors
from harness.kconfig import options_on

BUILD_TIMEOUT = 600.0
"""Seconds for one build: a module takes about 2, 20 on a loaded machine."""

_SCHEMA = 1
_TYPES_FLAG = "-fno-eliminate-unused-debug-types"  # the ABI's enums are used by nobody in the C code
_AGENT_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", _TYPES_FLAG)
_PRODUCTS = {".o", ".ko", ".a", ".cmd", ".d", ".mod", ".order", ".symvers", ".tmp", ".pyc"}
_EVIDENCE = 40


class BuildFailed(HarnessError):
    """The compiler or linker refused the sources; the evidence is its output (exit code 2)."""


@dataclass(frozen=True)
class ModuleBuild:
    """One built kernel module.

    Attributes:
        ko: without debug information, what is booted.
        ko_debug: the same with DWARF.
        build_id: start of the SHA-256 over everything that went in.
        log: what make and the compiler printed.
    """

    ko: Path
    ko_debug: Path
    build_id: str
    log: Path


@dataclass(frozen=True)
class AgentBuild:
    """The built agent.

    Attributes:
        binary: static and stripped, what is booted.
        debug: the same with DWARF.
    """

    binary: Path
    debug: Path


def build_module(
    kernel: Kernel, source: Path, progress: Progress, *, name: str = "iobmd", cflags: tuple[str, ...] = ()
) -> ModuleBuild:
    """Build a folder with a Kbuild or Makefile into ``name``.ko for one kernel.

    The folder is copied; nothing is written to it.  The module is compared with the kernel
    (`modcheck.check_module`) before it counts as built.

    Args:
        kernel: what it is built for.
        source: the folder.
        progress: hears of the compilation.
        name: the module's name, as its Kbuild says it.
        cflags: more flags for the compiler, kbuild's KCFLAGS.

    Raises:
        BuildFailed: the compiler or modpost refused it.
        ModuleMismatch: it is built, but the kernel would not load it.
        BadInput: no Kbuild there, or it builds no ``name``.ko.
        HostLacks: no compiler, no make, no space.
    """
    return _build(kernel, source, progress, names=(name,), label=name, cflags=cflags)[name]


def build_modules(
    kernel: Kernel, source: Path, progress: Progress, names: Iterable[str], *, cflags: tuple[str, ...] = ()
) -> dict[str, ModuleBuild]:
    """Build several modules by one make: what they share, modpost and make itself above all, is paid once.

    They are kept together, as `build_module` keeps one: a change to any of their sources builds all again.

    Args:
        kernel: what they are built for.
        source: a folder whose Kbuild builds them, in itself or in folders below it.
        progress: hears of the compilation.
        names: the modules' names.
        cflags: more flags for the compiler, kbuild's KCFLAGS.

    Raises:
        HarnessError: as `build_module` does.
    """
    return _build(kernel, source, progress, names=tuple(sorted(set(names))), label=source.name, cflags=cflags)


def _build(
    kernel: Kernel,
    source: Path,
    progress: Progress,
    *,
    names: tuple[str, ...],
    label: str,
    cflags: tuple[str, ...],
) -> dict[str, ModuleBuild]:
    if not any((source / item).is_file() for item in ("Kbuild", "Makefile")):
        raise BadInput(f"{source} has no Kbuild and no Makefile", hint="name the folder of a kernel module")
    compiler, make_flags = _kernel_compiler(kernel)
    version = _compiler_version(compiler)
    cflags = (*_debug_flags(kernel), *cflags)
    recipe = ("module", _SCHEMA, label, names, cflags, make_flags, version, kernel_identity(kernel))
    build_id = _digest(recipe, source, _sources(source))[:16]
    store = Store.default()
    what = f"{label}.ko" if names == (label,) else f"the {len(names)} modules of {label}"

    def build(folder: Path) -> None:
        work = _copied(source, folder / "work")
        flags = (_TYPES_FLAG, *_prefix_maps(kernel, work, label), *cflags)
        argv = [need("make", "make"), "-C", str(kernel.headers), f"M={work}", *make_flags, "W=1"]
        argv += [f"-j{len(os.sched_getaffinity(0))}", f"KCFLAGS={' '.join(flags)}", "modules"]
        with progress.task(f"Building {what} for {kernel.release}"):
            told = _compile(store, argv, f"building {what} for {kernel.release}", build_id, (work, source))
        (folder / "build.log").write_text(told, encoding="utf-8")
        built = {path.stem: path for path in sorted(work.rglob("*.ko"))}
        for name in names:
            _keep_module(name, built, folder)
            ko, beside = folder / f"{name}.ko", work / "Module.symvers"
            check_module(ko, kernel.release, kernel.modules, kernel.headers, beside=beside)
        shutil.rmtree(work)

    folder = store.entry("modules", f"{label}-{build_id}", progress, build)
    log = folder / "build.log"
    return {
        name: ModuleBuild(folder / f"{name}.ko", folder / f"{name}.debug.ko", build_id, log) for name in names
    }


def module_names(kernel: Kernel, source: Path) -> tuple[str, ...]:
    """Return the modules a folder's Kbuild (or Makefile, as kbuild prefers them) says it builds.

    Make itself is asked, with the kernel's configuration, so that conditions count.

    Args:
        kernel: what would be built for.
        source: the folder.

    Raises:
        BuildFailed: make cannot read it.
        BadInput: it has neither file.
        HostLacks: no make.
    """
    found = next((source / name for name in ("Kbuild", "Makefile") if (source / name).is_file()), None)
    if found is None:
        raise BadInput(f"{source} has no Kbuild and no Makefile", hint="name the folder of a kernel module")
    _, make_flags = _kernel_compiler(kernel)
    config = kernel.headers / "include/config/auto.conf"
    argv = [need("make", "make"), "--silent", "--no-print-directory", *make_flags]
    argv += ["--eval", "iobmd-names: ; @echo iobmd-names $(obj-m)"]
    argv += ["-f", str(config)] if config.is_file() else []
    argv += ["-f", str(found), f"KERNELRELEASE={kernel.release}", f"srctree={kernel.headers}"]
    argv += [f"src={source}", f"obj={source}", "iobmd-names"]
    try:
        told = run(argv, doing=f"asking {found} what it builds", timeout=60, cwd=source).stdout
    except ProgramFailed as failed:
        raise BuildFailed(
            failed.summary, tried=failed.tried, observed=failed.observed, evidence=failed.evidence
        ) from failed
    line = next((line for line in told.splitlines() if line.startswith("iobmd-names ")), "")
    names = [word.removesuffix(".o") for word in line.split()[1:] if word.endswith(".o")]
    return tuple(dict.fromkeys(names))


def build_agent(progress: Progress, source: Path | None = None) -> AgentBuild:
    """Build the agent, static, from ``guest/*.c``.

    Args:
        progress: hears of the compilation.
        source: another folder than the project's ``guest/``; ABI headers still come from ``kext_shim/``.

    Raises:
        BuildFailed: the compiler refused it.
        BadInput: there is no C file.
        HostLacks: no compiler, no static C library, no space.
    """
    folder_of_agent = source or source_root() / "guest"
    shim = source_root() / "kext_shim"
    files = sorted(folder_of_agent.glob("*.c"))
    if not files:
        raise BadInput(f"{folder_of_agent} has no C file", hint="the agent's sources belong there")
    compiler = need("gcc", "gcc")
    recipe = ("agent", _SCHEMA, _AGENT_FLAGS, _compiler_version(compiler))
    headers = sorted(shim.glob("*_abi.h"))
    key = _digest(recipe, folder_of_agent, [*_sources(folder_of_agent), *headers])[:16]
    store = Store.default()

    def build(folder: Path) -> None:
        debug = folder / "agent.debug"
        maps = [f"-ffile-prefix-map={folder_of_agent}=guest", f"-ffile-prefix-map={shim}=kext_shim"]
        argv = [compiler, *_AGENT_FLAGS, *maps, f"-I{folder_of_agent}", f"-I{shim}", "-o", str(debug)]
        argv += [str(path) for path in files]
        with progress.task("Building the agent"):
            output = _compile(store, argv, "building the agent", key)
        (folder / "build.log").write_text(output, encoding="utf-8")
        _strip(debug, folder / "agent", "--strip-all")

    folder = store.entry("agents", key, progress, build)
    return AgentBuild(folder / "agent", folder / "agent.debug")


def _kernel_compiler(kernel: Kernel) -> tuple[str, tuple[str, ...]]:
    """Return the compiler the headers ask for and what make has to be told."""
    flags = ["CONFIG_DEBUG_INFO_BTF_MODULES="]  # BTF would need pahole, and nobody reads it here
    if "CONFIG_CC_IS_CLANG" in (options_on(kernel.headers / "include/config/auto.conf") or ()):
        return need("clang", "clang"), (*flags, "LLVM=1")
    variables = kernel.headers / ".kernelvariables"
    named = re.search(r"gcc-\d+", variables.read_text(encoding="utf-8")) if variables.is_file() else None
    program = named.group(0) if named else "gcc"
    return need(program, program), tuple(flags)


def _debug_flags(kernel: Kernel) -> tuple[str, ...]:
    """Return what gives a module DWARF, which the layouts are read from, where the kernel has none itself."""
    on = options_on(kernel.headers / "include/config/auto.conf")
    return () if on is None or "CONFIG_DEBUG_INFO" in on else ("-g",)


def _compiler_version(compiler: str) -> str:
    text = run([compiler, "--version"], doing="asking the compiler's version", timeout=30).stdout
    return text.partition("\n")[0]


def _sources(folder: Path) -> list[Path]:
    """Return the files of a source folder that are no products of an earlier build."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder")
    return sorted(path for path in _walk(folder) if path.is_file())


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.suffix in _PRODUCTS or path.name.endswith(".mod.c"):
            continue
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _digest(recipe: object, base: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(repr(recipe).encode())
    for path in files:
        name = str(path.relative_to(base)) if path.is_relative_to(base) else path.name
        content = path.read_bytes()
        digest.update(f"\0{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _copied(source: Path, target: Path) -> Path:
    for path in _sources(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return target


def _prefix_maps(kernel: Kernel, work: Path, name: str) -> list[str]:
    """Keep this machine's paths out of the module: same inputs, same bytes, and short file names in a WARN.

    GCC leaves -ffile-prefix-map itself out of DW_AT_producer (gcc/opts.cc: gen_command_line_string).
    """
    headers = f"/usr/src/linux-headers-{kernel.release}"
    pairs = [(kernel.headers.parent, "/usr/src"), (kernel.headers, headers), (work, name)]
    return [f"-ffile-prefix-map={old}={new}" for old, new in pairs]  # the last that fits wins


def _compile(
    store: Store, argv: list[str], doing: str, build_id: str, copied: tuple[Path, Path] | None = None
) -> str:
    """Run a build and return its output, with file names of the copy turned into the source's."""

    def told(output: str) -> str:
        return output.replace(str(copied[0]), str(copied[1])) if copied else output

    environment = clean_environment(
        {
            "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
            "KBUILD_BUILD_USER": "iobmd",
            "KBUILD_BUILD_HOST": "iobmd",
            "SOURCE_DATE_EPOCH": "0",
        }
    )
    try:
        return told(run(argv, doing=doing, timeout=BUILD_TIMEOUT, env=environment).stdout)
    except ProgramFailed as failed:
        output = told(failed.output)
        log = store.root / "failed" / f"{build_id}.log"
        with cache_errors(log, "keeping the compiler's output"):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(output, encoding="utf-8")
        raise BuildFailed(
            failed.summary,
            tried=failed.tried,
            observed=failed.observed,
            hint=_build_hint(output, log),
            evidence=_telling_lines(output),
        ) from failed


def _build_hint(output: str, log: Path) -> str:
    if re.search(r"cannot find -l(c|pthread)\b", output):
        return "apt-get install libc6-dev (the agent needs the static C library)"
    if "libelf.so" in output or "libcrypto.so" in output:
        return "apt-get install libelf1 libssl3 (Debian's kernel build tools are linked with them)"
    if "Pod/Usage.pm" in output:
        return "apt-get install perl (W=1 runs kernel-doc, which needs more than perl-base)"
    return f"the whole output is in {log}"


def _telling_lines(output: str) -> list[str]:
    """Return the part of a build's output that says why it failed."""
    lines = output.splitlines()
    telling = re.compile(r"\b(error|undefined|warning)\b", re.IGNORECASE)
    marks = [index for index, line in enumerate(lines) if telling.search(line)]
    if not marks:
        return lines[-_EVIDENCE:]
    return lines[max(0, marks[0] - 1) : marks[-1] + 4][:_EVIDENCE]


def _keep_module(name: str, built: Mapping[str, Path], folder: Path) -> None:
    if name not in built:
        raise BadInput(
            f"the Kbuild builds no {name}.ko",
            observed=f"built: {', '.join(f'{other}.ko' for other in sorted(built)) or 'none'}",
            hint=f"write obj-m := {name}.o in it",
        )
    debug = folder / f"{name}.debug.ko"
    shutil.copyfile(built[name], debug)
    _strip(debug, folder / f"{name}.ko", "--strip-debug")


def _strip(source: Path, target: Path, how: str) -> None:
    argv = [need("strip", "binutils"), how, "-o", str(target), str(source)]
    run(argv, doing=f"stripping {source.name}", timeout=60)
