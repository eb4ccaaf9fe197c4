# SPDX-License-Identifier: MIT
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.images.layouts import Field, Layouts, StructLayout

HEADER = """
#include <linux/types.h>
#include <stdint.h>
enum colour { RED, GREEN = 7, BIG = 0xc0d0b740, };
enum below { LESS = -5, MORE = 200 };
enum { ANONYMOUS = 42 };
struct inner { __u16 a; __s16 b; };
struct outer {
	__u8 first;
	__u64 wide;
	__s32 level;
	char text[5];
	uint8_t nonce[16];
	uint16_t grid[2][3];
	struct inner one;
	struct inner many[2];
	enum colour colour;
	enum below below;
	void *where;
	struct { __u32 left; __u32 right; };
	const volatile __u32 last;
	__u8 tail[];
};
typedef struct { int x; } named_by_typedef;
#define TABLE(n) struct inner n
"""
OTHER = "struct elsewhere { int y; };"
SOURCE = '#include "test_abi.h"\n#include "other.h"\nint used;\n'


@pytest.fixture
def compiled(compile_c: Callable[..., Path]) -> Path:
    return compile_c({"test_abi.h": HEADER, "other.h": OTHER}, SOURCE)


def test_offsets_agree_with_the_compiler(compiled: Path) -> None:
    outer = Layouts.from_elf(compiled).struct("outer")
    offsets = {name: field.offset for name, field in outer.fields.items()}
    assert offsets == {
        "first": 0,
        "wide": 8,
        "level": 16,
        "text": 20,
        "nonce": 25,
        "grid": 42,
        "one": 54,
        "many": 58,
        "colour": 68,
        "below": 72,
        "where": 80,
        "left": 88,
        "right": 92,
        "last": 96,
        "tail": 100,
    }
    assert outer.size == 104
    assert list(outer.fields) == list(offsets)


def test_kinds_of_fields(compiled: Path) -> None:
    fields = Layouts.from_elf(compiled).struct("outer").fields
    assert fields["level"] == Field(16, 4, 1, signed=True)
    assert fields["grid"] == Field(42, 2, 6, signed=False, shape=(2, 3))
    assert fields["many"] == Field(58, 4, 2, signed=False, shape=(2,), struct="inner")
    assert not fields["colour"].signed
    assert fields["below"].signed
    assert fields["where"].size == 8


def test_enums(compiled: Path) -> None:
    layouts = Layouts.from_elf(compiled)
    assert dict(layouts.enum("colour")) == {"RED": 0, "GREEN": 7, "BIG": 0xC0D0B740}
    assert dict(layouts.enum("below")) == {"LESS": -5, "MORE": 200}
    assert layouts.constants["ANONYMOUS"] == 42
    with pytest.raises(BadInput, match="no enum shape") as caught:
        layouts.enum("shape")
    assert "colour" in caught.value.hint


def test_only_the_abi_headers_types(compiled: Path) -> None:
    layouts = Layouts.from_elf(compiled)
    assert set(layouts.structs) == {"inner", "outer", "named_by_typedef"}
    with pytest.raises(BadInput, match="no struct elsewhere"):
        layouts.struct("elsewhere")
    assert "elsewhere" in Layouts.from_elf(compiled, declared_in="other.h").structs


def test_pack_and_unpack(compiled: Path) -> None:
    outer = Layouts.from_elf(compiled).struct("outer")
    data = outer.pack(
        level=-2,
        wide=2**64 - 1,
        text=b"ab",
        grid=[[1, 2, 3], [4, 5, 6]],
        one={"b": -1},
        many=[{"a": 1}, {"a": 2, "b": 3}],
        below=-5,
    )
    assert len(data) == 104
    assert data[16:20] == b"\xfe\xff\xff\xff"
    values = outer.unpack(data)
    assert values["level"] == -2
    assert values["wide"] == 2**64 - 1
    assert values["text"] == b"ab\0\0\0"
    assert values["nonce"] == bytes(16)
    assert values["grid"] == [[1, 2, 3], [4, 5, 6]]
    assert values["one"] == {"a": 0, "b": -1}
    assert values["many"] == [{"a": 1, "b": 0}, {"a": 2, "b": 3}]
    assert values["below"] == -5
    assert values["first"] == 0


def test_numpy_reads_the_same(compiled: Path) -> None:
    outer = Layouts.from_elf(compiled).struct("outer")
    data = outer.pack(level=-2, text=b"ab", grid=[[1, 2, 3], [4, 5, 6]], many=[{"a": 1}, {"a": 2}])
    record = np.frombuffer(data, dtype=outer.dtype)[0]
    assert record["level"] == -2
    assert record["text"] == b"ab"
    assert record["grid"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert record["many"]["a"].tolist() == [1, 2]
    assert outer.dtype.itemsize == outer.size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nothing": 1}, "no field 'nothing'"),
        ({"first": 256}, "8 bits, unsigned"),
        ({"first": -1}, "8 bits, unsigned"),
        ({"level": 2**31}, "32 bits, signed"),
        ({"text": b"123456"}, "at most 5 bytes"),
        ({"text": 3}, "takes bytes"),
        ({"first": b"x"}, "takes an integer"),
        ({"grid": [0] * 7}, "at most 6 elements"),
        ({"grid": 1}, "takes a list"),
        ({"one": 1}, "takes a mapping"),
        ({"one": {"c": 1}}, "no field 'c'"),
    ],
)
def test_what_pack_refuses(compiled: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Layouts.from_elf(compiled).struct("outer").pack(**values)


def test_unpack_of_too_little(compiled: Path) -> None:
    outer = Layouts.from_elf(compiled).struct("outer")
    with pytest.raises(BadInput, match="takes 104 bytes"):
        outer.unpack(bytes(103))


def test_the_json_beside_it_is_used_and_checked(compiled: Path) -> None:
    first = Layouts.from_elf(compiled)
    kept = compiled.with_name("unit.o.layouts.json")
    document = json.loads(kept.read_text())
    document["types"]["enums"]["colour"]["RED"] = 1000
    kept.write_text(json.dumps(document))
    assert Layouts.from_elf(compiled).enum("colour")["RED"] == 1000  # it was read from there
    document["stamp"]["sha256"] = "of another file"
    kept.write_text(json.dumps(document))
    assert Layouts.from_elf(compiled).enum("colour") == first.enum("colour")
    assert list(Layouts.from_elf(compiled).struct("outer").fields) == list(first.struct("outer").fields)


@pytest.mark.parametrize("version", ["-gdwarf-4", "-gdwarf-5"])
def test_both_dwarf_versions(compile_c: Callable[..., Path], version: str) -> None:
    built = compile_c({"test_abi.h": HEADER, "other.h": OTHER}, SOURCE, version)
    layouts = Layouts.from_elf(built)
    assert layouts.struct("outer").fields["wide"].offset == 8
    assert "elsewhere" not in layouts.structs


def test_system_headers_of_that_name_are_left_out(compile_c: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include/system_abi.h").write_text("struct system { int bits : 3; };")
    built = compile_c(
        {"test_abi.h": '#include "include/system_abi.h"\nstruct own { int x; };'}, '#include "test_abi.h"\n'
    )
    assert Layouts.from_elf(built).structs == ("own",)


@pytest.mark.parametrize(
    ("member", "what"),
    [("unsigned bits : 3", "bit-field"), ("double x", "base_type"), ("union { int a; long b; } u", "union")],
)
def test_what_has_no_byte_layout(compile_c: Callable[..., Path], member: str, what: str) -> None:
    built = compile_c({"test_abi.h": f"struct odd {{ {member}; }};"}, '#include "test_abi.h"\n')
    with pytest.raises(BadInput, match=what):
        Layouts.from_elf(built)


def test_files_without_debug_information(compile_c: Callable[..., Path], tmp_path: Path) -> None:
    bare = compile_c({}, "int x;", "-g0")
    with pytest.raises(BadInput, match="no debug information"):
        Layouts.from_elf(bare)
    with pytest.raises(BadInput, match="no type from a file"):
        Layouts.from_elf(compile_c({}, "int x;"))
    (tmp_path / "text").write_text("no ELF")
    with pytest.raises(BadInput, match="no ELF"):
        Layouts.from_elf(tmp_path / "text")
    with pytest.raises(BadInput, match="cannot be read"):
        Layouts.from_elf(tmp_path / "absent")


@given(st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1), st.binary(max_size=5))
def test_round_trip(wide: int, level: int, text: bytes) -> None:
    fields = {
        "wide": Field(0, 8, 1, signed=False),
        "level": Field(8, 4, 1, signed=True),
        "text": Field(12, 1, 5, signed=True, shape=(5,), text=True),
    }
    layout = StructLayout("s", 20, fields, {})
    values = layout.unpack(layout.pack(wide=wide, level=level, text=text))
    assert values == {"wide": wide, "level": level, "text": text.ljust(5, b"\0")}
