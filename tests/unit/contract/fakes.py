# SPDX-License-Identifier: MIT
"""A guest that is no guest: descriptors are Python objects, and the oracle sees what a test says."""
# ruff: noqa: N802 - the methods have Apple's names

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from harness.contract.model import Clause, Kind
from harness.iokit import Null
from harness.link import Start, StartKind
from harness.oracle import Leaf, MemoryType, PhysRange, Unmapped

PAGE = 4096


def clause(name: str) -> Clause:
    return Clause(name, name[0], Kind.DOCUMENTED, f"Promise {name}.", "a page", "a value")


class FakeBuffer:
    """As much of a descriptor as a Case needs."""

    def __init__(self, iokit: "FakeIOKit", capacity: int, address: int) -> None:
        self._iokit, self._length = iokit, capacity
        self.address = address
        self.storage = -(-capacity // PAGE) * PAGE
        self.memory = bytearray(self.storage)

    def __repr__(self) -> str:
        return f"<fake {self._length} bytes>"

    def getLength(self) -> int:
        return self._length

    def writeBytes(self, offset: int, data: bytes) -> int:
        self.memory[offset : offset + len(data)] = data
        return len(data)

    def release(self) -> None:
        if self in self._iokit.made:
            self._iokit.made.remove(self)


class FakeIOKit:
    """Factories whose buffers lie one after another; `leaks` descriptors survive every release."""

    def __init__(self) -> None:
        self.made: list[FakeBuffer] = []
        self.every: list[FakeBuffer] = []
        self.leaks = 0
        self.released = 0

    def withOptions(self, options: int, capacity: int, alignment: int = 1) -> FakeBuffer | Null:  # noqa: ARG002
        if capacity == 0:
            return Null("withOptions(0)", 22, "a capacity of 0 bytes")
        buf = FakeBuffer(self, capacity, 0xFFFF_8880_0000_0000 + 64 * PAGE * len(self.every))
        self.made.append(buf)
        self.every.append(buf)
        return buf

    def info(self) -> SimpleNamespace:
        return SimpleNamespace(live=len(self.made) + self.leaks)

    def release_all(self) -> int:
        count = len(self.made)
        self.released += count
        self.made.clear()
        return count


class FakeView:
    """Buffers lie at their kernel address without its upper half."""

    def __init__(self, iokit: FakeIOKit, kind: MemoryType, note: str = "") -> None:
        self._iokit, self._kind, self.note = iokit, kind, note
        self.cpus = (SimpleNamespace(pat=0x0407_0506_0007_0106),)

    def _buffer(self, va: int) -> FakeBuffer | None:
        return next((b for b in self._iokit.every if b.address <= va < b.address + b.storage), None)

    def leaf(self, va: int) -> Leaf:
        base = va & -PAGE
        return Leaf(
            va=base, pa=base & 0xFFFF_FFFF, size=PAGE, level=1, entry=(base & 0xFFFF_FFFF) | 3, pat_index=0,
            pat_type=self._kind, mtrr_type=MemoryType.WB, effective=self._kind, user=False, writable=True,
        )  # fmt: skip

    def walk(self, va: int, cr3: int | None = None) -> Leaf | None:  # noqa: ARG002
        return self.leaf(va) if self._buffer(va) else None

    def physical_of(self, va: int, length: int, cr3: int | None = None) -> tuple[PhysRange, ...]:  # noqa: ARG002
        if self._buffer(va) is None:
            raise Unmapped(va, 1, 0)
        return (PhysRange(va & 0xFFFF_FFFF, length),)

    def aliases(self, ranges: Any) -> tuple[Leaf, ...]:
        found = []
        for one in ranges:
            pages = range(one.start & -PAGE, one.start + one.length, PAGE)
            found += [self.leaf(0xFFFF_8880_0000_0000 + pa) for pa in pages]
        return tuple(found)

    def read(self, pa: int, n: int) -> bytes:
        buf = self._buffer(0xFFFF_8880_0000_0000 + pa)
        assert buf is not None
        at = 0xFFFF_8880_0000_0000 + pa - buf.address
        return bytes(buf.memory[at : at + n])

    def write(self, pa: int, data: bytes) -> None:
        buf = self._buffer(0xFFFF_8880_0000_0000 + pa)
        assert buf is not None
        at = 0xFFFF_8880_0000_0000 + pa - buf.address
        buf.memory[at : at + len(data)] = data

    def direct_map_anomalies(self) -> tuple[Leaf, ...]:
        return ()


class FakeOracle:
    """Counts how often somebody looked."""

    def __init__(self, iokit: FakeIOKit, kind: MemoryType = MemoryType.WB) -> None:
        self._iokit, self.kind, self.looks, self.note = iokit, kind, 0, ""

    @property
    def milliseconds(self) -> tuple[float, ...]:
        return (1.0,) * self.looks

    @contextmanager
    def frozen(self) -> Iterator[FakeView]:
        self.looks += 1
        yield FakeView(self._iokit, self.kind, self.note)


class FakeGuest:
    """The parts of a guest that a judgement's provenance and facts are read from."""

    def __init__(self) -> None:
        console = SimpleNamespace(text=lambda: "a kernel said this\n")
        self.machine = SimpleNamespace(
            spec=SimpleNamespace(
                machine="q35", cpu="max", memory_mib=512, cpus=1, devices=(), cmdline=()
            ),
            ram=SimpleNamespace(ranges=((0, 512 << 20),)),
            accelerator=SimpleNamespace(name="tcg", reason="asked for"),
            qemu_version="7.2", console=console,
        )  # fmt: skip
        self.image = SimpleNamespace(
            kernel=SimpleNamespace(label="custom"), module=SimpleNamespace(build_id="0123")
        )
        self.hello = SimpleNamespace(release="6.1.0")
        self.boot_seconds = 1.5
        self.starts = (Start(StartKind.BOOTED, 1.5),)
        self.files: dict[str, bytes] = {
            "/proc/meminfo": b"MemTotal: 4096 kB\nMemFree:  2000 kB\nMemAvailable:   1500 kB\n",
            "/proc/zoneinfo": b"Node 0, zone DMA\n  pages free     100\n        boost    0\n"
            b"  pagesets\n    cpu: 0\n              count: 23\n              high:  99\n",
        }
        self.written: list[str] = []

    def read_file(self, path: str) -> bytes:
        return self.files[path]

    def write_file(self, path: str, data: bytes) -> None:  # noqa: ARG002
        self.written.append(path)
