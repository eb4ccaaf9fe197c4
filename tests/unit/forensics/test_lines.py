# SPDX-License-Identifier: MIT
"""Source lines, compared with what binutils' addr2line says about every byte of every function."""

from __future__ import annotations

import re
import subprocess

import pytest

from harness.errors import BadInput
from harness.forensics import Frame, LineTable, SourceLine, splats

HEADER = """\
static inline int twice(int value)
{
	return value * 2 + volatile_thing;
}

static inline __attribute__((always_inline)) void bump(int by)
{
	if (by > 3)
		volatile_thing += twice(by);
	else
		volatile_thing -= by;
}
"""
FIRST = """\
#include "include/thing.h"
#define NAME(text) static const char name[] __attribute__((used, section(".modinfo"))) = "name=" text
NAME("two-parts");
int volatile volatile_thing;
#include "thing.inc"
int elsewhere(int);

static __attribute__((noinline)) int same(int value)
{
	bump(value);
	return volatile_thing;
}

int first(int value)
{
	for (int i = 0; i < value; i++) {
		bump(i);
		if (twice(i) == 12)
			return same(i) + 1;
	}
	return elsewhere(value) + 1;
}

__attribute__((section(".init.text"), cold)) int at_start(int value)
{
	bump(value);
	return first(value) - 1;
}
"""
SECOND = """\
extern int volatile volatile_thing;
#include "thing.inc"

static __attribute__((noinline)) int same(int value)
{
	return value + volatile_thing + 99 * value * value;
}

int elsewhere(int value)
{
	if (value == 7)
		bump(same(value));
	return same(value - 1) + 3;
}
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """An object like a kernel module's: two files linked into one that can still be relocated."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "include").mkdir()
    (folder / "include/thing.h").write_text("struct thing { int x; };\n")
    (folder / "thing.inc").write_text(HEADER)
    for name, text in (("first", FIRST), ("second", SECOND)):
        (folder / f"{name}.c").write_text(text)
        flags = ["-O2", "-g", "-fno-pie", "-mcmodel=kernel", "-ffreestanding", "-fcf-protection=none"]
        subprocess.run(["gcc", *flags, "-c", f"{name}.c", "-o", f"{name}.o"], cwd=folder, check=True)
    subprocess.run(["ld", "-r", "first.o", "second.o", "-o", "two-parts.debug.ko"], cwd=folder, check=True)
    return folder / "two-parts.debug.ko"


@pytest.fixture
def functions(module):
    """Name, section, address and size of every function, as the linker's tools see them."""
    told = subprocess.run(["objdump", "-t", module], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^([0-9a-f]{16}) .{6}F (\S+)\t([0-9a-f]{16}) (\S+)$", told, re.MULTILINE)
    return [(name, section, int(at, 16), int(size, 16)) for at, section, size, name in found]


def addr2line(module, section, addresses):
    argv = ["addr2line", "-e", module, "-j", section, "-f", "-i", "-a", *(hex(a) for a in addresses)]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    blocks = re.split(r"^0x([0-9a-f]{16})$", told, flags=re.MULTILINE)[1:]
    for at, block in zip(blocks[::2], blocks[1::2], strict=True):
        lines = block.split()
        lines = [word for word in lines if not re.fullmatch(r"\(discriminator|\d+\)", word)]
        places = [place.rpartition("/")[2].rpartition(":") for place in lines[1::2]]
        yield (
            int(at, 16),
            [(name, file, int(line)) for name, (file, _, line) in zip(lines[::2], places, strict=True)],
        )


def test_every_byte_as_addr2line_has_it(module, functions):
    table = LineTable.of(module)
    assert table.modules == ("two_parts",)
    assert {section for _, section, _, _ in functions} >= {".text", ".init.text"}
    compared = inlined = 0
    for name, section, start, size in functions:
        for at, expected in addr2line(module, section, range(start, start + size)):
            got = table.lookup(name, at - start, module="two_parts", size=kernel_size(functions, name, start))
            exact = table.lookup(
                name, at - start, module="two_parts", size=kernel_size(functions, name, start), exact=True
            )
            assert [(line.function, line.file, line.line) for line in exact] == expected, (name, at - start)
            if at > start + 1:
                before = table.lookup(
                    name,
                    at - start - 1,
                    module="two_parts",
                    size=kernel_size(functions, name, start),
                    exact=True,
                )
                assert got == before
            compared += 1
            inlined += len(expected) > 1
    assert compared > 200
    assert inlined > 20


def kernel_size(functions, name, start):
    """Up to the next symbol of the section, or its end, as kallsyms counts."""
    section, size = next((s, n) for f, s, at, n in functions if (f, at) == (name, start))
    later = [at for _, other, at, _ in functions if other == section and at > start]
    return min(later) - start if later else size


def test_static_functions_of_one_name_are_told_apart_by_size(module, functions):
    table = LineTable.of(module)
    places = [(at, size) for name, _, at, size in functions if name == "same"]
    assert len(places) == 2
    files = [
        table.lookup("same", 1, module="two_parts", size=kernel_size(functions, "same", at), exact=True)[
            -1
        ].file
        for at, _ in places
    ]
    assert sorted(files) == ["first.c", "second.c"]


def test_unknown_places_have_no_lines(module, functions):
    table = LineTable.of(module)
    assert table.lookup("first", 1, module="other") == ()
    assert table.lookup("nothing", 1, module="two_parts") == ()
    assert table.lookup("first", 1 << 20, module="two_parts") == ()
    assert table.source(Frame("0x0")) == ""
    size = next(n for name, section, _, n in functions if section == ".init.text")
    assert table.lookup("at_start", size - 1, module="two_parts", exact=True)
    assert table.lookup("at_start", size, module="two_parts", exact=True) == ()
    assert table.lookup("at_start", size, module="two_parts")  # a call may be the last instruction
    assert LineTable.of().source(Frame("first", 1, 2, "two_parts")) == ""


def test_splats_get_source_lines(module, functions):
    size = next(n for name, _, _, n in functions if name == "first")
    text = f"""\
[    1.000000] WARNING: CPU: 0 PID: 1 at x.c:1 first+0x0/{size:#x} [two_parts]
[    1.000000] RIP: 0010:first+0x0/{size:#x} [two_parts]
[    1.000000] Call Trace:
[    1.000000]  <TASK>
[    1.000000]  first+{size:#x}/{size:#x} [two_parts]
[    1.000000]  vfs_write+0x10/0x20
[    1.000000]  </TASK>
"""
    (splat,) = splats(text, lines=LineTable.of(module))
    assert splat.rip is not None
    assert splat.rip.source.startswith("first.c:")
    assert "first.c:" in splat.frames[0].source
    assert splat.frames[1].source == ""
    assert splat.stacks[0].frames == splat.frames
    assert f"[two_parts]  {splat.rip.source}" in splat.render()


def test_inlined_functions_are_named_from_the_inside_out(module, functions):
    table = LineTable.of(module)
    size = next(n for name, _, _, n in functions if name == "at_start")
    chains = {table.lookup("at_start", at, module="two_parts", exact=True) for at in range(size)}
    (deep,) = {chain for chain in chains if len(chain) == 3}
    assert [line.function for line in deep] == ["twice", "bump", "at_start"]
    assert [line.file for line in deep] == ["thing.inc", "thing.inc", "first.c"]
    at = next(n for n in range(size) if table.lookup("at_start", n, module="two_parts", exact=True) == deep)
    told = table.source(Frame("at_start", at, size, "two_parts"), exact=True)
    assert told == f"{deep[0]} (inlined: twice from {deep[1]}, bump from {deep[2]})"
    assert str(SourceLine("f", "a.c", 3)) == "a.c:3"


def test_files_that_are_no_module(module, tmp_path):
    stripped = tmp_path / "stripped.ko"
    subprocess.run(["strip", "--strip-debug", "-o", stripped, module], check=True)
    with pytest.raises(BadInput, match="no debug information"):
        LineTable.of(stripped)
    (tmp_path / "text.ko").write_text("not an object\n")
    with pytest.raises(BadInput, match="no kernel module that can be read"):
        LineTable.of(tmp_path / "text.ko")
    cut = tmp_path / "cut.ko"
    cut.write_bytes(module.read_bytes()[:-2000])
    with pytest.raises(BadInput):
        LineTable.of(cut)
    with pytest.raises(BadInput):
        LineTable.of(tmp_path / "missing.ko")


def test_a_table_is_read_once(module):
    assert LineTable.of(module) is LineTable.of(module)
