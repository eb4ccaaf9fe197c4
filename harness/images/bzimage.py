# SPDX-License-Identifier: MIT
"""What a kernel file says about itself, and the uncompressed ELF inside a bzImage.

Offsets are those of the x86 boot protocol (Documentation/arch/x86/boot.rst): setup_sects 0x1f1, "HdrS" 0x202,
version 0x206, kernel_version 0x20e, payload_offset and payload_length 0x248 (protocol 2.08 and later).
"""

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import lz4.block
import zstandard

from harness.errors import BadInput

_PT_NOTE = 4
_EM_X86_64 = 62
_XEN_ELFNOTE_PHYS32_ENTRY = 18  # include/xen/interface/elfnote.h: where QEMU enters a PVH kernel
_LZ4_LEGACY_BLOCK = 8 << 20  # lz4's legacy frames hold blocks of at most 8 MiB

_DAMAGE = (
    EOFError,
    OSError,
    ValueError,
    lz4.block.LZ4BlockError,
    lzma.LZMAError,
    zlib.error,
    zstandard.ZstdError,
)


class NoElfInside(Exception):
    """The bzImage holds no ELF that can be entered directly; the text says why."""


def kernel_release(image: Path) -> str:
    """Return ``uname -r`` of a bzImage or an uncompressed ELF kernel.

    Raises:
        BadInput: it is neither, or does not tell.
    """
    data = _read(image)
    if data[:4] == b"\x7fELF":
        banner = re.search(rb"Linux version (\S+) ", data)
        text = banner.group(1) if banner else b""
    elif data[0x202:0x206] == b"HdrS":
        (pointer,) = struct.unpack_from("<H", data, 0x20E)
        text = data[pointer + 0x200 : pointer + 0x300].split(b"\0")[0].split(b" ")[0] if pointer else b""
    else:
        raise BadInput(
            f"{image} is no x86 kernel",
            observed=f"it starts with {data[:4].hex(' ')}: neither ELF nor a bzImage's setup header",
            hint="name arch/x86/boot/bzImage, vmlinux or /boot/vmlinuz-<release>",
        )
    if not text:
        raise BadInput(
            f"{image} does not say which release it is",
            tried="the setup header's kernel_version, or the banner 'Linux version' in an ELF",
            hint="name the bzImage of the same build",
        )
    return text.decode("ascii", "replace")


def uncompressed_elf(image: Path) -> bytes:
    """Return the kernel as the ELF that QEMU can enter without the decompressor (PVH).

    Raises:
        NoElfInside: there is none, it is packed in an unknown way, or it has no PVH entry.
        BadInput: the file cannot be read, or is shorter than its setup header says.
    """
    data = _read(image)
    elf = data if data[:4] == b"\x7fELF" else _unpack(_payload(image, data))
    if elf[:4] != b"\x7fELF":
        raise NoElfInside(f"the payload is no ELF (it starts with {elf[:4].hex(' ')})")
    if elf[4] != 2 or struct.unpack_from("<H", elf, 18)[0] != _EM_X86_64:
        raise NoElfInside("the payload is no 64-bit x86 ELF")
    if not _has_pvh_note(elf):
        raise NoElfInside("the kernel has no PVH entry (CONFIG_PVH is not set)")
    return elf


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"the kernel {path} cannot be read",
            observed=str(error),
            hint="name a readable bzImage or vmlinux",
        ) from error


def _payload(image: Path, data: bytes) -> bytes:
    if data[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", data, 0x206)[0] < 0x208:
        raise NoElfInside("no bzImage of boot protocol 2.08 or later")
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = ((data[0x1F1] or 4) + 1) * 512 + offset
    if not length:
        raise NoElfInside("the setup header speaks of no payload")
    if start + length > len(data):
        raise BadInput(
            f"the kernel {image} is cut off",
            tried="looked for the payload that its setup header speaks of",
            observed=f"that ends at byte {start + length}, the file at byte {len(data)}",
            hint="copy it again",
        )
    return data[start : start + length]


def _unpack(payload: bytes) -> bytes:
    for magic, unpacker in _UNPACKERS:
        if payload.startswith(magic):
            try:
                return unpacker(payload)
            except _DAMAGE as error:
                raise NoElfInside(f"the payload is damaged: {error}") from error
    if payload[:4] == b"\x7fELF":
        return payload
    raise NoElfInside(f"the payload is packed in an unknown way (it starts with {payload[:6].hex(' ')})")


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _whole(decompressor: _Decompressor, payload: bytes) -> bytes:
    """Unpack one stream to its end; what follows it (the unpacked size) is left alone."""
    data = decompressor.decompress(payload)
    if not decompressor.eof:
        raise EOFError("it ends too early")
    return data


def _gzip(payload: bytes) -> bytes:
    return _whole(zlib.decompressobj(wbits=31), payload)


def _zstd(payload: bytes) -> bytes:
    return _whole(zstandard.ZstdDecompressor().decompressobj(), payload)


def _xz(payload: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(format=lzma.FORMAT_XZ), payload)


def _lzma(payload: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(format=lzma.FORMAT_ALONE), payload)


def _bzip2(payload: bytes) -> bytes:
    return _whole(bz2.BZ2Decompressor(), payload)


def _lz4_legacy(payload: bytes) -> bytes:
    """Unpack ``lz4 -l`` frames (lib/decompress_unlz4.c): magic, then size and block until the size word."""
    blocks, position, end = [], 4, len(payload) - 4  # the last word is the unpacked size
    while position + 4 <= end:
        (size,) = struct.unpack_from("<I", payload, position)
        position += 4
        if size == 0 or position + size > end:
            break
        packed = payload[position : position + size]
        blocks.append(lz4.block.decompress(packed, uncompressed_size=_LZ4_LEGACY_BLOCK))
        position += size
    return b"".join(blocks)


_UNPACKERS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\xfd7zXZ\0", _xz),
    (b"\x5d\0\0", _lzma),
    (b"BZh", _bzip2),
    (b"\x02\x21\x4c\x18", _lz4_legacy),
)


def _has_pvh_note(elf: bytes) -> bool:
    (table,) = struct.unpack_from("<Q", elf, 32)
    entry_size, count = struct.unpack_from("<HH", elf, 54)
    for index in range(count):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", elf, table + index * entry_size)
        if kind == _PT_NOTE and _names_pvh_entry(elf[offset : offset + size]):
            return True
    return False


def _names_pvh_entry(notes: bytes) -> bool:
    position = 0
    while position + 12 <= len(notes):
        name_size, value_size, kind = struct.unpack_from("<III", notes, position)
        name = notes[position + 12 : position + 12 + name_size].rstrip(b"\0")
        if name == b"Xen" and kind == _XEN_ELFNOTE_PHYS32_ENTRY:
            return True
        position += 12 + (name_size + 3 & ~3) + (value_size + 3 & ~3)
    return False
