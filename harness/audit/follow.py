# SPDX-License-Identifier: MIT
"""Taking a ledger's events while its guest works: at the end there is little left to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from harness.audit.events import Event

EVERY = 0.02
"""Seconds between two looks at a ring that had little in it."""

_MANY = 2000  # records; where that many have come, more are coming


class Source(Protocol):
    """What is followed: `harness.audit.Ledger`."""

    def drain(self) -> list[Event]:
        """Read what was written since the last time."""


class Follower:
    """A thread that drains a ledger and hands the events on, in their order, one batch at a time.

    Reading takes nothing of the guest but its RAM, so a guest that is busy or dead is read just as well.
    """

    def __init__(self, source: Source, take: Callable[[list[Event]], None]) -> None:
        """Say what is followed, and who takes what comes."""
        self._source = source
        self._take = take
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="ledger", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; what has not been taken by then stays where it is."""
        self._ended.set()
        self._thread.join()

    def catch_up(self) -> None:
        """Take, in the caller's thread, everything that is in the ring now.

        Raises:
            Exception: whatever reading or taking raised, here or in the thread before.
        """
        if self._error is not None:
            raise self._error
        self._once()

    def _once(self) -> int:
        with self._lock:
            events = self._source.drain()
            if events:
                self._take(events)
            return len(events)

    def _follow(self) -> None:
        pause = EVERY
        while not self._ended.wait(pause):
            try:
                pause = 0.0 if self._once() > _MANY else EVERY
            except Exception as error:
                self._error = error
                return
