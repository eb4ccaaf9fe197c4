# SPDX-License-Identifier: MIT
"""The kernel's log, read out of the guest's memory: also what never reached the console.

A kernel that hangs with interrupts off has often said why, and could not print it; and most of what it says
is below the console's level anyway.  The buffer's address and layout are in VMCOREINFO, which is written for
exactly this purpose (kernel/printk/printk.c: log_buf_vmcoreinfo_setup); its format is that of
kernel/printk/printk_ringbuffer.c since 5.10.
"""

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from harness.errors import HarnessError
from harness.oracle.paging import Tables, walk

if TYPE_CHECKING:
    from harness.link import Guest
    from harness.vm import GuestRam

_NOTE_BYTES: Final = 4096
_ENTRY: Final = re.compile(
    rb"^(?:(?:SYMBOL|OFFSET|SIZE|NUMBER|LENGTH)\(([\w.]+)\)|(\w+))=(\S+)$", re.MULTILINE
)
_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map, arch/x86/include/asm/page_64_types.h."""
_PAGE: Final = 4096
#: More than any kernel is built with (CONFIG_LOG_BUF_SHIFT): what says more is no size.
_BITS_MAX: Final = 30
# Descriptor states, the two top bits of state_var: committed and finalized ones hold text.
_STATE_SHIFT: Final = 62
_WITH_TEXT: Final = (1, 2)
_ID_MASK: Final = (1 << _STATE_SHIFT) - 1
#: lpos values with their lowest bit set mark records without text (printk_ringbuffer.c: BLK_DATALESS).
_DATALESS: Final = 1


@dataclass(frozen=True)
class KernelLog:
    """The log of one guest; read while it runs, so its newest record may be missing.

    Attributes:
        ram: the guest's.
        facts: VMCOREINFO's numbers by name.
    """

    ram: "GuestRam"
    facts: dict[str, int]

    @classmethod
    def of(cls, guest: "Guest") -> Self | None:
        """Return the log of *guest*; None when it is not known where it is."""
        if guest.vitals.note is None:
            return None
        try:
            note = guest.machine.ram.read(guest.vitals.note, _NOTE_BYTES)
        except HarnessError:
            return None
        facts = numbers(note)
        return cls(guest.machine.ram, facts) if "prb" in facts and "phys_base" in facts else None

    def lines(self, count: int = 40) -> tuple[str, ...]:
        """Return the last *count* records as dmesg shows them; none when the buffer makes no sense."""
        try:
            return self._lines(count)
        except (KeyError, struct.error, HarnessError, ValueError):
            return ()

    def said(self, words: str, count: int = 40) -> frozenset[str]:
        """Return those of the last *count* records that contain *words*."""
        return frozenset(line for line in self.lines(count) if words in line)

    def _lines(self, count: int) -> tuple[str, ...]:
        at = self.facts
        ring = self._word(at["prb"])
        descs_at, text_at = (
            ring + at["printk_ringbuffer.desc_ring"],
            ring + at["printk_ringbuffer.text_data_ring"],
        )
        bits = self._u32(descs_at + at["prb_desc_ring.count_bits"])
        size_bits = self._u32(text_at + at["prb_data_ring.size_bits"])
        descs = self._word(descs_at + at["prb_desc_ring.descs"])
        infos = self._word(descs_at + at["prb_desc_ring.infos"])
        if max(bits, size_bits) > _BITS_MAX:
            raise ValueError(f"a ring of 2^{bits} records and 2^{size_bits} bytes")
        head = self._word(descs_at + at["prb_desc_ring.head_id"]) & _ID_MASK
        tail = self._word(descs_at + at["prb_desc_ring.tail_id"]) & _ID_MASK
        size = 1 << size_bits
        data = self._word(text_at + at["prb_data_ring.data"])
        records = min((head - tail + 1) & _ID_MASK, count, 1 << bits)
        mask = (1 << bits) - 1
        found: list[str] = []
        for number in range(head - records + 1, head + 1):
            index = number & mask
            desc = self._bytes(descs + index * at["prb_desc"], at["prb_desc"])
            info = self._bytes(infos + index * at["printk_info"], at["printk_info"])
            state = struct.unpack_from("<Q", desc, at["prb_desc.state_var"])[0]
            if state >> _STATE_SHIFT not in _WITH_TEXT or (state ^ number) & _ID_MASK:
                continue
            begin = struct.unpack_from(
                "<Q", desc, at["prb_desc.text_blk_lpos"] + at["prb_data_blk_lpos.begin"]
            )[0]
            after = struct.unpack_from(
                "<Q", desc, at["prb_desc.text_blk_lpos"] + at["prb_data_blk_lpos.next"]
            )[0]
            length = struct.unpack_from("<H", info, at["printk_info.text_len"])[0]
            stamp = struct.unpack_from("<Q", info, at["printk_info.ts_nsec"])[0]
            if begin & _DATALESS:
                continue
            # A block that does not fit behind the others begins at the buffer's start instead.
            place = begin % size if begin // size == (after - 1) // size else 0
            text = self._bytes(data + place + 8, min(length, size))  # its descriptor's id comes first
            found.append(f"[{stamp / 1e9:12.6f}] {text.decode(errors='replace')}")
        return tuple(found)

    def _word(self, va: int) -> int:
        return int.from_bytes(self._bytes(va, 8), "little")

    def _u32(self, va: int) -> int:
        return int.from_bytes(self._bytes(va, 4), "little")

    def _bytes(self, va: int, length: int) -> bytes:
        parts: list[bytes] = []
        while length > 0:
            chunk = min(length, _PAGE - va % _PAGE)
            parts.append(self.ram.read(self._physical(va), chunk))
            va, length = va + chunk, length - chunk
        return b"".join(parts)

    def _physical(self, va: int) -> int:
        if va >= _KERNEL_MAP:
            return va - _KERNEL_MAP + self.facts["phys_base"]
        root = self.facts["swapper_pg_dir"] - _KERNEL_MAP + self.facts["phys_base"]
        levels = 5 if self.facts.get("pgtable_l5_enabled") else 4
        found = walk(Tables(self.ram), root, levels, va)
        if not found.mapped:
            raise ValueError(f"{va:#x} is not mapped")
        return found.pa + (va & (found.size - 1))


def numbers(note: bytes) -> dict[str, int]:
    """Return what VMCOREINFO says in numbers: symbols and offsets by their names, sizes by their types'."""
    found: dict[str, int] = {}
    for match in _ENTRY.finditer(note):
        name, value = (match[1] or match[2]).decode(), match[3].decode()
        symbol = match[0].startswith(b"SYMBOL")
        try:
            found[name] = int(value, 16 if symbol or name == "KERNELOFFSET" else 0)
        except ValueError:
            continue
    return found
