# SPDX-License-Identifier: MIT
"""The guest's second user process: a task to share with, and one that may die."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.errors import GuestFailure
from harness.link import errors
from harness.link.link import Link
from harness.link.process import Process
from harness.link.syscalls import POLLFD, POLLIN, InOut, Nr

if TYPE_CHECKING:
    import socket

PEER_PORT_NAME = "org.iobmd.peer"
"""LINK_PEER_PORT_NAME of guest/link_abi.h."""

_START_SECONDS = 30.0
# How often whoever waits for the peer asks the agent whether it still lives.
_LOOK_SECONDS = 0.25
_LOOK_TIMEOUT = 2.0


class PeerDied(GuestFailure):
    """The peer process has ended, killed or not; `Guest.peer` starts another."""


class PeerNotStarted(GuestFailure):
    """The agent could not start the peer process."""


class Peer(Process):
    """A second process in the guest, with descriptors and memory of its own; made by `Guest.peer`.

    Args:
        parent: the agent, which starts it and looks after it.
        sock: host end of the peer's port.
        check: raises when the machine is dead.
        evidence: lines to show beside a failure.
        refine: as for `Link`.

    Raises:
        PeerNotStarted: the agent says why not.
        RequestTimedOut: it was started and does not answer.
    """

    def __init__(
        self,
        parent: Process,
        sock: socket.socket,
        check: Callable[[], None],
        evidence: Callable[[], Sequence[str]] = tuple,
        refine: Callable[[errors.RequestTimedOut], Exception] | None = None,
    ) -> None:
        super().__init__()
        if hasattr(parent, "image"):  # an agent on the host was not booted from one
            self.image = parent.image
        self.operation_timeout = parent.operation_timeout
        self._parent = parent
        self._check_machine = check
        self._looked = time.monotonic()
        self._pidfd: int | None = None
        self._ended = ""
        protocol = parent.link.protocol
        ticket = int.from_bytes(os.urandom(8), "little") | 1
        started = protocol.peer_record.unpack(
            parent.link.submit(protocol.peer, protocol.peer_start_record.pack(ticket=ticket))
            .wait(_START_SECONDS).payload
        )  # fmt: skip
        if started["error"]:
            raise PeerNotStarted(
                "the agent could not start a peer process",
                observed=f"{os.strerror(started['error'])} (errno {started['error']})",
                evidence=tuple(evidence()),
            )
        what = f"pidfd_open {started['pid']}"
        self._pidfd = parent.syscall(Nr.PIDFD_OPEN, started["pid"], 0, what=what).value
        try:
            self.link = Link(
                sock,
                protocol.layouts,
                self._check,
                evidence,
                ticket=ticket,
                refine=refine,
                deadlines=parent.link.deadlines,
            )
            self.hello = self.link.hello(_START_SECONDS)
        except BaseException:
            self.bury("its start failed")
            raise

    def __repr__(self) -> str:
        return f"<Peer {self.hello.pid}{', ' + self._ended if self._ended else ''}>"

    @property
    def alive(self) -> bool:
        """Whether the process still exists; asks the agent."""
        if not self._ended and self._has_ended(0):
            self._ended = "it ended by itself, or was killed in the guest"
        return not self._ended

    def kill(self, timeout: float = 10.0) -> None:
        """End it with SIGKILL and wait until it is gone: its files are closed, its memory is unmapped.

        Requests under way raise `PeerDied`.  A second call does nothing.

        Args:
            timeout: seconds.

        Raises:
            PeerDied: it is still there after that time; ``observed`` says so.
        """
        if self._pidfd is None:
            return
        signal_it = (Nr.PIDFD_SEND_SIGNAL, self._pidfd, signal.SIGKILL, 0, 0)
        self._parent.link.syscall(*signal_it, timeout=timeout, what="kill the peer")
        if not self._has_ended(timeout):
            raise PeerDied(f"{self!r} was killed", observed=f"it still exists after {timeout:g} s")
        self.bury("it was killed")

    def bury(self, why: str) -> None:
        """Stop speaking to it: nobody of this process reads its port any more.  It need not be dead."""
        self._ended = self._ended or why
        if hasattr(self, "link"):
            self.link.retire(f"the peer process is gone: {self._ended}")
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            self._parent.close(pidfd)

    def abandon(self, why: str) -> None:
        """As `bury`, without a word to its parent: the guest it lived in is gone."""
        self._pidfd = None
        self.bury(why)
        self._begin_anew()

    def _has_ended(self, seconds: float) -> bool:
        """Wait for its end, in the guest: a pidfd becomes readable with it."""
        if self._pidfd is None:
            return True
        polled = InOut(POLLFD.pack(self._pidfd, POLLIN, 0))
        milliseconds = int(seconds * 1000)
        result = self._parent.link.syscall(
            Nr.POLL, polled, 1, milliseconds, timeout=seconds + _LOOK_TIMEOUT, what="wait for the peer's end"
        )
        return result.checked("poll the peer").value > 0

    def _check(self) -> None:
        """The link's liveness check: the machine first, and now and then the process."""
        self._check_machine()
        now = time.monotonic()
        if not self._ended and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            with contextlib.suppress(errors.RequestTimedOut):  # a busy agent says nothing about the peer
                _ = self.alive
        if self._ended:
            raise PeerDied(
                "the peer process has ended", observed=self._ended, hint="guest.peer starts another"
            )
