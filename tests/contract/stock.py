# SPDX-License-Identifier: MIT
"""What leak and race tests share: every kind of buffer, requests in waves, a stock-taking of the guest."""

from __future__ import annotations

import os
import re
import struct
import time

from harness.iokit import IOKit, Task
from harness.iokit import constants as k
from harness.link import Nr, Out

PAGE = 4096
SECONDS = 60.0

WB_WIRED = k.kIODirectionInOut
KINDS = {
    "plain": {"factory": "IOBMD_WITH_OPTIONS", "options": WB_WIRED, "capacity": 5000, "alignment": 1},
    "aligned": {"factory": "IOBMD_WITH_OPTIONS", "options": WB_WIRED, "capacity": 100, "alignment": 256},
    "contiguous": {
        "factory": "IOBMD_WITH_OPTIONS",
        "options": WB_WIRED | k.kIOMemoryPhysicallyContiguous,
        "capacity": 4 * PAGE,
        "alignment": 4 * PAGE,
    },
    "uncached": {
        "factory": "IOBMD_WITH_OPTIONS",
        "options": WB_WIRED | k.kIOMapInhibitCache,
        "capacity": 2 * PAGE,
        "alignment": 1,
    },
    "write-combined": {
        "factory": "IOBMD_WITH_OPTIONS",
        "options": WB_WIRED | k.kIOMapWriteCombineCache,
        "capacity": PAGE,
        "alignment": 1,
    },
    "write-through": {
        "factory": "IOBMD_WITH_OPTIONS",
        "options": WB_WIRED | k.kIOMapWriteThruCache,
        "capacity": PAGE,
        "alignment": 1,
    },
    "masked": {
        "factory": "IOBMD_IN_TASK_WITH_PHYSICAL_MASK",
        "options": WB_WIRED,
        "capacity": PAGE,
        "mask": 0x0FFF_FFFF,
        "task": Task.KERNEL,
    },
    "for DMA only": {
        "factory": "IOBMD_IN_TASK_WITH_PHYSICAL_MASK",
        "options": WB_WIRED,
        "capacity": 2 * PAGE,
        "mask": 0xFFFF_FFFF,
        "task": Task.NULL,
    },
    "withCapacity": {
        "factory": "IOBMD_WITH_CAPACITY",
        "options": WB_WIRED,
        "capacity": 8192,
        "contiguous": 1,
    },
    "guarded": {
        "factory": "IOBMD_IN_TASK_WITH_GUARD_PAGES",
        "options": WB_WIRED,
        "capacity": PAGE,
        "task": Task.KERNEL,
    },
    "pageable": {
        "factory": "IOBMD_IN_TASK_WITH_OPTIONS",
        "options": WB_WIRED | k.kIOMemoryPageable,
        "capacity": 3 * PAGE,
        "alignment": 1,
        "task": Task.KERNEL,
    },
    "pageable in a process": {
        "factory": "IOBMD_IN_TASK_WITH_OPTIONS",
        "options": WB_WIRED | k.kIOMemoryPageable | k.kIOMemoryPurgeable,
        "capacity": 2 * PAGE,
        "alignment": 1,
        "task": Task.CURRENT,
    },
    "pageable, write-combined": {
        "factory": "IOBMD_IN_TASK_WITH_OPTIONS",
        "options": WB_WIRED | k.kIOMemoryPageable | k.kIOMapWriteCombineCache,
        "capacity": PAGE,
        "alignment": 1,
        "task": Task.KERNEL,
    },
    "DriverKit": {"factory": "IOBMD_DRIVERKIT_CREATE", "options": WB_WIRED, "capacity": 6000, "alignment": 0},
}


class Waves:
    """The module's ioctls on one process, many at a time."""

    def __init__(self, iokit: IOKit) -> None:
        self.process, self.layouts = iokit.process, iokit.layouts
        self.device = iokit.device
        self.commands = self.layouts.enum("iobmd_ioctl")
        self.factories = self.layouts.enum("iobmd_factory")
        self.tasks = self.layouts.enum("iobmd_task")

    def arguments(self, kind: dict) -> bytes:
        fields = {**kind, "factory": self.factories[kind["factory"]]}
        if "task" in kind:
            fields["task"] = self.tasks[kind["task"].value]
        return self.layouts.struct("iobmd_create").pack(**fields)

    def ioctls(
        self, name: str, fds: list[int], args: list[bytes], pointers: dict | None = None
    ) -> list[bytes]:
        command = self.commands[f"IOBMD_IOC_{name}"]
        sent = [
            self.process.start_ioctl(fd, command, arg, pointers) for fd, arg in zip(fds, args, strict=True)
        ]
        return [one.wait(SECONDS).arg for one in sent]

    def create(self, kinds: list[dict]) -> list[int]:
        layout = self.layouts.struct("iobmd_create")
        args = [self.arguments(kind) for kind in kinds]
        made = [layout.unpack(one) for one in self.ioctls("CREATE", [self.device] * len(args), args)]
        assert all(one["fd"] >= 0 for one in made), [one["reason"] for one in made if one["fd"] < 0]
        return [one["fd"] for one in made]

    def each(self, name: str, fds: list[int], struct_name: str, pointers: dict | None = None, **fields: int):
        layout = self.layouts.struct(struct_name)
        answers = self.ioctls(name, fds, [layout.pack(**fields)] * len(fds), pointers)
        return [layout.unpack(one) for one in answers]

    def close(self, fds: list[int]) -> None:
        sent = [self.process.link.start(Nr.CLOSE, fd) for fd in fds]
        assert all(one.wait(SECONDS).value == 0 for one in sent)


def use(waves: Waves, fds: list[int], data: bytes) -> None:
    """Write, prepare, map, complete: once through the life of a descriptor."""
    at = waves.layouts.struct("iobmd_transfer").fields["bytes"].offset
    count = len(data)
    written = waves.each("WRITE_BYTES", fds, "iobmd_transfer", {at: data}, offset=10, length=count)
    assert {one["result"] for one in written} == {count}
    assert {one["code"] for one in waves.each("PREPARE", fds, "iobmd_wiring")} == {0}
    assert all(one["address"] for one in waves.each("GET_PHYSICAL_SEGMENT", fds, "iobmd_segment"))
    mapping = {"task": waves.tasks["IOBMD_TASK_CURRENT"], "options": k.kIOMapAnywhere | k.kIOMapUnique}
    maps = waves.each("CREATE_MAPPING", fds, "iobmd_create_mapping", **mapping)
    assert all(one["fd"] >= 0 for one in maps), [one["reason"] for one in maps if one["fd"] < 0]
    assert {one["code"] for one in waves.each("COMPLETE", fds, "iobmd_wiring")} == {0}
    waves.close([one["fd"] for one in maps])


class Stock:
    """What a guest has, before and after."""

    def __init__(self, iokit: IOKit, oracle) -> None:
        self.process = iokit.process
        # Pages and slabs on the way back to the allocators (RCU, lazy vunmap, per-CPU lists) are not lost.
        self.process.write_file("/proc/sys/vm/drop_caches", b"3")
        self.process.write_file("/proc/sys/vm/compact_memory", b"1")
        # Counters are kept per CPU and summed up late (mm/vmstat.c): up to 125 pages each are still outside.
        self.process.write_file("/proc/sys/vm/stat_refresh", b"1")
        info = self.process.read_file("/proc/meminfo").decode()
        self.kib = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+) kB", info)}
        # Free all the same, on a CPU's list: thousands of pages since Linux 6.7 tunes its length.
        zones = self.process.read_file("/proc/zoneinfo").decode()
        self.kib["MemFree"] += sum(map(int, re.findall(r"^\s+count: (\d+)$", zones, re.M))) * PAGE // 1024
        self.fds = self._fds()
        self.mappings = self.process.read_file("/proc/self/maps").count(b"\n")
        # By who asked for them: the stacks of a killed process's threads go home an RCU grace period later.
        areas = self.process.read_file("/proc/vmallocinfo").splitlines()
        self.areas = sum(b"[iobmd]" in area for area in areas)
        self.live = iokit.info().live
        with oracle.frozen() as view:
            self.anomalies = view.direct_map_anomalies()

    def _fds(self) -> int:
        fd = self.process.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        count = 0
        while (result := self.process.syscall(217, fd, Out(32768), 32768, what="getdents64")).value:
            data, at = result.outputs[0], 0
            while at < result.value:
                at += struct.unpack_from("<H", data, at + 16)[0]
                count += 1
        self.process.close(fd)
        return count


def lost(before: Stock, after: Stock) -> list[str]:
    """What is missing; memory that merely moves between the kernel's own pools is allowed for."""
    rules = (
        (after.live != before.live, f"descriptors: {before.live} -> {after.live}"),
        (after.fds != before.fds, f"open files: {before.fds} -> {after.fds}"),
        (after.mappings > before.mappings, f"mappings: {before.mappings} -> {after.mappings}"),
        (after.anomalies != (), f"pages that are not write-back: {after.anomalies[:3]}"),
        (_grown(before, after, "Slab") > 1024, f"slab: {_grown(before, after, 'Slab')} KiB more"),
        (_grown(before, after, "Shmem") > 0, f"shmem: {_grown(before, after, 'Shmem')} KiB more"),
        (-_grown(before, after, "MemFree") > 4096, f"free: {-_grown(before, after, 'MemFree')} KiB less"),
        (after.areas != before.areas, f"the module's kernel mappings: {before.areas} -> {after.areas}"),
    )
    return [text for broken, text in rules if broken]


def still_lost(before: Stock, iokit: IOKit, oracle) -> list[str]:
    """What is missing for good: RCU, workers and the allocator's own lists give some of it back late."""
    deadline = time.monotonic() + SECONDS
    while (missing := lost(before, Stock(iokit, oracle))) and time.monotonic() < deadline:
        pass
    return missing


def _grown(before: Stock, after: Stock, name: str) -> int:
    return after.kib[name] - before.kib[name]
