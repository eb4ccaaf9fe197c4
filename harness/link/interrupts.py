# SPDX-License-Identifier: MIT
"""Ctrl-C, held back until a place where it does no harm.

Python runs a signal's handler right after whatever call it arrived in: after a send() whose result nobody has
seen yet, for instance, so that a frame would be sent once more.  What must not be done twice or forgotten is
done in a `Deferred` block.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class Deferred:
    """Keeps SIGINT's handler from running while the block does; it runs in `check`, or after the block.

    Only the main thread runs handlers, so elsewhere there is nothing to keep; nor where SIGINT is ignored or
    left to the kernel.
    """

    def __init__(self) -> None:
        self._noted = False
        self._handler: Callable[[int, FrameType | None], Any] | None = None

    def __enter__(self) -> Self:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._handler = handler
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if not isinstance(error, KeyboardInterrupt):  # which is this signal's, or one before it
                self.check()

    def check(self) -> None:
        """Let the handler run now if the signal has come; raises what it raises (KeyboardInterrupt)."""
        if self._noted and self._handler is not None:
            self._noted = False
            self._handler(signal.SIGINT, None)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self._noted = True
