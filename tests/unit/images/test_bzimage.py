# SPDX-License-Identifier: MIT
import bz2
import gzip
import lzma
import struct
from pathlib import Path

import lz4.block
import pytest
import zstandard

from harness.errors import BadInput
from harness.images.bzimage import NoElfInside, kernel_release, uncompressed_elf

RELEASE = "6.1.0-56-cloud-amd64"


def make_elf(*, note_type: int = 18, machine: int = 62, name: bytes = b"Xen\0") -> bytes:
    other = struct.pack("<III", 4, 8, 2) + b"GNU\0" + bytes(8)
    note = struct.pack("<III", len(name), 4, note_type) + name + struct.pack("<I", 0x1000000)
    notes = other + note
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0x40, 0x40, 0x1000)
    program = struct.pack("<IIQQQQQQ", 4, 4, 176, 0, 0, len(notes), len(notes), 4)
    banner = f"Linux version {RELEASE} (somebody@somewhere) #1 SMP".encode()
    return header + load + program + notes + banner + bytes(5000)


def make_bzimage(payload: bytes, *, release: str = RELEASE, version: int = 0x20F) -> bytes:
    sectors = 4
    setup = bytearray(512 * (sectors + 1))
    setup[0x1F1] = sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    text = f"{release} (somebody@somewhere) #1 SMP".encode()
    setup[0x400 : 0x400 + len(text)] = text
    struct.pack_into("<H", setup, 0x20E, 0x200)
    struct.pack_into("<II", setup, 0x248, 100, len(payload))
    return bytes(setup) + bytes(100) + payload + bytes(50)


def lz4_legacy(data: bytes) -> bytes:
    parts = [b"\x02\x21\x4c\x18"]
    for start in range(0, len(data), 2000):  # several blocks
        block = lz4.block.compress(data[start : start + 2000], store_size=False)
        parts.append(struct.pack("<I", len(block)) + block)
    return b"".join(parts)


def sized(packed: bytes, data: bytes) -> bytes:
    """Append the unpacked size, as the kernel's build does for all but gzip."""
    return packed + struct.pack("<I", len(data))


PACKERS = {
    "gzip": gzip.compress,
    "zstd": lambda d: sized(zstandard.ZstdCompressor(write_content_size=False).compress(d), d),
    "xz": lambda d: sized(lzma.compress(d, check=lzma.CHECK_CRC32), d),
    "lzma": lambda d: sized(lzma.compress(d, format=lzma.FORMAT_ALONE), d),
    "bzip2": lambda d: sized(bz2.compress(d), d),
    "lz4": lambda d: sized(lz4_legacy(d), d),
    "none": lambda d: d,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_every_packing(tmp_path: Path, packer: str) -> None:
    elf = make_elf()
    image = tmp_path / "vmlinuz"
    image.write_bytes(make_bzimage(PACKERS[packer](elf)))
    assert uncompressed_elf(image) == elf
    assert kernel_release(image) == RELEASE


def test_an_elf_kernel_is_taken_as_it_is(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(make_elf())
    assert uncompressed_elf(image) == make_elf()
    assert kernel_release(image) == RELEASE


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (gzip.compress(make_elf(note_type=1)), "no PVH entry"),
        (gzip.compress(make_elf(name=b"GNU\0")), "no PVH entry"),
        (gzip.compress(make_elf(machine=3)), "no 64-bit x86"),
        (gzip.compress(b"something else"), "no ELF"),
        (b"\x89LZO and so on", "unknown way"),
        (gzip.compress(make_elf())[:-20], "ends too early"),
        (bz2.compress(make_elf())[:-20], "ends too early"),
        (zstandard.ZstdCompressor().compress(make_elf())[:-20], "ends too early"),
        (b"\xfd7zXZ\0" + bytes(100), "damaged"),
        (b"\x02\x21\x4c\x18" + struct.pack("<I", 40) + b"\xff" * 60, "damaged"),
    ],
    # Named: what gzip writes holds the time, and workers have to agree on the tests' ids.
    ids=[
        "other-note",
        "other-owner",
        "32-bit",
        "no-elf",
        "lzo",
        "short-gzip",
        "short-bzip2",
        "short-zstd",
        "bad-xz",
        "bad-lz4",
    ],
)
def test_why_there_is_no_elf(tmp_path: Path, payload: bytes, why: str) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(make_bzimage(payload))
    with pytest.raises(NoElfInside, match=why):
        uncompressed_elf(image)


def test_an_old_boot_protocol(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(make_bzimage(gzip.compress(make_elf()), version=0x207))
    with pytest.raises(NoElfInside, match=r"2\.08"):
        uncompressed_elf(image)


def test_a_payload_beyond_the_file(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(make_bzimage(gzip.compress(make_elf()))[:-200])
    with pytest.raises(BadInput, match="cut off"):
        uncompressed_elf(image)


def test_no_kernel_at_all(tmp_path: Path) -> None:
    image = tmp_path / "notes.txt"
    image.write_bytes(b"dear diary")
    with pytest.raises(BadInput, match="no x86 kernel"):
        kernel_release(image)
    with pytest.raises(BadInput, match="cannot be read"):
        kernel_release(tmp_path / "absent")
    silent = tmp_path / "vmlinux"
    silent.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(BadInput, match="does not say which release"):
        kernel_release(silent)
