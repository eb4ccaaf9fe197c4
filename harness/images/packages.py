# SPDX-License-Identifier: MIT
"""Debian packages whose files the guest uses, unpacked into the cache."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.images.apt import Apt, PackageRecord, records_from_json, unpack
from harness.images.progress import Progress
from harness.images.run import run
from harness.images.store import Store, read_json, write_json

BUSYBOX = "busybox-static"


def unpacked(
    name: str,
    packages: Sequence[str],
    follow: str,
    progress: Progress,
    complete: Callable[[Path], dict[str, Any]],
) -> tuple[Path, dict[str, Any]]:
    """Return a folder with the files of some packages, fetched the first time and used offline afterwards.

    Args:
        name: what the set is called in the cache.
        packages: Debian packages.
        follow: pattern of names: of what they depend on, what matches comes along.
        progress: hears of the download.
        complete: looks at the folder before it counts; what it returns becomes part of the manifest.

    Returns:
        The folder and its manifest.

    Raises:
        HostLacks: no network the first time, no apt, or no space.
        BadInput: the host's sources have no such package.
        HarnessError: whatever ``complete`` raises.
    """
    store = Store.default()
    if (known := _cached(store, name)) is not None:
        return known
    with store.lock(f"recipe.{name}", progress):
        if (known := _cached(store, name)) is not None:  # made by another process meanwhile
            return known
        apt = Apt(store, progress)
        apt.update()
        entries = apt.closure(packages, follow)

        def build(folder: Path) -> None:
            for deb in apt.download(entries, folder).values():
                unpack(deb, folder)
                deb.unlink()
            rows = [entry.record.as_json() for entry in entries]
            write_json(folder / "manifest.json", {"packages": rows, **complete(folder)})

        versions = "".join(entry.record.sha256 for entry in entries).encode()
        key = f"{name}-{hashlib.sha256(versions).hexdigest()[:12]}"
        folder = store.entry("packages", key, progress, build)
        store.set_pointer(f"package-{name}", {"key": key, "resolved": time.time()})
    return folder, read_json(folder / "manifest.json") or {}


def _cached(store: Store, name: str) -> tuple[Path, dict[str, Any]] | None:
    pointer = store.pointer(f"package-{name}")
    folder = store.path("packages", str(pointer["key"])) if pointer else None
    manifest = read_json(folder / "manifest.json") if folder is not None else None
    return (folder, manifest) if folder is not None and manifest is not None else None


def busybox(progress: Progress) -> tuple[Path, PackageRecord]:
    """Return Debian's static busybox out of the cache, fetching it the first time.

    Raises:
        HostLacks: no network the first time, no apt, or no space.
        BadInput: the host's sources have no such package.
    """
    folder, manifest = unpacked(BUSYBOX, [BUSYBOX], "$^", progress, _list_applets)
    return folder, records_from_json(manifest["packages"])[0]


def applets(folder: Path) -> tuple[str, ...]:
    """Return the commands that the busybox in *folder* can be."""
    manifest = read_json(folder / "manifest.json") or {}
    return tuple(name for name in manifest.get("applets", []) if name != "busybox")


def busybox_binary(folder: Path) -> Path:
    """Return the program itself, wherever this Debian puts it."""
    merged = folder / "usr/bin/busybox"
    return merged if merged.is_file() else folder / "bin/busybox"


def _list_applets(folder: Path) -> dict[str, Any]:
    listed = run([str(busybox_binary(folder)), "--list"], doing="listing busybox's applets", timeout=30)
    return {"applets": sorted(listed.stdout.split())}
