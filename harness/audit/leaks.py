# SPDX-License-Identifier: MIT
"""What is left when a driver leaves a device, a probe fails, or a module goes."""

from __future__ import annotations

from collections.abc import Callable

from harness.audit.events import Event
from harness.audit.judging import Note
from harness.audit.live import Entry, Live
from harness.audit.pools import Pools


class Leaks:
    """Judges what was not given back; each entry is told once."""

    def __init__(self, note: Note, buffers: Live, mappings: Live, pools: Pools) -> None:
        """Name what is judged.

        Args:
            note: writes violations down.
            buffers: that are alive.
            mappings: that are alive.
            pools: those that are alive, and what is behind them.
        """
        self._note = note
        self._buffers = buffers
        self._mappings = mappings
        self._pools = pools
        self._starting: set[str] = set()
        self._told: set[int] = set()

    def coming(self, event: Event) -> None:
        """Take a module that begins."""
        if event.init:
            self._starting.add(event.module)

    def going(self, event: Event) -> None:
        """Take a module that ends, or whose start has."""
        if event.init:
            self._starting.discard(event.module)
            return
        # A module that goes before its init code did has failed to start.
        failed = event.module in self._starting
        self._judge(event, lambda entry: entry.module == event.module, failed=failed)

    def tried(self, event: Event) -> None:
        """Take the end of a probe; whoever failed has nothing any more, devres has gone already."""
        if event.error:
            self._judge(event, lambda entry: entry.made.device == event.device, failed=True)

    def left(self, event: Event) -> None:
        """Take a driver's leaving of a device; devres has gone already."""
        self._judge(event, lambda entry: entry.made.device == event.device, failed=False)

    def _judge(self, event: Event, its: Callable[[Entry], bool], *, failed: bool) -> None:
        leak = "leak-on-error" if failed else "leak-on-remove"
        for rule, entries in (
            (leak, [one for one in self._buffers if not self._pools.behind(one)]),
            ("never-unmapped", list(self._mappings)),
            ("pool-leak", self._pools.alive()),
        ):
            for entry in entries:
                if its(entry) and entry.made.number not in self._told:
                    self._told.add(entry.made.number)
                    left = f"{entry.made.size} bytes at {entry.made.bus:#x} of {entry.made.name} are left"
                    self._note(rule, event, entry, left)
