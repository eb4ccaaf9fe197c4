# SPDX-License-Identifier: MIT
"""The cache on disk: an entry is complete or absent, and one process at a time makes it.

Layout under the root: ``<kind>/<key>/`` entries, ``<kind>/.tmp.<key>/`` being made,
``locks/<kind>.<key>`` flock files, ``pointers/<name>.json`` small documents replaced as a whole.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import FailureKind, HostExhausted, HostLacks, exhaustion
from harness.images.paths import CACHE_VARIABLE, cache_root
from harness.images.progress import Progress

LOCK_TIMEOUT = 1800.0
"""Seconds to wait for another process that makes the same entry: a kernel download on a slow line."""

_TMP = ".tmp."
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_RIGHT = {errno.EROFS, errno.EACCES, errno.EPERM}
_FSYNC_EACH_MAX = 64


class CacheUnusable(HostLacks):
    """The cache folder cannot be written: read-only, no permission, or full."""


class CacheFull(CacheUnusable, HostExhausted):
    """The cache folder cannot be written, because the disk under it is full."""

    kind = FailureKind.HOST_EXHAUSTED


@contextmanager
def cache_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError about space or rights under ``path`` into a CacheUnusable that says what to type."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise no_space(path, doing, str(error)) from error
        if error.errno in _NO_RIGHT:
            raise CacheUnusable(
                f"the cache cannot be written: {path}",
                tried=doing,
                observed=str(error),
                hint=f"make it writable, or point {CACHE_VARIABLE} at a folder that is",
            ) from error
        named = exhaustion(error, doing)
        if named is not None:
            raise named from error
        raise


def no_space(path: Path, doing: str, observed: str) -> CacheFull:
    """Describe a full disk."""
    return CacheFull(
        f"the disk under the cache is full: {path}",
        tried=doing,
        observed=observed,
        hint=f"free some space (du -sh {path}/*), or point {CACHE_VARIABLE} at a larger disk",
    )


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``document``: a reader sees the old or the new one, never half of either."""
    temporary = path.with_name(f"{_TMP}{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(document, stream, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the document, or None when it is absent or no JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


@dataclass(frozen=True)
class Store:
    """One cache folder.

    Attributes:
        root: the folder; made on first use.
        lock_timeout: seconds to wait for another process that makes the same entry.
    """

    root: Path
    lock_timeout: float = LOCK_TIMEOUT

    @classmethod
    def default(cls) -> "Store":
        """Return the store at `cache_root`."""
        return cls(cache_root())

    def path(self, kind: str, key: str) -> Path:
        """Return where the entry is or would be."""
        return self.root / kind / key

    def entries(self, kind: str) -> tuple[Path, ...]:
        """Return the complete entries of one kind, sorted by name."""
        folder = self.root / kind
        if not folder.is_dir():
            return ()
        return tuple(sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))

    def entry(self, kind: str, key: str, progress: Progress, build: Callable[[Path], None]) -> Path:
        """Return the folder of one entry, made by ``build`` if it is absent.

        ``build`` fills a temporary folder beside the final place; it is renamed there only after ``build``
        returned and the contents reached the disk.  An existing entry is used without any writing.

        Raises:
            CacheUnusable: read-only, no permission, or the disk is full.
            HostLacks: another process holds the lock for longer than the store's ``lock_timeout``.
            HarnessError: whatever ``build`` raises.
        """
        final = self.path(kind, key)
        if final.is_dir():
            return final
        doing = f"adding {kind}/{key}"
        with cache_errors(self.root, doing), self.lock(f"{kind}.{key}", progress):
            if final.is_dir():
                return final
            temporary = final.with_name(_TMP + key)
            self._sweep(kind)
            shutil.rmtree(temporary, ignore_errors=True)  # ours by the lock: its maker is dead
            temporary.mkdir(parents=True)
            try:
                build(temporary)
                _flush(temporary)
                temporary.rename(final)
                _fsync_path(final.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return final

    def pointer(self, name: str) -> dict[str, Any] | None:
        """Return a small document kept under ``name``, or None."""
        return read_json(self.root / "pointers" / f"{name}.json")

    def set_pointer(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace the small document kept under ``name``.

        Raises:
            CacheUnusable: read-only, no permission, or the disk is full.
        """
        with cache_errors(self.root, f"writing {name}"):
            folder = self.root / "pointers"
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{name}.json", document)

    @contextmanager
    def lock(self, name: str, progress: Progress) -> Iterator[None]:
        """Hold the lock ``name``; the kernel frees it when its holder dies (flock(2)).

        Raises:
            CacheUnusable: the lock file cannot be made.
            HostLacks: it stayed taken for the store's ``lock_timeout`` seconds.
        """
        path = self.root / "locks" / name
        with cache_errors(self.root, f"locking {name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _try_lock(descriptor):
                self._wait(descriptor, name, progress)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _wait(self, descriptor: int, name: str, progress: Progress) -> None:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        deadline = time.monotonic() + self.lock_timeout
        with progress.task(f"waiting for process {holder}, which is making {name}"):
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise HostLacks(
                        f"another process has been making {name} for over {self.lock_timeout:.0f} s",
                        tried=f"flock {self.root / 'locks' / name}",
                        observed=f"held by process {holder}",
                        hint=f"see what it does (ps -p {holder}), end it, and try again",
                    )
                time.sleep(0.05)  # flock has no deadline of its own

    def _sweep(self, kind: str) -> None:
        """Remove what dead processes left half-made."""
        for leftover in (self.root / kind).glob(f"{_TMP}*"):
            lock = self.root / "locks" / f"{kind}.{leftover.name.removeprefix(_TMP)}"
            try:
                descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if _try_lock(descriptor):
                    shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(folder: Path) -> None:
    """Bring a folder's contents to the disk before its name says that it is complete."""
    paths = [Path(top) / name for top, _, names in os.walk(folder) for name in names]
    if len(paths) > _FSYNC_EACH_MAX:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)  # syncfs(2): one call for 30000 header files
            if libc.syncfs(descriptor) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(folder))
        finally:
            os.close(descriptor)
        return
    for path in paths:
        if path.is_file() and not path.is_symlink():
            _fsync_path(path)
    _fsync_path(folder)
