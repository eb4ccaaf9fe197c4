# SPDX-License-Identifier: MIT
"""Pools of small blocks, and the memory behind them."""

from __future__ import annotations

from dataclasses import replace

from harness.audit.events import Event
from harness.audit.judging import Note, ended, judge_boundary
from harness.audit.live import Entry, Live


class Pools:
    """Judges what is taken from pools and given back to them."""

    def __init__(
        self, note: Note, buffers: Live, pools: dict[int, Entry], blocks: Live, *, whole: bool
    ) -> None:
        """Name what is judged.

        Args:
            note: writes violations down.
            buffers: that are alive; some are the memory behind pools.
            pools: that are alive; kept up to date here.
            blocks: that are alive, by pool; kept up to date here.
            whole: nothing was made before the first event.
        """
        self._note = note
        self._buffers = buffers
        self._pools = pools
        self._blocks = blocks
        self._whole = whole
        self._behind: set[int] = set()

    def behind(self, entry: Entry) -> bool:
        """Tell whether a buffer is the memory behind a pool: it is not the driver's to free."""
        return entry.made.number in self._behind

    def alive(self) -> list[Entry]:
        """Return the pools that were not destroyed."""
        return list(self._pools.values())

    def create(self, event: Event) -> None:
        """Take a new pool."""
        if not event.error:
            self._pools[event.owner] = Entry(event)

    def alloc(self, event: Event) -> None:
        """Take a block that was handed out."""
        if event.error:
            return
        pool = self._pools.get(event.owner)
        if pool is None:
            self._blocks.add(event.owner, Entry(event))
            return
        made = pool.made
        name = ""
        for memory in self._buffers.around(made.device, event.bus):
            self._behind.add(memory.made.number)
            name = memory.made.name
        # The call itself names the pool alone.
        known = replace(event, size=made.size, device=made.device, driver=made.driver, name=name)
        entry = Entry(known)
        self._judge(entry, pool)
        self._blocks.add(event.owner, entry)

    def _judge(self, entry: Entry, pool: Entry) -> None:
        made, alignment, boundary = entry.made, pool.made.bus, pool.made.boundary
        if alignment and made.bus % alignment:
            how = f"{made.bus:#x} is not aligned to {alignment:#x}, as pool {pool.made.name} promises"
            self._note("misaligned", made, entry, how)
        judge_boundary(self._note, entry, boundary - 1 if boundary else 0)

    def free(self, event: Event) -> None:
        """Take a block that is given back."""
        found = self._blocks.at(event.owner, event.bus)
        if found:
            made = found[-1].made
            if made.virtual != event.virtual:
                self._note("free-address", event, found[-1], f"{made.virtual:#x} freed as {event.virtual:#x}")
            self._blocks.end(event.owner, found[-1], event)
            return
        past = self._blocks.past(event.owner, event.bus)
        if past is not None:
            self._note("pool-double-free", event, past, f"freed before, at record {ended(past)}")
            return
        for block in self._blocks:
            if (block.made.bus, block.made.virtual) == (event.bus, event.virtual):
                self._note("free-device", event, block, f"the block at {event.bus:#x} is another pool's")
                self._blocks.end(block.made.owner, block, event)
                return
        if self._whole:
            self._note("free-address", event, None, f"the pool has handed out nothing at {event.bus:#x}")

    def destroy(self, event: Event) -> None:
        """Take the end of a pool."""
        for block in self._blocks:
            if block.made.owner == event.owner:
                self._note("pool-leak", event, block, f"the block at {block.made.bus:#x} is still out")
                self._blocks.end(event.owner, block, event)
        pool = self._pools.pop(event.owner, None)
        if pool is not None:
            pool.ended = event
