# SPDX-License-Identifier: MIT
"""Programs of the guest that the agent starts (LINK_SPAWN), on a virtio-serial port or on none."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import BadInput, GuestFailure
from harness.link.errors import GuestOSError
from harness.link.process import Process
from harness.link.syscalls import POLLFD, POLLIN, InOut, Nr

_START_SECONDS = 30.0
_LOOK_SECONDS = 10.0
TICKET_BYTES = 8


class ProgramNotStarted(GuestFailure):
    """The agent could not start a program; ``observed`` has the errno.

    Attributes:
        errno: the positive errno value.
    """

    def __init__(self, summary: str, code: int) -> None:
        super().__init__(summary, observed=f"{os.strerror(code)} ({errno.errorcode.get(code, code)})")
        self.errno = code


class Program:
    """A program of the guest, started by its agent; made by `Guest.spawn`.

    Args:
        parent: the agent.
        argv: the program's path and its arguments.
        environment: its whole environment.
        port: virtio-serial port that becomes its standard input and output, ``""`` for none.  A program
            started on this port before is ended.
        log: file of the guest that its other output is appended to, ``""`` for the console.
        ticket: with a port: what both directions begin with; see `new_ticket`.

    Attributes:
        argv: as given.
        pid: its process id; with a port that of the relay in between, which ends with it.

    Raises:
        BadInput: the words do not fit the operation.
        ProgramNotStarted: there is no such program, or the guest has no room for it.
    """

    def __init__(
        self,
        parent: Process,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        port: str = "",
        log: str = "",
        ticket: bytes = b"",
    ) -> None:
        self.argv = tuple(argv)
        self._parent = parent
        self._status: int | None = None
        words = [*argv, *(f"{name}={value}" for name, value in environment.items())]
        protocol = parent.link.protocol
        fields = protocol.layouts.struct("link_spawn").fields
        for name, text in (("port", port), ("log", log)):
            if len(text.encode()) >= fields[name].count or "\0" in text:
                raise BadInput(f"{text!r} is no name for a program's {name}",
                               hint=f"up to {fields[name].count - 1} bytes, none of them NUL")  # fmt: skip
        if not argv or not argv[0] or any("\0" in word for word in words):
            raise BadInput("a program needs a path, and its words have no NUL in them", observed=repr(words))
        answer = self._ask(
            what=f"start {words[0]}",
            strings="".join(f"{word}\0" for word in words).encode(),
            ticket=int.from_bytes(ticket, "little"),
            argc=len(argv),
            envc=len(environment),
            port=port.encode(),
            log=log.encode(),
        )
        if answer["error"]:
            raise ProgramNotStarted(f"the agent could not start {words[0]}", answer["error"])
        self.pid: int = answer["pid"]

    def __repr__(self) -> str:
        state = "running" if self._status is None else f"ended with {self._status}"
        return f"<Program {self.argv[0]}, pid {self.pid}, {state}>"

    @property
    def status(self) -> int | None:
        """None while it runs, then its exit status, or 128 and the signal that ended it; asks the agent.

        Raises:
            GuestFailure: the guest is gone; or 64 others were started since, and the agent has forgotten it.
        """
        if self._status is None:
            answer = self._ask(what=f"ask after process {self.pid}", pid=self.pid)
            if answer["error"]:
                raise GuestFailure(
                    f"the agent does not remember process {self.pid}",
                    observed=errno.errorcode.get(answer["error"], str(answer["error"])),
                    hint="ask for its status before 64 others are started",
                )
            if answer["ended"]:
                self._status = answer["status"]
        return self._status

    def wait(self, timeout: float) -> int | None:
        """Wait for its end, in the guest.

        Args:
            timeout: seconds.

        Returns:
            As `status`: None when it still runs.
        """
        deadline = time.monotonic() + timeout
        try:
            pidfd = self._parent.syscall(Nr.PIDFD_OPEN, self.pid, 0, what=f"pidfd_open {self.pid}").value
        except GuestOSError:
            pass  # ESRCH: reaped already
        else:
            try:
                self._poll(pidfd, timeout)
            finally:
                self._parent.close(pidfd)
        # It has ended; the agent writes down how within microseconds of reaping it, not before.
        while (status := self.status) is None and time.monotonic() < deadline:
            pass
        return status

    def kill(self, timeout: float = 10.0) -> None:
        """End it with SIGKILL and wait until it is gone; one that has ended already is left alone.

        Args:
            timeout: seconds.

        Raises:
            GuestFailure: it is still there after that time.
        """
        if self.status is not None:
            return
        with contextlib.suppress(GuestOSError):  # ESRCH: it ended meanwhile
            self._parent.syscall(Nr.KILL, self.pid, signal.SIGKILL, what=f"kill {self.pid}")
        if self.wait(timeout) is None:
            raise GuestFailure(f"{self!r} was killed", observed=f"it still exists after {timeout:g} s")

    def _poll(self, pidfd: int, seconds: float) -> None:
        """A pidfd becomes readable with the end of its process (pidfd_open(2))."""
        polled = InOut(POLLFD.pack(pidfd, POLLIN, 0))
        self._parent.link.syscall(
            Nr.POLL,
            polled,
            1,
            int(seconds * 1000),
            timeout=seconds + _LOOK_SECONDS,
            what=f"wait for {self!r}",
        )

    def _ask(self, *, what: str, strings: bytes = b"", **fields: Any) -> dict[str, Any]:
        link = self._parent.link
        payload = link.protocol.spawn_record.pack(**fields) + strings
        reply = link.submit(link.protocol.spawn, payload, what).wait(_START_SECONDS)
        return link.protocol.spawned_record.unpack(reply.payload)


def new_ticket() -> bytes:
    """Eight random bytes, the first not 0, that no earlier traffic on a port holds."""
    return bytes([os.urandom(1)[0] | 1]) + os.urandom(TICKET_BYTES - 1)
