# SPDX-License-Identifier: MIT
"""What a machine may leave behind, counted: processes, sockets, memory files, private folders.

Nothing here trusts the harness's own books.  Every process that descends from this one carries a mark in its
environment and is found by it in ``/proc``, whoever its parent is by now.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

MARK = "IOBMD_FAULTS_MARK"
SECONDS = 1.0
"""So long after the end nothing may be left."""
_LOOK_SECONDS = 0.01


@dataclass(frozen=True)
class Census:
    """What is there at one moment; each a set of names.

    Attributes:
        processes: marked processes other than this one, and its children.
        sockets: of this process.
        memory: memory files of this process and of every marked one.
        folders: private folders of machines; not those in which the logs of a failure wait for a reader.
        temporaries: half-made entries of the cache.
    """

    processes: frozenset[str]
    sockets: frozenset[str]
    memory: frozenset[str]
    folders: frozenset[str]
    temporaries: frozenset[str]

    @classmethod
    def take(cls, folders: Path, cache: Path | None = None) -> "Census":
        """Count now.

        Args:
            folders: where private folders go, see `private_world`.
            cache: look for half-made entries in this cache as well.
        """
        marked = tuple(_marked())
        files = {pid: tuple(_files(pid)) for pid in (os.getpid(), *marked)}
        memory = (f"{pid}:{name}" for pid, names in files.items() for name in names if "/memfd:" in name)
        kinds = [kind for kind in cache.glob("*") if not kind.is_symlink()] if cache is not None else []
        found = (path for kind in kinds for path in kind.glob(".tmp.*"))  # a link leads to others' entries
        return cls(
            processes=frozenset(f"{pid} {_words(pid)}" for pid in {*marked, *_children()}),
            sockets=frozenset(name for name in files[os.getpid()] if name.startswith("socket:")),
            memory=frozenset(memory),
            folders=frozenset(path.name for path in folders.glob("iobmd-*") if not _kept(path)),
            temporaries=frozenset(f"{path.parent.name}/{path.name}" for path in found),
        )

    def beyond(self, before: "Census") -> tuple[str, ...]:
        """Return what is here and was not there before, one line each."""
        return tuple(
            f"{field.name}: {name}"
            for field in fields(self)
            for name in sorted(getattr(self, field.name) - getattr(before, field.name))
        )


def left_over(before: Census, folders: Path, cache: Path | None = None) -> tuple[str, ...]:
    """Return what is still there since *before* when `SECONDS` have passed; at once when nothing is."""
    end = time.monotonic() + SECONDS
    while True:
        found = Census.take(folders, cache).beyond(before)
        if not found or time.monotonic() >= end:
            return found
        time.sleep(_LOOK_SECONDS)  # sampling: the end of a process that is nobody's child tells nobody


@contextlib.contextmanager
def private_world(folders: Path) -> Iterator[None]:
    """Mark what is started from now on, and let private folders go to *folders*."""
    ours = {MARK: uuid.uuid4().hex, "TMPDIR": str(folders), "XDG_RUNTIME_DIR": str(folders)}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _kept(folder: Path) -> bool:
    """Whether it is nobody's, and has something in it: that is how the harness keeps logs on purpose."""
    names = {path.name for path in folder.glob("*")}
    return bool(names) and "owner.lock" not in names


def _marked() -> Iterator[int]:
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _children() -> Iterator[int]:
    """Ours, the unreaped among them, which have no environment any more."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            yield from map(int, (task / "children").read_text().split())


def _files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(entry)  # noqa: PTH115  the targets are no paths


def _words(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return words[:80] or "(ended, not reaped)"
    return "(gone)"
