# SPDX-License-Identifier: MIT
"""Descriptors on their way: made and owned by nobody yet, or given up and not closed yet.

A batch of requests can be interrupted anywhere.  What it was about to do is written down here before it
begins, and is brought to an end at the next opportunity, at the latest when the session closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.iokit.handle import Handle
from harness.link import Batch as Calls
from harness.link import Nr, PeerDied, Process

# How long an error or an interruption waits for what is under way; the rest is left to the session's end.
_PATIENCE: Final = 5.0
_NO_FD: Final = -1


@dataclass(frozen=True, eq=False)
class _Making:
    process: Process
    generation: int
    batch: Calls
    fds: NDArray[np.int32]  # the very array the new owner will have


@dataclass(frozen=True, eq=False)
class _Closing:
    process: Process
    generation: int
    batch: Calls
    disown: Callable[[], object]


class Custody:
    """What one session has under way."""

    def __init__(self) -> None:
        self._making: list[_Making] = []
        self._closing: list[_Closing] = []

    @contextmanager
    def making(self, process: Process, batch: Calls, fds: NDArray[np.int32]) -> Iterator[None]:
        """Run a batch of factory calls in the block; if it does not end well, all it made is closed.

        Args:
            process: who makes the calls.
            batch: the calls.
            fds: where the descriptors arrive, -1 for none; the owner to be keeps this very array.
        """
        entry = _Making(process, process.generation, batch, fds)
        self._making.append(entry)
        try:
            yield
        except BaseException:
            with suppress(HarnessError):  # what went wrong is on its way; the entry stays
                self.settle(_PATIENCE)
            raise
        self._making.remove(entry)

    def close_rows(self, process: Process, fds: NDArray[np.int32], rows: NDArray[np.intp]) -> None:
        """Close these rows of an array of descriptors, which then says -1 there.

        Raises:
            GuestOSError: one of them could not be closed; all others are.
        """
        self._finish_closing()
        if rows.size:
            numbers = fds[rows]
            self._close(process, numbers, partial(fds.__setitem__, rows, _NO_FD))

    def close_handles(self, handles: Sequence[Handle]) -> None:
        """Close files together; nothing happens for those that were closed, or whose process is gone."""
        self._finish_closing()
        by_process: dict[int, list[Handle]] = {}
        for handle in handles:
            if handle.stale:
                handle.detach()
            elif handle.open:
                by_process.setdefault(id(handle.process), []).append(handle)
        for group in by_process.values():
            numbers = np.array([handle.fd for handle in group], np.int32)
            self._close(group[0].process, numbers, partial(_detach, group))

    def settle(self, timeout: float | None = None) -> None:
        """Bring to an end what was interrupted.

        Args:
            timeout: seconds to wait for each answer; None for the process's own.

        Raises:
            GuestFailure: there was no answer; the next call tries again.
        """
        self._finish_closing(timeout)
        for entry in list(self._making):
            with suppress(PeerDied):
                if entry.process.generation == entry.generation:
                    entry.batch.settle(timeout)
                    made = np.flatnonzero(entry.batch.answered & (entry.fds >= 0))
                    self.close_rows(entry.process, entry.fds, made)
            self._making.remove(entry)

    def _close(self, process: Process, numbers: NDArray[np.int32], disown: Callable[[], object]) -> None:
        batch = process.batch(len(numbers))
        batch.call(Nr.CLOSE, numbers, what="close")
        self._closing.append(_Closing(process, process.generation, batch, disown))
        self._finish_closing()
        if batch.answered.all():  # else the process has ended, and its files with it
            batch.check()

    def _finish_closing(self, timeout: float | None = None) -> None:
        for entry in list(self._closing):
            entry.disown()
            with suppress(PeerDied):
                if entry.process.generation == entry.generation:
                    entry.batch.run(timeout=timeout)
            self._closing.remove(entry)


def _detach(handles: Sequence[Handle]) -> None:
    for handle in handles:
        handle.detach()
