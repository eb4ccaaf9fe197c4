# SPDX-License-Identifier: MIT
"""The ledger in a guest: loaded through the agent, read from outside while the guest runs."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harness.audit.events import Decoder, Event
from harness.errors import BadInput
from harness.images import Kernel, Layouts, ModuleBuild, Progress, build_module, source_root
from harness.link import Guest

NAME = "dma_ledger"
"""The module, and its device below /dev."""


def build_ledger(kernel: Kernel, progress: Progress) -> ModuleBuild:
    """Build ``dma_ledger.ko`` for one kernel.

    Raises:
        HarnessError: as `harness.images.build_module` does.
    """
    return build_module(kernel, source_root() / "kext_shim" / "ledger", progress, name=NAME)


class Ledger:
    """The ledger of one guest, loaded on entering and unloaded on leaving.

    Records are read straight out of the guest's RAM, and what was read is given back to the ring there; the
    guest is asked only where the ring is, and how many calls its probes missed. x86 keeps the order of
    stores, so a record whose sequence is right is whole.
    """

    def __init__(self, guest: Guest, build: ModuleBuild, records: int = 65536) -> None:
        """Name the guest and the module.

        Args:
            guest: it runs, and has no ledger yet.
            build: from `build_ledger`, for the guest's kernel.
            records: what the ring holds, 256 bytes each.
        """
        self._guest = guest
        self._build = build
        self._records = records
        self.layouts = Layouts.from_elf(build.ko_debug)
        self._decoder = Decoder(self.layouts)

    def __enter__(self) -> Self:
        """Load the module.

        Raises:
            GuestOSError: the kernel refused it.
        """
        self._guest.load_module(self._build.ko.read_bytes(), f"records={self._records}")
        try:
            self._fd = self._guest.open(f"/dev/{NAME}", os.O_RDONLY)
            self._begin()
        except BaseException:
            self._guest.unload_module(NAME)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unload the module; what was not read is gone."""
        self._guest.close(self._fd)
        self._guest.unload_module(NAME)

    def again(self) -> None:
        """Read on after the guest was put back to a moment at which this ledger was loaded: from that moment.

        Raises:
            GuestOSError: it was not loaded then.
        """
        self._decoder = Decoder(self.layouts)
        self._begin()

    def _begin(self) -> None:
        info = self.info()
        ram = self._guest.machine.ram
        self._capacity = info["capacity"]
        self._per_block = self.layouts.enum("dma_ledger_number")["DMA_LEDGER_BLOCK_RECORDS"]
        self._blocks = np.frombuffer(ram.read(info["directory"], 8 * info["blocks"]), "<u8").tolist()
        self._header = info["header"]
        self._at = info["consumed"]

    def info(self) -> dict[str, int]:
        """``struct dma_ledger_info``, from the module.

        Raises:
            GuestOSError: it is not loaded any more.
        """
        layout = self.layouts.struct("dma_ledger_info")
        command = self.layouts.enum("dma_ledger_ioctl")["DMA_LEDGER_IOC_INFO"]
        answer = layout.unpack(self._guest.ioctl(self._fd, command, bytes(layout.size)).arg)
        return {name: value for name, value in answer.items() if isinstance(value, int)}

    @property
    def lost(self) -> int:
        """Records that found no room so far, seen from outside."""
        return self._header_field("lost")

    @property
    def missed(self) -> int:
        """Calls that no probe could be run for, from the module.

        Raises:
            GuestOSError: it is not loaded any more.
        """
        return self.info()["missed"]

    def drain(self) -> list[Event]:
        """Read what was written since the last time, and give its room back to the ring.

        Raises:
            BadInput: the ring is not what a ledger writes.
        """
        rows = self._committed(self._header_field("produced"))
        events = list(self._decoder.feed(rows))
        self._at += len(rows)
        field = self.layouts.struct("dma_ledger_header").fields["consumed"]
        self._guest.machine.ram.write(self._header + field.offset, self._at.to_bytes(8, "little"))
        return events

    def _header_field(self, name: str) -> int:
        field = self.layouts.struct("dma_ledger_header").fields[name]
        return int.from_bytes(self._guest.machine.ram.read(self._header + field.offset, 8), "little")

    def _committed(self, end: int) -> NDArray[Any]:
        """Return the records from where reading stopped to the first that is not written yet."""
        if not 0 <= end - self._at <= self._capacity:
            raise BadInput("the ledger's ring is damaged", observed=f"{self._at} read, {end} written")
        parts = [np.empty(0, self._decoder.dtype)]
        at = self._at
        while at < end:
            slot = at % self._capacity
            count = min(end - at, self._capacity - slot, self._per_block - slot % self._per_block)
            parts.append(self._slots(slot, count))
            at += count
        rows = np.concatenate(parts)
        wanted = np.arange(self._at + 1, end + 1, dtype=np.uint64)
        missing = np.flatnonzero(rows["sequence"] != wanted)
        return rows[: missing[0]] if len(missing) else rows

    def _slots(self, slot: int, count: int) -> NDArray[Any]:
        size = self._decoder.dtype.itemsize
        block, offset = divmod(slot, self._per_block)
        data = self._guest.machine.ram.read(self._blocks[block] + offset * size, count * size)
        return np.frombuffer(data, self._decoder.dtype)
