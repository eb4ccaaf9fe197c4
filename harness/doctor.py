# SPDX-License-Identifier: MIT
"""What this host can do, what is missing, and what to type about it."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.errors import BadInput, HarnessError
from harness.images import (
    CachedKernel,
    KernelSelector,
    SilentProgress,
    cache_root,
    cached_kernels,
    default_recipe,
    load_recipes,
    prepare_guest,
    prepare_kernel,
    source_root,
)
from harness.vm import MachineSpec, SnapshotStore, choose_accelerator, find_qemu

_MIB = 1 << 20
_GIB = 1 << 30
_DISK_WANTED = 1 * _GIB
_MEMORY_WANTED = 1 * _GIB

# Program, the Debian package that has it, and its job.
_PROGRAMS = (
    ("gcc", "gcc", "builds the agent"),
    ("gcc-12", "gcc-12", "builds the module with the compiler Debian's kernels were built with"),
    ("make", "make", "drives the kernel's build system"),
    ("strip", "binutils", "takes debug information out of what is booted"),
    ("setpriv", "util-linux", "ties QEMU's life to this program's"),
    ("apt-get", "apt", "finds and downloads kernels"),
    ("dpkg-deb", "dpkg", "unpacks them into the cache"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        name: what was looked at.
        ok: it is as it should be; None when it is only worth knowing.
        text: what was found.
        hint: what to type when it is not ok.
    """

    name: str
    ok: bool | None
    text: str
    hint: str = ""


def examine() -> Iterator[Finding]:
    """Look at the host, one finding at a time; nothing is installed or downloaded.

    Where a kernel is cached and /dev/kvm opens, a guest is tried under it once and the verdict remembered.
    """
    yield _python()
    yield _guarded("QEMU", lambda: Finding("QEMU", True, find_qemu().version))
    for program, package, job in _PROGRAMS:
        where = shutil.which(program)
        yield Finding(program, where is not None, where or f"not found; {job}", f"apt-get install {package}")
    yield _libc()
    yield _guarded("sources", lambda: Finding("sources", True, str(source_root())))
    yield _cache()
    yield _memory()
    yield from _kvm()
    yield from _kernels()
    yield _guarded("snapshots", _snapshots)


def run(console: Console) -> int:
    """Print every finding and return 0, or 2 when something that `iobmd check` needs is missing."""
    missing = 0
    for finding in examine():
        mark, style = {True: ("ok", "green"), False: ("missing", "bold red"), None: ("-", "dim")}[finding.ok]
        console.print(f"[{style}]{mark:>7}[/]  {finding.name:<22} {escape(finding.text)}", soft_wrap=True)
        if finding.ok is False:
            missing += 1
            console.print(f"{'':>9}{'':<22} type: {escape(finding.hint)}", soft_wrap=True)
    if missing:
        console.print(f"\n{missing} missing; on Debian `images/bootstrap iobmd doctor` installs the programs")
        return 2
    console.print("\nready: iobmd check")
    return 0


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except HarnessError as error:
        return Finding(name, False, error.summary, error.hint)


def _python() -> Finding:
    return Finding(
        "Python",
        sys.version_info >= (3, 11),
        platform.python_version(),
        "apt-get install python3 python3-venv",
    )


def _libc() -> Finding:
    archive = next((p for p in Path("/usr/lib").glob("**/libc.a")), None)
    return Finding(
        "static libc", archive is not None, str(archive or "no libc.a; the agent is linked statically"),
        "apt-get install libc6-dev",
    )  # fmt: skip


def _cache() -> Finding:
    def look() -> Finding:
        root = cache_root()
        existing = next(p for p in (root, *root.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        text = f"{root}, {free / _GIB:.1f} GiB free"
        if not os.access(existing, os.W_OK):
            return Finding("cache", False, f"{text}, not writable", "export IOBMD_CACHE=/a/writable/folder")
        hint = "free some space, or export IOBMD_CACHE=/a/folder/on/a/larger/disk"
        return Finding("cache", free >= _DISK_WANTED, text, hint)

    return _guarded("cache", look)


def _snapshots() -> Finding:
    held = SnapshotStore.default().held()
    if not held:
        return Finding("snapshots", None, "none yet: the first guest boots and leaves one")
    taken = f"{len(held)} of guests that have booted, {sum(held.values()) / _MIB:.0f} MiB"
    return Finding("snapshots", None, f"{taken} in {next(iter(held)).parent}")


def _memory() -> Finding:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            free = int(rest.split()[0]) * 1024
            return Finding(
                "memory",
                free >= _MEMORY_WANTED,
                f"{free / _GIB:.1f} GiB available",
                "close something, or --memory 256",
            )
    return Finding("memory", None, "this kernel does not say how much is available")


def _kvm() -> Iterator[Finding]:
    device = Path("/dev/kvm")
    if not device.exists():
        yield Finding("/dev/kvm", None, "absent: guests run under QEMU's TCG")
        return
    access = "opens" if os.access(device, os.R_OK | os.W_OK) else "is there but may not be opened"
    yield Finding("/dev/kvm", None, f"{access}; only a guest that answers under it proves anything")
    if default_recipe() not in _held():
        yield Finding("accelerator", None, "not proved yet: the first `iobmd check` tries a guest under KVM")
        return
    yield _guarded("accelerator", _accelerator)


def _held() -> dict[str, CachedKernel]:
    """Return the cached kernels by recipe; none in an impossible cache, which has a line of its own."""
    try:
        return {kernel.recipe: kernel for kernel in cached_kernels()}
    except BadInput:
        return {}


def _accelerator() -> Finding:
    quiet = SilentProgress()
    image = prepare_guest(prepare_kernel(KernelSelector(recipe=default_recipe()), quiet), quiet)
    verdict = choose_accelerator(MachineSpec(kernel=image.kernel.boot_image, initrd=image.initramfs))
    return Finding("accelerator", None, f"{verdict.name}: {verdict.reason}")


def _kernels() -> Iterator[Finding]:
    cached = _held()
    for name, recipe in load_recipes().items():
        held = cached.get(name)
        state = f"cached, {held.release} ({held.version})" if held else "not cached yet"
        yield Finding(name, None, f"{state}: {recipe.description}")
