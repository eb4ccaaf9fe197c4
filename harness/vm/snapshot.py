# SPDX-License-Identifier: MIT
"""A machine at rest, as three files: its RAM, the state of its devices, and what they belong to.

``ram`` holds the pages that are not all zero, one extent behind the other; ``state`` is a qcow2 image for
`harness.vm.capture.load_state`; ``snapshot.json`` says where each extent goes, what the machine was made of,
and the checksum of the RAM, which is compared every time a machine starts from it.
"""

import contextlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from harness.errors import HarnessError, exhaustion
from harness.images.store import write_json
from harness.vm.ram import GuestRam

#: Changes when a snapshot made by an older version of this package must not be used any more.
FORMAT: Final = 2
_RAM, _STATE, _META = "ram", "state", "snapshot.json"
#: Runs of zero bytes shorter than this are stored like anything else: fewer extents are quicker to put back.
_GRAIN: Final = 64 << 10


class SnapshotUnusable(HarnessError):
    """A snapshot is damaged, or is not one of the machine that was asked for."""


@dataclass(frozen=True)
class Extent:
    """Guest RAM that follows itself.

    Attributes:
        gpa: guest-physical address of its first byte.
        length: bytes.
        offset: where it lies in the file.
    """

    gpa: int
    length: int
    offset: int


@dataclass(frozen=True)
class Snapshot:
    """A stored machine at rest; see `open_snapshot` and `write_snapshot`.

    Attributes:
        folder: where it lies.
        extents: the RAM that is not zero, by rising address.
        checksum: of the file with the RAM, XXH3-128 in hexadecimal.
        state: the state of CPUs and devices.
        memo: what its maker wanted to remember.
    """

    folder: Path
    extents: tuple[Extent, ...]
    checksum: str
    state: bytes = field(repr=False)
    memo: Mapping[str, Any]

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM stored."""
        return sum(extent.length for extent in self.extents)

    def fill(self, ram: GuestRam) -> None:
        """Put the RAM into a machine that has not touched its own yet, and prove that it is undamaged.

        Raises:
            SnapshotUnusable: the file is not the one that was written.
        """
        if not self.extents:
            return
        with self._opened() as fd:
            stored = mmap.mmap(fd, self.ram_bytes, prot=mmap.PROT_READ)
            view = memoryview(stored)
            try:
                found = xxhash.xxh3_128(view).hexdigest()
                if found != self.checksum:
                    raise self._damaged(f"its RAM has the checksum {found}, not {self.checksum}")
                for extent in self.extents:
                    ram.load(extent.gpa, view[extent.offset : extent.offset + extent.length])
            finally:
                view.release()
                # What stopped a copy still holds the part of it: that goes with the error, which must not
                # give way to a complaint about it.
                with contextlib.suppress(BufferError):
                    stored.close()

    def rewind(self, ram: GuestRam) -> None:
        """Put the RAM back into a stopped machine that has run since.

        Whatever was touched since and is not part of the snapshot becomes untouched again.

        Raises:
            SnapshotUnusable: the file has become shorter.
        """
        for gpa, length in _outside(ram.populated(), self.extents):
            ram.forget(gpa, length)
        with self._opened() as fd:
            for extent in self.extents:
                room = ram.view(extent.gpa, extent.length)
                done = 0
                while done < extent.length:
                    count = os.preadv(fd, [room[done:]], extent.offset + done)
                    if count == 0:
                        raise self._damaged("its RAM ends early")
                    done += count

    def _opened(self) -> "_Opened":
        return _Opened(self)

    def _damaged(self, observed: str) -> SnapshotUnusable:
        return _unusable(self.folder, observed)


class _Opened:
    """The descriptor of a snapshot's RAM, its size checked: what is mapped has to be there."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._fd = -1

    def __enter__(self) -> int:
        snapshot = self._snapshot
        try:
            self._fd = os.open(snapshot.folder / _RAM, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise exhaustion(err, "opening a snapshot") or snapshot._damaged(str(err)) from err
        size = os.fstat(self._fd).st_size
        if size != snapshot.ram_bytes:
            os.close(self._fd)
            raise snapshot._damaged(f"its RAM has {size} bytes, not {snapshot.ram_bytes}")
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def write_snapshot(
    folder: Path, ram: GuestRam, state: bytes, *, facts: Mapping[str, str], memo: Mapping[str, Any]
) -> None:
    """Store a stopped machine.

    Args:
        folder: an existing one, empty.
        ram: of the machine.
        state: from `harness.vm.capture.save_state`, of the same moment.
        facts: what the machine is made of; who opens the snapshot has to name the same.
        memo: further things to remember; must fit into JSON.

    Raises:
        OSError: the disk is full, or read-only.
    """
    extents: list[Extent] = []
    digest, position = xxhash.xxh3_128(), 0
    with (folder / _RAM).open("wb", buffering=0) as file:
        for gpa, length in _not_zero(ram):
            data = ram.view(gpa, length)
            digest.update(data)
            done = 0
            while done < length:
                done += file.write(data[done:]) or 0
            extents.append(Extent(gpa, length, position))
            position += length
    (folder / _STATE).write_bytes(state)
    write_json(
        folder / _META,
        {
            "format": FORMAT,
            "facts": dict(facts),
            "checksum": digest.hexdigest(),
            "state": xxhash.xxh3_128_hexdigest(state),
            "extents": [[extent.gpa, extent.length] for extent in extents],
            "memo": dict(memo),
        },
    )


def open_snapshot(folder: Path, facts: Mapping[str, str]) -> Snapshot:
    """Return the snapshot in *folder*.

    The RAM's size is looked at here, its contents when a machine is filled with them.

    Raises:
        SnapshotUnusable: it is damaged, or was made of a machine with other *facts*.
        HostExhausted: it cannot be read for lack of something.
    """
    try:
        meta = _description(folder / _META)
        if meta["format"] != FORMAT or meta["facts"] != dict(facts):
            raise ValueError(f"it was made of another machine: {_difference(meta['facts'], facts)}")
        state = (folder / _STATE).read_bytes()
        if xxhash.xxh3_128_hexdigest(state) != meta["state"]:
            raise ValueError("the state of its devices has another checksum")
        position, extents = 0, []
        for gpa, length in meta["extents"]:
            extents.append(Extent(int(gpa), int(length), position))
            position += int(length)
        snapshot = Snapshot(folder, tuple(extents), str(meta["checksum"]), state, dict(meta["memo"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        # A host that has run out of something says nothing about the snapshot, which must not be removed.
        raise exhaustion(err, "opening a snapshot") or _unusable(
            folder, str(err) or type(err).__name__
        ) from err
    with snapshot._opened():
        return snapshot


def _description(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as err:
        raise ValueError(f"{path.name} is missing or no JSON") from err


def _unusable(folder: Path, observed: str) -> SnapshotUnusable:
    return SnapshotUnusable(
        f"the snapshot {folder.name} cannot be used",
        tried=f"starting from {folder}",
        observed=observed,
        hint="it is made again from a boot; to throw all of them away, remove that folder's parent",
    )


def _difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    return ", ".join(names) or "its format"


def _not_zero(ram: GuestRam) -> Iterator[tuple[int, int]]:
    """What was touched, less the longer runs of zeros."""
    for gpa, length in ram.populated():
        whole = length // _GRAIN * _GRAIN
        grains = ram.array(gpa, whole).view(np.uint64).reshape(-1, _GRAIN // 8)
        used = np.concatenate([grains.any(axis=1), [length > whole]])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], used, [False]]).astype(np.int8)))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            yield gpa + start * _GRAIN, min(end * _GRAIN, length) - start * _GRAIN


def _outside(touched: Sequence[tuple[int, int]], extents: Sequence[Extent]) -> Iterator[tuple[int, int]]:
    """The parts of *touched* that lie in no extent; both ascend."""
    for start, length in touched:
        position, end = start, start + length
        for extent in extents:
            if extent.gpa + extent.length <= position:
                continue
            if extent.gpa >= end:
                break
            if extent.gpa > position:
                yield position, extent.gpa - position
            position = extent.gpa + extent.length
        if position < end:
            yield position, end - position
