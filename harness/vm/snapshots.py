# SPDX-License-Identifier: MIT
"""Snapshots by what they were made of: any change of kernel, initramfs, QEMU or machine asks for another."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

import xxhash

from harness.images import Progress, SilentProgress
from harness.images.store import Store
from harness.vm.qemu import Qemu, cpu_argument
from harness.vm.snapshot import FORMAT, Snapshot, SnapshotUnusable, open_snapshot
from harness.vm.spec import MachineSpec
from harness.vm.workdir import appoint_heir

_KIND: Final = "snapshots"
#: Bytes all snapshots together may take before the one that was used longest ago goes.
ROOM: Final = 3 << 30
_HASHED_AT_ONCE: Final = 1 << 22


@dataclass(frozen=True)
class SnapshotStore:
    """The snapshots in the cache.

    Attributes:
        store: where they lie.
        progress: told what is rejected, and waited for.
        room: bytes they may take together.
    """

    store: Store
    progress: Progress
    room: int = ROOM

    @classmethod
    def default(cls, progress: Progress | None = None) -> Self:
        """Return those in `harness.images.cache_root`."""
        return cls(Store.default(), progress or SilentProgress())

    def held(self) -> dict[Path, int]:
        """Return the folder of every snapshot and the bytes it takes."""
        return {
            folder: sum(file.stat().st_size for file in folder.iterdir())
            for folder in self.store.entries(_KIND)
        }

    def slot(self, spec: MachineSpec, accelerator: str, qemu: Qemu) -> "Slot":
        """Return the place of the snapshot of this machine.

        Args:
            spec: the machine; its files were checked.
            accelerator: ``"kvm"`` or ``"tcg"``.
            qemu: which program.
        """
        facts = _facts(spec, accelerator, qemu)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        return Slot(self, key, facts)


@dataclass(frozen=True)
class Slot:
    """Where the snapshot of one machine is, or would be.

    Attributes:
        owner: the store.
        key: its name there.
        facts: what it is made of; the key is their hash.
    """

    owner: SnapshotStore
    key: str
    facts: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Where it is or would be."""
        return self.owner.store.path(_KIND, self.key)

    def find(self) -> Snapshot | None:
        """Return the snapshot; None when there is none, or when it was no good and is removed now."""
        if not self.folder.is_dir():
            return None
        try:
            found = open_snapshot(self.folder, self.facts)
        except SnapshotUnusable as error:
            self.reject(error.observed)
            return None
        self._touch()
        return found

    def make(self, build: Callable[[Path], None]) -> Snapshot:
        """Return the snapshot, made by *build* unless another process was quicker.

        Args:
            build: fills an empty folder with `harness.vm.snapshot.write_snapshot`.

        Raises:
            CacheUnusable: the cache is read-only or full.
            SnapshotUnusable: what was just made cannot be read.
            HarnessError: what *build* raises.
        """
        appoint_heir()  # the entry is half-made from its first moment on
        folder = self.owner.store.entry(_KIND, self.key, self.owner.progress, build)
        self._prune()
        return open_snapshot(folder, self.facts)

    def reject(self, why: str) -> None:
        """Remove the snapshot, saying why; machines that run from it are not touched by that."""
        self.owner.progress.note(f"snapshot {self.key} is thrown away: {why}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _touch(self) -> None:
        try:
            os.utime(self.folder)
        except OSError:
            return  # a read-only cache: nobody prunes it either

    def _prune(self) -> None:
        """Make room by what was used longest ago."""
        sizes = self.owner.held()
        oldest = sorted(sizes, key=lambda folder: folder.stat().st_mtime)
        total = sum(sizes.values())
        for folder in oldest:
            if total <= self.owner.room or folder == self.folder:
                break
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]


def _facts(spec: MachineSpec, accelerator: str, qemu: Qemu) -> dict[str, str]:
    machine = asdict(spec)
    for name in ("kernel", "initrd", "accel"):  # the first two by contents, the last as it was decided
        del machine[name]
    machine["cpu"] = cpu_argument(spec, accelerator)
    facts = {
        "format": str(FORMAT),
        "qemu": f"{qemu.build}, {_digest_of(qemu.path)}",
        "accelerator": accelerator,
        "kernel": _digest_of(spec.kernel),
        "initramfs": _digest_of(spec.initrd),
        "machine": json.dumps(machine, sort_keys=True),
    }
    if accelerator != "tcg":  # the guest saw this very processor
        facts["host"] = hashlib.sha256(_processor().encode()).hexdigest()
    return facts


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in lines if not line.startswith(("cpu MHz", "bogomips", "processor")))


def _digest_of(path: Path) -> str:
    looked = path.stat()
    return _digest(path, looked.st_ino, looked.st_size, looked.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, _inode: int, _size: int, _mtime: int) -> str:
    """Of the contents; remembered as long as the file looks the same."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
