# SPDX-License-Identifier: MIT
"""A machine made of numpy memory: page tables and migration streams whose truth is known."""

import json
import struct
from contextlib import contextmanager

import numpy as np
import pytest

from harness.errors import BadInput
from harness.oracle.cpu import CpuState
from harness.vm import Capture

LINUX_PAT = 0x0407050600070106
PRESENT, WRITABLE, USER, PWT, PCD = 1, 2, 4, 8, 16
NX = 1 << 63
PAT_4K, PAT_LARGE, PS = 1 << 7, 1 << 12, 1 << 7


class Ram:
    """RAM with holes. Page 0 of each range is as good as any other."""

    def __init__(self, *ranges):
        self.ranges = tuple(ranges)
        self._bytes = {start: np.zeros(length, dtype=np.uint8) for start, length in ranges}

    def array(self, gpa, n):
        for start, length in self.ranges:
            if start <= gpa and gpa + n <= start + length:
                return self._bytes[start][gpa - start : gpa - start + n]
        raise BadInput(f"{gpa:#x} is not RAM")

    def read(self, gpa, n):
        return self.array(gpa, n).tobytes()

    def write(self, gpa, data):
        self.array(gpa, len(data))[:] = np.frombuffer(data, dtype=np.uint8)

    def populated(self):
        return self.ranges

    @property
    def allocated(self):
        return sum(length for _, length in self.populated())

    def u64(self, gpa):
        return int.from_bytes(self.read(gpa, 8), "little")

    def put_u64(self, gpa, value):
        self.write(gpa, value.to_bytes(8, "little"))


class Paging:
    """Writes page tables entry by entry and remembers what it mapped."""

    def __init__(self, ram, levels=4, tables_at=0x200000):
        self.ram, self.levels, self.next = ram, levels, tables_at
        self.root = self.new_table()
        self.mapped = []

    def new_table(self):
        self.next += 0x1000
        return self.next - 0x1000

    def slot(self, table, va, level):
        return table + 8 * (va >> (12 + 9 * (level - 1)) & 511)

    def table_for(self, va, level):
        """Return the table at *level* that serves *va*, making what is missing."""
        table = self.root
        for upper in range(self.levels, level, -1):
            slot = self.slot(table, va, upper)
            if not self.ram.u64(slot) & PRESENT:
                self.ram.put_u64(slot, self.new_table() | PRESENT | WRITABLE | USER)
            table = self.ram.u64(slot) & 0x000FFFFFFFFFF000
        return table

    def map(self, va, pa, level=1, flags=PRESENT | WRITABLE):
        size = 1 << (12 + 9 * (level - 1))
        assert va % size == 0
        assert pa % size == 0
        entry = pa | flags | (PS if level > 1 else 0)
        self.ram.put_u64(self.slot(self.table_for(va, level), va, level), entry)
        self.mapped.append((va, pa, size, entry))

    def map_run(self, va, pa, length, level=1, **more):
        size = 1 << (12 + 9 * (level - 1))
        for offset in range(0, length, size):
            self.map(va + offset, pa + offset, level, **more)


def cpu_state(cr3, levels=4, **changes):
    """A vCPU in 64-bit mode as Linux leaves it on q35 with SeaBIOS."""
    values = {
        "index": 0,
        "cr0": 0x80050033,
        "cr3": cr3,
        "cr4": 0x750EB0 | (1 << 12 if levels == 5 else 0),
        "efer": 0xD01,
        "pat": LINUX_PAT,
        "mtrr_def_type": 0xC06,
        "mtrr_fixed": (0x0606060606060606, 0x0606060606060606, 0, *[0x0505050505050505] * 8),
        "mtrr_var": ((0xC0000000, 0xFFC0000800), *[(0, 0)] * 7),
    }
    return CpuState(**(values | changes))


class StreamWriter:
    """Writes streams in QEMU's format, in as many layouts as QEMU could choose."""

    def __init__(self):
        self.body = b"QEVM\x00\x00\x00\x03"
        self.devices = []
        self.sections = 0

    def section(self, name, instance, version, fields, *, subsections=()):
        """fields: (name, bytes) or (name, [bytes, ...]) or (name, [bytes, ...], inner fields)."""
        number = struct.pack(">I", self.sections)
        self.sections += 1
        label = name.encode()
        header = bytes([4]) + number + bytes([len(label)]) + label + struct.pack(">II", instance, version)
        data, described = self._fields(fields)
        described_subsections = []
        for sub, sub_version, sub_fields in subsections:
            sub_data, sub_described = self._fields(sub_fields)
            data += bytes([5, len(sub)]) + sub.encode() + struct.pack(">I", sub_version) + sub_data
            described_subsections.append({"vmsd_name": sub, "version": sub_version, "fields": sub_described})
        device = {"name": name, "instance_id": instance, "version": version, "fields": described}
        if subsections:
            device["subsections"] = described_subsections
        self.devices.append(device)
        self.body += header + data + b"\x7e" + number
        return self

    def _fields(self, fields):
        data, described = b"", []
        for name, value, *inner in fields:
            values = value if isinstance(value, list) else [value]
            entry = {"name": name, "type": "struct" if inner else "uint64", "size": len(values[0])}
            if isinstance(value, list):
                entry["array_len"] = len(values)
            if inner:
                entry["struct"] = {"fields": [{"name": n, "type": "uint64", "size": s} for n, s in inner[0]]}
            data += b"".join(values)
            described.append(entry)
        return data, described

    def cpu(self, state, before=(), subsections=()):
        def be(value):
            return value.to_bytes(8, "big")

        fields = [
            *before,
            ("env.cr[0]", be(state.cr0)),
            ("env.cr[2]", be(0)),
            ("env.cr[3]", be(state.cr3)),
            ("env.cr[4]", be(state.cr4)),
            ("env.efer", be(state.efer)),
            ("env.pat", be(state.pat)),
            ("env.v_tpr", b"\0"),
            ("env.mtrr_fixed", [be(value) for value in state.mtrr_fixed]),
            ("env.mtrr_deftype", be(state.mtrr_def_type)),
            (
                "env.mtrr_var",
                [be(base) + be(mask) for base, mask in state.mtrr_var],
                [("base", 8), ("mask", 8)],
            ),
        ]
        return self.section("cpu", state.index, 12, fields, subsections=subsections)

    def bytes(self, description=None):
        text = json.dumps(description or {"page_size": 4096, "devices": self.devices}).encode()
        return self.body + b"\x00\x06" + struct.pack(">I", len(text)) + text


class Machine:
    """What the oracle needs of a machine."""

    def __init__(self, ram, cpus):
        self.ram, self.cpus = ram, cpus
        self.log = []
        self.registers = ""

    @contextmanager
    def stopped(self):
        self.log.append("stop")
        try:
            yield
        finally:
            self.log.append("continue")

    def capture(self):
        return Capture(self.device_state(), self.registers, self.registers and "as before")

    def device_state(self):
        self.log.append("capture")
        writer = StreamWriter()
        for cpu in self.cpus:
            writer.cpu(cpu)
        return writer.bytes()


class Synthetic:
    """Everything above by name, for tests that cannot import this file."""

    Ram, Paging, StreamWriter, Machine = Ram, Paging, StreamWriter, Machine
    cpu_state = staticmethod(cpu_state)


@pytest.fixture(scope="session")
def synthetic():
    return Synthetic
