# SPDX-License-Identifier: MIT
"""The packed symbol table in a guest's memory; packed here as scripts/kallsyms.c does it."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.forensics import Symbols
from harness.forensics.kallsyms import Unreadable, symbols_in

MAP = 0xFFFF_FFFF_8000_0000
TEXT = 0xFFFF_FFFF_8100_0000
PHYS_BASE = 0x10_0000
SYMBOLS = [
    (0x1000, "A", "per_cpu_thing"),
    (TEXT, "T", "_stext"),
    (TEXT + 0x100, "t", "inner"),
    (TEXT + 0x180, "T", "outer"),
    (TEXT + 0x200, "T", "x" * 200),
    (TEXT + 0x2000, "D", "jiffies_64"),
]
NOTE = 0x9000


class Memory:
    def __init__(self, size=0x40_0000):
        self.data = bytearray(size)

    def contains(self, gpa, length=1):
        return gpa >= 0 and gpa + length <= len(self.data)

    def read(self, gpa, length):
        if not self.contains(gpa, length):
            raise BadInput("a hole")
        return bytes(self.data[gpa : gpa + length])

    def put(self, gpa, data):
        self.data[gpa : gpa + len(data)] = data


def packed(symbols, *, percpu=True, tokens=("in", "er", "_")):
    """Memory with the table of *symbols*, and what VMCOREINFO says of it."""
    spelled = [chr(n) if n < 128 else "" for n in range(256)]
    for number, token in enumerate(tokens):
        spelled[200 + number] = token
    names = b""
    for _, letter, name in symbols:
        text = letter + name
        for number, token in enumerate(tokens):
            text = letter + text[1:].replace(token, chr(200 + number))
        body = text.encode("latin-1")
        names += bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 0x7F | 0x80, len(body) >> 7])
        names += body
    relative = TEXT
    if percpu:
        offsets = [a if a < MAP else relative - 1 - a for a, _, _ in symbols]
    else:
        offsets = [a - relative for a, _, _ in symbols]
    table, index = b"", []
    for token in spelled:
        index.append(len(table))
        table += token.encode() + b"\0"
    memory, facts, at = Memory(), {"phys_base": PHYS_BASE, "_stext": TEXT}, 0x1000
    for name, data in {
        "kallsyms_num_syms": struct.pack("<I", len(symbols)),
        "kallsyms_relative_base": struct.pack("<Q", relative),
        "kallsyms_offsets": struct.pack(f"<{len(offsets)}i", *offsets),
        "kallsyms_token_table": table,
        "kallsyms_token_index": struct.pack("<256H", *index),
        "kallsyms_names": names,
    }.items():
        memory.put(at + PHYS_BASE, data)
        facts[name] = MAP + at
        at += len(data) + 64
    return memory, facts


def test_all_symbols_of_the_kernel_half():
    memory, facts = packed(SYMBOLS)
    assert list(symbols_in(memory, facts)) == SYMBOLS[1:]


def test_a_kernel_without_absolute_per_cpu_offsets():
    memory, facts = packed(SYMBOLS[1:], percpu=False)
    assert list(symbols_in(memory, facts)) == SYMBOLS[1:]


def test_names_at_the_end_of_memory():
    memory, facts = packed(SYMBOLS)
    last = facts["kallsyms_names"] - MAP + PHYS_BASE
    del memory.data[last + sum(len(name) + 3 for _, _, name in SYMBOLS) :]
    assert list(symbols_in(memory, facts)) == SYMBOLS[1:]


@pytest.mark.parametrize("missing", ["kallsyms_names", "phys_base", "_stext"])
def test_kernels_that_do_not_say_where(missing):
    memory, facts = packed(SYMBOLS)
    del facts[missing]
    with pytest.raises(Unreadable, match=missing):
        list(symbols_in(memory, facts))


@pytest.mark.parametrize("name", ["kallsyms_names", "kallsyms_offsets", "kallsyms_token_table"])
@pytest.mark.parametrize("where", [MAP - (1 << 30), MAP + (1 << 30), 0])
def test_tables_that_are_nowhere(name, where):
    memory, facts = packed(SYMBOLS)
    with pytest.raises(Unreadable):
        list(symbols_in(memory, {**facts, name: where}))


@given(st.integers(0, 0x3000), st.binary(min_size=1, max_size=64))
def test_a_damaged_table_is_a_named_failure(at, noise):
    memory, facts = packed(SYMBOLS)
    memory.put(PHYS_BASE + at, noise)
    try:
        for address, letter, name in symbols_in(memory, facts):
            assert address >= 0xFFFF_8000_0000_0000
            assert len(letter) == 1
            assert isinstance(name, str)
    except Unreadable:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "vmlinux").write_bytes(b"kernel")


def test_a_guest_that_never_answered_has_names(tmp_path):
    symbols = Symbols.known(dead_guest(tmp_path, *packed(SYMBOLS)))
    assert symbols.name(TEXT + 0x185) == "outer+0x5/0x80"
    assert symbols.slide == 0
    assert not list((tmp_path / "cache").glob("symbols/*"))  # it may have been broken


def test_what_a_healthy_guest_had_serves_a_dead_one_elsewhere(tmp_path):
    memory, facts = packed(SYMBOLS)
    healthy = dead_guest(tmp_path, memory, facts)
    healthy.read_file = lambda path: {"/proc/modules": b""}[path]  # and nothing else is asked
    healthy.image.kernel.modules = tmp_path
    assert Symbols.of(healthy).name(TEXT + 0x185) == "outer+0x5/0x80"
    dead = dead_guest(tmp_path, Memory(), {**facts, "_stext": TEXT + 0x1C00_0000})
    symbols = Symbols.known(dead)
    assert symbols.slide == 0x1C00_0000
    assert symbols.name(TEXT + 0x1C00_0101) == "inner+0x1/0x80"


def test_a_table_that_contradicts_the_kernel_is_not_believed(tmp_path):
    memory, facts = packed(SYMBOLS)
    guest = dead_guest(tmp_path, memory, {**facts, "_stext": TEXT + 0x40})
    told = f"{TEXT + 0x40:016x} T _stext\n{TEXT + 0x50:016x} T told\n{TEXT + 0x60:016x} T end\n".encode()
    guest.read_file = lambda path: {"/proc/modules": b"", "/proc/kallsyms": told}[path]
    guest.image.kernel.modules = tmp_path
    assert Symbols.of(guest).name(TEXT + 0x50) == "told+0x0/0x10"


def test_a_guest_without_a_word_in_memory_has_no_names(tmp_path):
    assert Symbols.known(dead_guest(tmp_path, Memory(), {})) is None
    memory, facts = packed(SYMBOLS[2:])
    assert Symbols.known(dead_guest(tmp_path, memory, facts)) is None


def dead_guest(folder, memory, facts):
    kinds = {"phys_base": "NUMBER(phys_base)={}"}
    said = [kinds.get(name, f"SYMBOL({name})={{:x}}").format(value) for name, value in facts.items()]
    memory.put(NOTE, "\n".join(["OSRELEASE=6.12", *said, ""]).encode())

    class Dead:
        image = SimpleNamespace(kernel=SimpleNamespace(boot_image=folder / "vmlinux"))
        hello = SimpleNamespace(boot_nonce=b"0" * 16)
        vitals = SimpleNamespace(note=NOTE)
        machine = SimpleNamespace(ram=memory)

    return Dead()
