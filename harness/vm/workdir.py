# SPDX-License-Identifier: MIT
"""A private folder per machine, and the removal of folders whose owner was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from harness.errors import HarnessError
from harness.images import cache_root

_PREFIX: Final = "iobmd-vm-"
_LOCK: Final = "owner.lock"
#: A folder without a lock file is either being made at this moment or was kept on purpose.
_NEWBORN_SECONDS: Final = 60.0
#: So many folders with the logs of failures are kept.
KEPT: Final = 20

#: What a killed process cannot do itself: its heir waits for the end of a pipe that nobody else holds, then
#: removes the process's private folders and, under their locks, half-made entries of the cache.
_HEIR: Final = r"""
read -r _
for folder in "$1"/iobmd-vm-"$2"-*; do
    if [ -e "$folder/owner.lock" ]; then rm -rf -- "$folder"; else rmdir -- "$folder"; fi
done
for half in "$3"/*/.tmp.*; do
    kind=${half%/.tmp.*}
    lock=$3/locks/${kind##*/}.${half##*/.tmp.}
    if [ -d "$half" ] && [ -e "$lock" ]; then flock --nonblock "$lock" rm -rf -- "$half"; fi
done
"""


def workdir_base() -> Path:
    """Where private folders go: ``$XDG_RUNTIME_DIR`` when it is usable, else the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    return Path(tempfile.gettempdir())


def appoint_heir(base: Path | None = None) -> None:
    """See to it that what this process makes from now on does not stay when it is killed; costs a fork once.

    Args:
        base: where its private folders go; `workdir_base` if None.
    """
    _HEIRS.name_one(base or workdir_base())


class Workdir:
    """A folder that belongs to one machine.

    A folder the caller names is used as it is and never removed. An own one carries a locked file as long as
    its owner lives: the lock falls with the process, however it ends, and the next machine sweeps the folder
    away.
    """

    def __init__(self, given: Path | None = None, *, base: Path | None = None) -> None:
        """Makes the folder.

        Args:
            given: use this one, creating it if needed.
            base: parent of an own one; `workdir_base` if None.
        """
        self._owned = given is None
        self._lock = -1
        if given is not None:
            given.mkdir(parents=True, exist_ok=True)
            self.path = given.resolve()
            return
        parent = base or workdir_base()
        appoint_heir(parent)
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        try:
            self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except BaseException:  # no descriptor left, or a signal: nobody else knows of it yet
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def close(self, *, keep: bool) -> None:
        """Removes an own folder, or leaves it for good; idempotent.

        Args:
            keep: leave it; it is then nobody's and no sweep takes it.
        """
        if not self._owned or self._lock < 0:
            return
        if keep:
            (self.path / _LOCK).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def owned_folders() -> tuple[Path, ...]:
    """The folders of this process's own machines that are there now; those kept for a reader are nobody's."""
    found = workdir_base().glob(f"{_PREFIX}{os.getpid()}-*")
    return tuple(path for path in found if (path / _LOCK).exists())


def sweep(base: Path) -> tuple[Path, ...]:
    """Removes the folders of machines whose owner is dead.

    Args:
        base: the parent folder.

    Returns:
        What was removed.
    """
    gone: list[Path] = []
    for path in base.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.getuid() and not path.is_symlink() and _sweep_one(path):
                gone.append(path)
    return (*gone, *_forget_old(base))


def _forget_old(base: Path) -> list[Path]:
    """Remove the oldest of the folders that were kept for a reader."""
    kept: list[tuple[float, Path]] = []
    for path in base.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            ours = path.lstat().st_uid == os.getuid() and path.is_dir() and not path.is_symlink()
            if ours and not (path / _LOCK).exists() and any(path.iterdir()):
                kept.append((path.stat().st_mtime, path))
    gone = [path for _, path in sorted(kept)[:-KEPT]]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


class _Heirs:
    """The processes that tidy up after this one; one per parent folder, from the first private folder on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: set[tuple[int, Path]] = set()

    def name_one(self, base: Path) -> None:
        """Start the heir for *base*, unless this process has it."""
        with self._lock:
            if (os.getpid(), base) in self._named:
                return
            self._named.add((os.getpid(), base))
            with contextlib.suppress(OSError, HarnessError):  # without one the next machine sweeps
                self._start(base)

    def _start(self, base: Path) -> None:
        ours, theirs = os.pipe()  # the end that is written to stays open until this process is gone
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            argv = ["sh", "-c", _HEIR, "iobmd-heir", str(base), str(os.getpid()), str(cache_root())]
            files = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in ((ours, 0), (nowhere, 1), (nowhere, 2))]
            os.posix_spawn("/bin/sh", argv, os.environ, file_actions=files, setsid=True)
        except BaseException:
            os.close(theirs)
            raise
        finally:
            os.close(ours)
            os.close(nowhere)


_HEIRS: Final = _Heirs()


def _sweep_one(path: Path) -> bool:
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        if time.time() - path.stat().st_mtime < _NEWBORN_SECONDS:
            return False
        path.rmdir()  # only an empty one: what was kept for a reader has files in it
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: the owner lives
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
    return True
