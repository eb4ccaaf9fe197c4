# SPDX-License-Identifier: MIT
"""Frames to bytes and back, by the layouts the agent was compiled with.

Every offset, size and number comes out of the agent's DWARF; guest/link_abi.h is the only place where they
are written down, and this module knows names.
"""

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from harness.images.layouts import Layouts, StructLayout

# Shown of bytes that were no frame.
_PREFIX = 48
# struct module codes by size: signed, unsigned.
_CODES = {1: "bB", 2: "hH", 4: "iI", 8: "qQ"}


class Record:
    """One structure, compiled to :class:`struct.Struct` because it is packed on the hot path.

    Arrays of bytes are ``bytes``, other arrays are tuples, absent fields pack as zero.
    """

    def __init__(self, layout: StructLayout) -> None:
        form, at = "<", 0
        self._arrays: dict[str, int] = {}
        self._absent: dict[str, Any] = {}
        for name, field in sorted(layout.fields.items(), key=lambda item: item[1].offset):
            form += f"{field.offset - at}x"
            at = field.offset + field.size * field.count
            if field.is_bytes:
                form += f"{field.count}s"
                self._absent[name] = b""
            else:
                form += f"{field.count}{_CODES[field.size][not field.signed]}"
                self._absent[name] = (0,) * field.count if field.shape else 0
                if field.shape:
                    self._arrays[name] = field.count
        form += f"{layout.size - at}x"
        self._struct = struct.Struct(form)
        self._offsets = {name: field.offset for name, field in layout.fields.items()}
        self.name = layout.name
        self.size = layout.size

    def offset(self, field: str) -> int:
        """Byte offset of a field."""
        return self._offsets[field]

    def pack(self, **values: Any) -> bytes:
        """The structure's bytes; an unknown field is a KeyError."""
        if not values.keys() <= self._absent.keys():
            raise KeyError(f"struct {self.name} has no {sorted(values.keys() - self._absent.keys())}")
        if not self._arrays:
            return self._struct.pack(*[values.get(name, zero) for name, zero in self._absent.items()])
        flat: list[Any] = []
        for name, zero in self._absent.items():
            value = values.get(name, zero)
            flat += value if name in self._arrays else (value,)
        return self._struct.pack(*flat)

    def packer(self, *names: str) -> Callable[..., bytes]:
        """A function that packs these scalar fields, given in this order; the others are zero."""
        if self._arrays or not set(names) <= self._absent.keys():
            raise KeyError(f"struct {self.name} is not made of the scalars {names}")
        order = [names.index(name) if name in names else len(names) for name in self._absent]
        pack, pick = self._struct.pack, itemgetter(*order)
        return lambda *values: pack(*pick((*values, 0)))

    def unpacker(self, *names: str) -> Callable[[bytes | bytearray], tuple[Any, ...]]:
        """A function that unpacks these fields, in this order; only for structures without arrays."""
        if self._arrays:
            raise KeyError(f"struct {self.name} holds arrays")
        known = list(self._absent)
        unpack, pick = self._struct.unpack_from, itemgetter(*(known.index(name) for name in names))
        return lambda data: pick(unpack(data))

    def unpack(self, data: bytes | bytearray | memoryview) -> dict[str, Any]:
        """Field values of the structure at the start of ``data``."""
        flat = self._struct.unpack_from(data)
        if not self._arrays:
            return dict(zip(self._absent, flat, strict=True))
        values: dict[str, Any] = {}
        at = 0
        for name in self._absent:
            count = self._arrays.get(name)
            values[name] = flat[at] if count is None else flat[at : at + count]
            at += count or 1
        return values


class Frame(NamedTuple):
    """A frame that arrived: header fields and payload."""

    id: int
    op: int
    flags: int
    status: int
    payload: bytes


@dataclass(frozen=True)
class Noise:
    """Bytes that were no frame.

    Attributes:
        count: how many.
        prefix: the first few of them.
    """

    count: int
    prefix: bytes

    def __str__(self) -> str:
        shown = f": {self.prefix.hex(' ')}" if self.prefix else ""
        dots = " ..." if 0 < len(self.prefix) < self.count else ""
        return f"{self.count} byte{'s' if self.count != 1 else ''}{shown}{dots}"


class Protocol:
    """The numbers of guest/link_abi.h and the coding of frames.

    Args:
        layouts: of the agent this side talks to.
    """

    def __init__(self, layouts: Layouts) -> None:
        self.layouts = layouts
        limits, ops = layouts.enum("link_limit"), layouts.enum("link_op")
        self.version = limits["link_protocol"]
        self.magic = limits["link_magic"]
        self.payload_max = limits["link_payload_max"]
        self.ping = ops["LINK_PING"]
        self.hello = ops["LINK_HELLO"]
        self.syscall = ops["LINK_SYSCALL"]
        self.noise = ops["LINK_NOISE"]
        self.peer = ops["LINK_PEER"]
        self.batch = ops["LINK_BATCH"]
        self.hold = ops["LINK_HOLD"]
        self.resume = ops["LINK_RESUME"]
        self.spawn = ops["LINK_SPAWN"]
        self.reply = layouts.enum("link_flag")["LINK_REPLY"]
        self.ops: Mapping[int, str] = {number: name for name, number in ops.items()}
        self.statuses: Mapping[int, str] = {
            number: name for name, number in layouts.enum("link_status").items()
        }
        self.ok = layouts.enum("link_status")["LINK_OK"]
        kinds = layouts.enum("link_reloc_kind")
        self.reloc_arg = kinds["LINK_RELOC_ARG"]
        self.reloc_arena = kinds["LINK_RELOC_ARENA"]
        self.header = Record(layouts.struct("link_header"))
        self.hello_record = Record(layouts.struct("link_hello"))
        self.call_record = Record(layouts.struct("link_syscall"))
        self.reloc_record = Record(layouts.struct("link_reloc"))
        self.result_record = Record(layouts.struct("link_syscall_result"))
        self.batch_record = Record(layouts.struct("link_batch"))
        self.batch_result_record = Record(layouts.struct("link_batch_result"))
        self.batch_stop = layouts.enum("link_batch_flag")["LINK_BATCH_STOP"]
        self.noise_record = Record(layouts.struct("link_noise"))
        self.peer_start_record = Record(layouts.struct("link_peer_start"))
        self.peer_record = Record(layouts.struct("link_peer"))
        self.hold_record = Record(layouts.struct("link_hold"))
        self.resume_record = Record(layouts.struct("link_resume"))
        self.resumed_record = Record(layouts.struct("link_resumed"))
        self.spawn_record = Record(layouts.struct("link_spawn"))
        self.spawned_record = Record(layouts.struct("link_spawned"))
        self._check_at = self.header.offset("check")
        self._pack_header = self.header.packer("magic", "length", "id", "op", "flags", "status")
        self._unpack_header = self.header.unpacker("check", "length", "id", "op", "flags", "status")
        self._magic_bytes = self.magic.to_bytes(4, "little")

    def encode(self, op: int, ident: int, payload: bytes = b"", *, flags: int = 0, status: int = 0) -> bytes:
        """A whole frame, header and payload in one piece."""
        head = self._pack_header(self.magic, len(payload), ident, op, flags, status)[: self._check_at]
        return head + zlib.crc32(head).to_bytes(4, "little") + payload

    def decode_header(self, data: bytes | bytearray) -> tuple[int, int, int, int, int] | None:
        """Length, id, op, flags and status of what starts with the magic; None if it is no valid header."""
        check, length, ident, op, flags, status = self._unpack_header(data)
        if zlib.crc32(data[: self._check_at]) != check or length > self.payload_max:
            return None
        return length, ident, op, flags, status

    def hello_reply(self, ident: int) -> bytes:
        """The header of the answer to HELLO number *ident*, every byte of which is known before."""
        whole = self.encode(self.hello, ident, bytes(self.hello_record.size), flags=self.reply)
        return whole[: self.header.size]

    def noise_skipped(self, payload: bytes) -> int:
        """What a LINK_NOISE frame says was skipped, in bytes; 0 if it is too short to say."""
        record = self.noise_record
        return int(record.unpack(payload)["skipped"]) if len(payload) >= record.size else 0

    def find_magic(self, data: bytearray, start: int) -> int:
        """Where the next frame could start; the end of ``data`` if nowhere."""
        at = data.find(self._magic_bytes, start)
        if at >= 0:
            return at
        for keep in (3, 2, 1):
            if len(data) - keep >= start and data.endswith(self._magic_bytes[:keep]):
                return len(data) - keep
        return len(data)


class Decoder:
    """The incoming byte stream: frames come out, bytes that are none are counted and skipped.

    Args:
        protocol: of the other end.
        anchor: if not empty, bytes are dropped without a word until these come.
    """

    def __init__(self, protocol: Protocol, anchor: bytes = b"") -> None:
        self._protocol = protocol
        self._anchor = anchor
        self._bytes = bytearray()
        self._skipped = 0
        self._prefix = b""

    @property
    def partial(self) -> int:
        """Bytes held that are the beginning of a frame, so far."""
        return len(self._bytes)

    def feed(self, data: bytes | memoryview) -> None:
        """Append what was read."""
        self._bytes += data

    def take_noise(self) -> Noise | None:
        """What was skipped since the last call."""
        if not self._skipped:
            return None
        noise = Noise(self._skipped, self._prefix)
        self._skipped, self._prefix = 0, b""
        return noise

    def swallowed(self, ident: int) -> bool:
        """Whether a frame with this id has come inside of one that is not complete."""
        at = self._bytes.find(ident.to_bytes(8, "little"), self._protocol.header.size)
        return at >= 0

    def disbelieve(self) -> None:
        """Take the frame that is not complete for noise; what came inside of it comes out next."""
        self._skip(self._protocol.find_magic(self._bytes, 1))

    def next(self) -> Frame | None:
        """The next whole frame; None when more bytes are needed, or when noise lies before it."""
        size = self._protocol.header.size
        while self._bytes and self._reach_anchor():
            start = self._protocol.find_magic(self._bytes, 0)
            if start:
                self._skip(start)
                return None
            if len(self._bytes) < size:
                return None
            fields = self._protocol.decode_header(self._bytes)
            if fields is None:
                self._skip(self._protocol.find_magic(self._bytes, 1))
                return None
            length, ident, op, flags, status = fields
            end = size + length
            if len(self._bytes) < end:
                return None
            payload = bytes(memoryview(self._bytes)[size:end])
            del self._bytes[:end]
            return Frame(ident, op, flags, status, payload)
        return None

    def _reach_anchor(self) -> bool:
        if not self._anchor:
            return True
        at = self._bytes.find(self._anchor)
        del self._bytes[: at if at >= 0 else max(len(self._bytes) - len(self._anchor) + 1, 0)]
        if at >= 0:
            self._anchor = b""
        return at >= 0

    def _skip(self, count: int) -> None:
        if len(self._prefix) < _PREFIX:
            self._prefix += bytes(self._bytes[: min(count, _PREFIX - len(self._prefix))])
        self._skipped += count
        del self._bytes[:count]
