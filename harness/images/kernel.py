# SPDX-License-Identifier: MIT
"""Kernels to boot: Debian's, unpacked into the cache, or the user's own."""

import hashlib
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.images.apt import Apt, IndexEntry, PackageRecord, records_from_json, unpack
from harness.images.bzimage import NoElfInside, kernel_release, uncompressed_elf
from harness.images.progress import Progress
from harness.images.recipes import KernelSelector, Recipe, default_recipe, find_recipe, load_recipes
from harness.images.store import Store, cache_errors, read_json, write_json
from harness.kconfig import options_on

_SCHEMA = 1
"""Raised when entries made by older code must not be used."""

_FOLLOW = r"linux-(image|headers|kbuild|modules)-"
"""The dependencies that are files of a kernel; compilers and boot loaders are the host's."""


@dataclass(frozen=True)
class Kernel:
    """One kernel with all that is needed to boot it and to build a module for it.

    Attributes:
        label: the recipe's name, or ``"custom"``.
        release: what ``uname -r`` says under it.
        vmlinuz: the kernel as it was delivered.
        boot_image: the uncompressed ELF with a PVH entry when there is one, else ``vmlinuz``.
        boot_reason: ``""``, or why ``boot_image`` is the vmlinuz.
        modules: its ``lib/modules/<release>``.
        headers: what ``make -C`` gets.
        packages: the Debian packages it was unpacked from; empty for a custom one.
    """

    label: str
    release: str
    vmlinuz: Path
    boot_image: Path
    boot_reason: str
    modules: Path
    headers: Path
    packages: tuple[PackageRecord, ...]


@dataclass(frozen=True)
class CachedKernel:
    """A kernel that is in the cache.

    Attributes:
        recipe: the recipe that points at it, or ``""`` for one that a refresh replaced.
        release: its release.
        version: Debian version of its image package.
        path: the entry's folder.
        resolved: when the recipe was resolved to it, seconds since the epoch; 0 when no recipe points at it.
    """

    recipe: str
    release: str
    version: str
    path: Path
    resolved: float


def prepare_kernel(selector: KernelSelector, progress: Progress, *, refresh: bool = False) -> Kernel:
    """Return the selected kernel, downloading and unpacking it when it is not cached.

    A cached kernel is used as it is, without the network.

    Args:
        selector: which one.
        progress: hears of long steps.
        refresh: look for a newer version of the recipe's packages first.

    Raises:
        BadInput: no such recipe, no such package in the host's sources, or files that do not belong together.
        HostLacks: no apt, no network, no space, or a cache that cannot be written.
    """
    store = Store.default()
    if selector.vmlinuz is not None and selector.modules is not None and selector.headers is not None:
        return _custom(store, selector.vmlinuz, selector.modules, selector.headers, progress)
    recipe = find_recipe(selector.recipe or default_recipe())
    if not refresh and (kernel := _cached(store, recipe)) is not None:
        return kernel
    with store.lock(f"recipe.{recipe.name}", progress):
        if not refresh and (kernel := _cached(store, recipe)) is not None:
            return kernel
        return _fetch(store, recipe, progress, force=refresh)


def cached_kernels() -> tuple[CachedKernel, ...]:
    """Return the kernels in the cache, by recipe and release; asks nobody outside."""
    store = Store.default()
    pointers = {name: store.pointer(f"recipe-{name}") or {} for name in load_recipes()}
    by_key = {str(document.get("kernel")): (name, document) for name, document in pointers.items()}
    found = []
    for entry in store.entries("kernels"):
        manifest = _manifest(entry)
        if manifest is None:
            continue
        name, document = by_key.get(entry.name, ("", {}))
        version = next((r.version for r in manifest[1] if r.name.startswith("linux-image-")), "")
        release = str(manifest[0]["release"])
        found.append(CachedKernel(name, release, version, entry, float(document.get("resolved", 0))))
    return tuple(sorted(found, key=lambda kernel: (kernel.recipe, kernel.release)))


def kernel_identity(kernel: Kernel) -> str:
    """Return a hash that changes when a module has to be built anew for this kernel."""
    digest = hashlib.sha256(repr((kernel.release, kernel.packages)).encode())
    if not kernel.packages:  # a build tree changes under the same release
        for name in ("Module.symvers", "include/config/auto.conf", "include/generated/compile.h"):
            path = kernel.headers / name
            digest.update(path.read_bytes() if path.is_file() else b"-")
    return digest.hexdigest()


def _cached(store: Store, recipe: Recipe) -> Kernel | None:
    pointer = store.pointer(f"recipe-{recipe.name}")
    return _load(store.path("kernels", str(pointer["kernel"])), recipe.name) if pointer else None


def _manifest(entry: Path) -> tuple[dict[str, Any], tuple[PackageRecord, ...]] | None:
    document = read_json(entry / "manifest.json")
    if document is None or document.get("schema") != _SCHEMA:
        return None
    return document, records_from_json(document["packages"])


def _load(entry: Path, label: str) -> Kernel | None:
    manifest = _manifest(entry)
    if manifest is None:
        return None
    document, records = manifest
    return Kernel(
        label=label,
        release=document["release"],
        vmlinuz=entry / document["vmlinuz"],
        boot_image=entry / document["boot_image"],
        boot_reason=document["boot_reason"],
        modules=entry / document["modules"],
        headers=entry / document["headers"],
        packages=records,
    )


def _fetch(store: Store, recipe: Recipe, progress: Progress, *, force: bool) -> Kernel:
    apt = Apt(store, progress)
    apt.update(force=force)
    entries = apt.closure([recipe.image_package, recipe.headers_package], _FOLLOW)
    _check_series(recipe, entries)
    records = tuple(entry.record for entry in entries)
    digest = hashlib.sha256(repr((_SCHEMA, records)).encode()).hexdigest()[:12]
    key = f"{recipe.name}-{digest}"

    def build(folder: Path) -> None:
        _unpack_all(apt, entries, folder, progress)
        write_json(folder / "manifest.json", _describe(folder, records))

    folder = store.entry("kernels", key, progress, build)
    store.set_pointer(f"recipe-{recipe.name}", {"kernel": key, "resolved": time.time()})
    kernel = _load(folder, recipe.name)
    if kernel is None:
        raise BadInput(
            f"the cached kernel {folder} has no usable manifest",
            hint=f"remove it: rm -r {folder}, and try again",
        )
    return kernel


def _check_series(recipe: Recipe, entries: tuple[IndexEntry, ...]) -> None:
    names = [entry.record.name for entry in entries]
    images = [name for name in names if re.match(r"linux-image-\d", name) and name != recipe.image_package]
    if not all(name.startswith(f"linux-image-{recipe.series}.") for name in images):
        raise BadInput(
            f"this host's package sources have another kernel than {recipe.series} for {recipe.name}",
            tried=f"looked what {recipe.image_package} depends on",
            observed=", ".join(images),
            hint="recipes name packages of Debian 12 (bookworm); elsewhere give vmlinuz, modules and headers "
            "of your own",
        )


def _unpack_all(apt: Apt, entries: tuple[IndexEntry, ...], folder: Path, progress: Progress) -> None:
    downloads = folder / "downloads"
    downloads.mkdir()
    debs = apt.download(entries, downloads)
    with progress.task("Unpacking", float(len(debs))) as task:
        for name, deb in debs.items():
            task.update(name)
            unpack(deb, folder)
            task.advance(1)
    shutil.rmtree(downloads)
    shutil.rmtree(folder / "usr/share", ignore_errors=True)  # documentation only


def _describe(folder: Path, records: tuple[PackageRecord, ...]) -> Mapping[str, Any]:
    """Make an unpacked kernel usable where it lies and return its manifest."""
    vmlinuz = _only(folder, "boot/vmlinuz-*")
    release = kernel_release(vmlinuz)
    headers = folder / "usr/src" / f"linux-headers-{release}"
    relocate_headers(headers)
    modules = folder / "lib/modules" / release
    if not modules.is_dir():  # Debian 13 and later
        modules = folder / "usr/lib/modules" / release
    for link in ("build", "source"):
        (modules / link).unlink(missing_ok=True)  # they point at the host's /usr/src
    boot_image, reason = vmlinuz, ""
    try:
        elf = uncompressed_elf(vmlinuz)
    except NoElfInside as missing:
        reason = str(missing)
    else:
        boot_image = folder / "boot" / f"vmlinux-{release}"
        boot_image.write_bytes(elf)
    return {
        "schema": _SCHEMA,
        "release": release,
        "vmlinuz": str(vmlinuz.relative_to(folder)),
        "boot_image": str(boot_image.relative_to(folder)),
        "boot_reason": reason,
        "modules": str(modules.relative_to(folder)),
        "headers": str(headers.relative_to(folder)),
        "packages": [record.as_json() for record in records],
    }


def relocate_headers(headers: Path) -> None:
    """Make Debian's headers work outside /usr/src, wherever their parent folder is moved to.

    Their Makefile includes the common headers by an absolute path; everything else is relative already.
    The ``vmlinux`` beside it carries BTF for pahole only, which a module here does without.

    Raises:
        BadInput: the Makefile is not as Debian writes it.
    """
    makefile = headers / "Makefile"
    text = makefile.read_text(encoding="utf-8") if makefile.is_file() else ""
    here = "$(dir $(lastword $(MAKEFILE_LIST)))../"
    changed, count = re.subn(r"^include /usr/src/", lambda _: f"include {here}", text, flags=re.MULTILINE)
    if count != 1 or "/usr/src/" in changed:
        raise BadInput(
            f"the headers in {headers} are not laid out as Debian's are known to be",
            tried="looked for one 'include /usr/src/...' in their Makefile",
            observed=text[:200] or "no Makefile",
            hint="give vmlinuz, modules and headers of your own",
        )
    makefile.write_text(changed, encoding="utf-8")
    (headers / "vmlinux").unlink(missing_ok=True)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise BadInput(
            f"the kernel packages hold {len(found)} files {pattern}",
            observed=", ".join(path.name for path in found) or "none",
            hint="choose another recipe, or give vmlinuz, modules and headers of your own",
        )
    return found[0]


def headers_release(headers: Path) -> str:
    """Return the release that headers or a build tree belong to.

    Raises:
        BadInput: they do not say.
    """
    generated = headers / "include/generated/utsrelease.h"  # kernel.release beside it is wrong in Debian's
    text = generated.read_text(encoding="utf-8") if generated.is_file() else ""
    match = re.search(r'UTS_RELEASE "([^"]+)"', text)
    if match is None:
        raise BadInput(
            f"{headers} are no kernel headers that modules can be built with",
            tried=f"looked for UTS_RELEASE in {generated}",
            observed="it does not say which release this is" if text else "no such file",
            hint="name a tree in which `make modules_prepare` or a whole build has run",
        )
    return match.group(1)


def _custom(store: Store, vmlinuz: Path, modules: Path, headers: Path, progress: Progress) -> Kernel:
    vmlinuz, modules, headers = (path.expanduser().absolute() for path in (vmlinuz, modules, headers))
    release = kernel_release(vmlinuz)
    nested = modules / "lib/modules" / release
    modules = nested if nested.is_dir() else modules
    if not (modules / "modules.builtin").is_file():
        raise BadInput(
            f"{modules} is no modules folder",
            tried=f"looked for {modules}/modules.builtin and {nested}",
            hint="make modules_install INSTALL_MOD_PATH=somewhere, and name somewhere/lib/modules/<release>",
        )
    told = {"modules": modules.name, "headers": headers_release(headers)}
    for what, other in told.items():
        if other != release:
            raise BadInput(
                f"the {what} belong to another kernel than the vmlinuz",
                tried=f"expected release {release}, from {vmlinuz}",
                observed=f"{other}, from {modules if what == 'modules' else headers}",
                hint="name three parts of one build",
            )
    if not (headers / "Module.symvers").is_file():
        raise BadInput(
            f"{headers} has no Module.symvers, so a module's symbols cannot be resolved",
            hint="run a whole `make` in that tree, not only `make modules_prepare`",
        )
    boot_image, reason = _custom_boot_image(store, vmlinuz, headers, progress)
    return Kernel("custom", release, vmlinuz, boot_image, reason, modules, headers, ())


def _custom_boot_image(store: Store, vmlinuz: Path, headers: Path, progress: Progress) -> tuple[Path, str]:
    if "CONFIG_KASAN" in (options_on(headers / ".config") or ()):
        # In 6.1 arch/x86/platform/pvh is instrumented as well, and runs before there is any shadow memory:
        # a triple fault without a word. 6.12 leaves it out.
        return vmlinuz, "the PVH entry of a kernel with KASAN may not work"
    with vmlinuz.open("rb") as stream:
        key = hashlib.file_digest(stream, "sha256").hexdigest()[:16]

    def build(folder: Path) -> None:
        with cache_errors(folder, "unpacking the kernel"):
            (folder / "vmlinux").write_bytes(uncompressed_elf(vmlinuz))

    try:
        return store.entry("boot", key, progress, build) / "vmlinux", ""
    except NoElfInside as missing:
        return vmlinuz, str(missing)
