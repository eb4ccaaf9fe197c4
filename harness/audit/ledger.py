# SPDX-License-Identifier: MIT
"""The ledger in a guest: loaded through the agent, read from outside while the guest runs."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from harness.audit.events import Decoder, Event
from harness.errors import BadInput, HarnessError
from harness.images import Kernel, Layouts, ModuleBuild, Progress, build_module, source_root
from harness.kconfig import options_on
from harness.link import Guest

NAME = "dma_ledger"
"""The module, and its device below /dev."""


BACKLOG = 1_000_000
"""Records that wait to be decoded at most while `Ledger.keep_up` reads: 256 MB."""

_NEEDED = ("CONFIG_KPROBES", "CONFIG_DYNAMIC_FTRACE_WITH_REGS")
"""What ``kext_shim/ledger/dma_ledger_detour.c`` is made of; Debian's kernels have it."""

_AT_ONCE = 4096  # records, some 30 ms of decoding
_EVERY = 0.005  # seconds; a ring of 65536 records takes a guest some 50 times as long to fill


class LedgerGone(HarnessError):
    """The guest is not any more the one the ledger was loaded into."""


def build_ledger(kernel: Kernel, progress: Progress) -> ModuleBuild:
    """Build ``dma_ledger.ko`` for one kernel.

    Raises:
        BadInput: that kernel has not what the ledger sees calls by.
        HarnessError: as `harness.images.build_module` does.
    """
    _check_config(kernel)
    return build_module(kernel, source_root() / "kext_shim" / "ledger", progress, name=NAME)


def _check_config(kernel: Kernel) -> None:
    """Say in words what the compiler would say in errors."""
    config = kernel.headers / "include/config/auto.conf"
    on = options_on(config)
    missing = [option for option in _NEEDED if on is not None and option not in on]
    if missing:
        raise BadInput(
            f"drivers cannot be audited on {kernel.release}: the ledger has nothing to see calls by",
            tried=f"looked into {config}",
            observed=f"not set: {', '.join(missing)}",
            hint="build that kernel with CONFIG_FUNCTION_TRACER, CONFIG_DYNAMIC_FTRACE and CONFIG_KPROBES",
        )


class Ledger:
    """The ledger of one guest, loaded on entering and unloaded on leaving.

    Records are read straight out of the guest's RAM, and what was read is given back to the ring there; the
    guest is asked only where the ring is, and how many calls its probes missed. x86 keeps the order of
    stores, so a record whose sequence is right is whole from then on.
    """

    def __init__(
        self,
        guest: Guest,
        build: ModuleBuild,
        records: int = 65536,
        *,
        only: Sequence[str] = (),
        frames: int = 6,
    ) -> None:
        """Name the guest and the module.

        Args:
            guest: it runs, and has no ledger yet.
            build: from `build_ledger`, for the guest's kernel.
            records: what the ring holds, 256 bytes each.
            only: up to eight modules, by name: of allocations, mappings, syncs and blocks of pools only those
                are recorded that one of them calls for, or that are for a device one of them drives; what
                comes seldom is recorded whoever it is.
            frames: of the caller's stack in each record, 1 to 10; more where none of those is a module's. The
                fewer, the less a record costs the guest.
        """
        self._guest = guest
        self._build = build
        names = f" only={','.join(name.replace('-', '_') for name in only)}" if only else ""
        self._params = f"records={records} frames={frames}{names}"
        self.layouts = Layouts.from_elf(build.ko_debug)
        self._decoder = Decoder(self.layouts)
        self._reading = threading.Lock()
        self._backlog: deque[NDArray[Any]] = deque()
        self._waiting = 0

    def __enter__(self) -> Self:
        """Load the module.

        Raises:
            GuestOSError: the kernel refused it.
        """
        self._generation = self._guest.generation
        self._guest.load_module(self._build.ko.read_bytes(), self._params)
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
        """Unload the module; what was not read is gone. A guest that was restored has none to unload."""
        if self.there:
            self._guest.close(self._fd)
            self._guest.unload_module(NAME)

    @property
    def there(self) -> bool:
        """Whether the guest is still the one the ledger was loaded into: it was not restored since."""
        return self._guest.generation == self._generation

    def again(self) -> None:
        """Read on after the guest was put back to a moment at which this ledger was loaded: from that moment.

        Raises:
            GuestOSError: it was not loaded then.
        """
        self._generation = self._guest.generation
        self._decoder = Decoder(self.layouts)
        self._backlog.clear()
        self._waiting = 0
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
            LedgerGone: the guest was restored.
        """
        self._check()
        layout = self.layouts.struct("dma_ledger_info")
        command = self.layouts.enum("dma_ledger_ioctl")["DMA_LEDGER_IOC_INFO"]
        answer = layout.unpack(self._guest.ioctl(self._fd, command, bytes(layout.size)).arg)
        return {name: value for name, value in answer.items() if isinstance(value, int)}

    @property
    def lost(self) -> int:
        """Records that found no room so far, seen from outside.

        Raises:
            LedgerGone: the guest was restored.
        """
        return self._header_field("lost")

    @property
    def missed(self) -> int:
        """Calls that could not be led through the ledger, from the module.

        Raises:
            GuestOSError: it is not loaded any more.
        """
        return self.info()["missed"]

    @property
    def stale(self) -> int:
        """Breakpoints that CPUs met after the kernel had taken them away, seen from outside; none did harm.

        The kernel patches what is watched behind a breakpoint, and QEMU can go on running one that it has
        translated just before it was overwritten.

        Raises:
            LedgerGone: the guest was restored.
        """
        return self._header_field("stale")

    def drain(self) -> list[Event]:
        """Read what was written since the last time, and give its room back to the ring.

        Raises:
            BadInput: the ring is not what a ledger writes.
            LedgerGone: the guest was restored.
        """
        return list(self.events())

    def events(self) -> Iterator[Event]:
        """Yield what `drain` returns, decoded only as it is taken: a million events need not fit in memory.

        Raises:
            BadInput: the ring is not what a ledger writes.
            LedgerGone: the guest was restored.
        """
        self._read()
        left = self._waiting  # not what comes while these are taken: that may never end
        while left > 0 and len(rows := self._next()):
            left -= len(rows)
            yield from self._decoder.feed(rows)

    def _next(self) -> NDArray[Any]:
        """Take records that were read, so few that decoding them keeps no other thread waiting for long."""
        with self._reading:
            if not self._backlog:
                return np.empty(0, self._decoder.dtype)
            rows = self._backlog.popleft()
            if len(rows) > _AT_ONCE:
                self._backlog.appendleft(rows[_AT_ONCE:])
            self._waiting -= min(len(rows), _AT_ONCE)
            return rows[:_AT_ONCE]

    @contextmanager
    def keep_up(self, backlog: int = BACKLOG) -> Iterator[None]:
        """Read the ring from a thread of its own while the block runs; others decode what that has read.

        Reading takes a small part of the time that decoding does: so a guest that writes faster than
        anybody decodes fills the host's memory first, and loses nothing until that is full as well.

        Args:
            backlog: records that may wait to be decoded, 256 bytes each; then it is up to the ring again,
                which holds what it holds, and counts the rest as `lost`.

        Raises:
            BadInput: what the thread has read is not what a ledger writes.
            LedgerGone: the guest was restored.
        """
        ended = threading.Event()
        errors: list[HarnessError] = []

        def read() -> None:
            try:
                while not ended.wait(_EVERY):
                    if self._waiting < backlog:
                        self._read()
            except HarnessError as error:
                errors.append(error)

        thread = threading.Thread(target=read, name="ledger's reader", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if errors:
            raise errors[0]

    def _check(self) -> None:
        if not self.there:
            raise LedgerGone(
                "the guest was restored: the ledger that was loaded into it is gone",
                hint="enter another Ledger after Guest.restore(), or restore the guest before",
            )

    def _read(self) -> None:
        """Copy the records out, and only then let the guest write over them."""
        with self._reading:
            try:
                rows = self._committed(self._header_field("produced"))
            finally:
                self._check()  # a ring that was put back meanwhile is no damaged one, nor ours to write to
            if not len(rows):
                return
            self._backlog.append(rows)
            self._waiting += len(rows)
            self._at += len(rows)
            field = self.layouts.struct("dma_ledger_header").fields["consumed"]
            self._guest.machine.ram.write(self._header + field.offset, self._at.to_bytes(8, "little"))

    def _header_field(self, name: str) -> int:
        self._check()
        field = self.layouts.struct("dma_ledger_header").fields[name]
        return int.from_bytes(self._guest.machine.ram.read(self._header + field.offset, 8), "little")

    def _committed(self, end: int) -> NDArray[Any]:
        """Return the records from where reading stopped to the first that is not written yet."""
        if not 0 <= end - self._at <= self._capacity:
            raise BadInput("the ledger's ring is damaged", observed=f"{self._at} read, {end} written")
        slots: list[NDArray[np.uint8]] = []
        at = self._at
        while at < end:
            slot = at % self._capacity
            count = min(end - at, self._capacity - slot, self._per_block - slot % self._per_block)
            slots.append(self._slots(slot, count))
            at += count
        if not slots:
            return np.empty(0, self._decoder.dtype)
        # Before the copy, which may begin with the last record's end: what is written then is in it whole.
        written = np.concatenate([one.view(self._decoder.dtype)["sequence"] for one in slots])
        missing = np.flatnonzero(written != np.arange(self._at + 1, end + 1, dtype=np.uint64))
        rows = np.concatenate(slots).view(self._decoder.dtype)
        return rows[: missing[0]] if len(missing) else rows

    def _slots(self, slot: int, count: int) -> NDArray[np.uint8]:
        """Return the bytes of records as the guest writes them, not a copy."""
        size = self._decoder.dtype.itemsize
        block, offset = divmod(slot, self._per_block)
        return self._guest.machine.ram.array(self._blocks[block] + offset * size, count * size)
