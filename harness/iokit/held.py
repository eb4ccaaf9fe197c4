# SPDX-License-Identifier: MIT
"""What the session hands out: objects that are given back, and those of them that hold one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Self

from harness.iokit.handle import Handle

if TYPE_CHECKING:
    from harness.iokit.session import IOKit
    from harness.link import Process


class Releasable(ABC):
    """Released at the end of a with block, or by hand."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @abstractmethod
    def release(self) -> None:
        """Give it back; a second call does nothing."""


class Held(Releasable):
    """One file of the module behind one object of Apple's.

    Args:
        session: who owns the object until it is released.
        handle: the file.
    """

    def __init__(self, session: IOKit, handle: Handle) -> None:
        self._session = session
        self._handle = handle

    def __repr__(self) -> str:
        if not self._handle.open:
            state = "released"
        elif self._handle.stale:
            state = "gone: its guest was restored"
        else:
            state = f"fd {self._handle.fd}"
        return f"<{type(self).__name__} {self._handle.label}, {state}>"

    def release(self) -> None:
        """Give it back (clauses A13, J10); a second call does nothing.

        A mapping that still exists keeps its descriptor's buffer (clause A15).
        """
        self._session.forget(self)
        self._handle.close()

    @property
    def handle(self) -> Handle:
        """Its file in `process`; for the session that owns it."""
        return self._handle

    @property
    def process(self) -> Process:
        """The process of the guest that holds it."""
        return self._handle.process

    @property
    def fd(self) -> int:
        """Its descriptor in `process`; another process may take it (`harness.link.Process.take`)."""
        return self._handle.fd

    @property
    def label(self) -> str:
        """The call that made it."""
        return self._handle.label
