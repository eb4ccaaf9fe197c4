# SPDX-License-Identifier: MIT
"""One session's use of the port's socket, which outlives the session."""

import math
import select
import socket
import threading
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

_CHECK_SECONDS = 0.05
_DROP_BYTES = 1 << 16


# Two readers would share the bytes out between them: whoever comes last has the socket.
_OWNERS: "WeakKeyDictionary[socket.socket, Wire]" = WeakKeyDictionary()
_TAKING = threading.Lock()


class Wire:
    """What paramiko takes for a socket: the port, from one ticket to the end of one session.

    Closing it leaves the socket open and ends every wait within 50 ms; so does the making of another one on
    the same socket.  A guest that dies ends it as well; `failure` tells why.

    Args:
        sock: host end of the port; stays the caller's.
        check: raises when there is nothing to wait for any more; called about every 50 ms of waiting.

    Attributes:
        failure: what ``check`` raised.
    """

    def __init__(self, sock: socket.socket, check: Callable[[], None]) -> None:
        self._sock = sock
        self._check = check
        self._checked = 0.0
        self._timeout: float | None = None
        self._closed = False  # paramiko looks at it, as it does at a socket's
        self._rest = b""
        self._lock = threading.Lock()
        self.failure: Exception | None = None
        with _TAKING:
            if (last := _OWNERS.get(sock)) is not None:
                last.close()
            _OWNERS[sock] = self
        sock.setblocking(False)

    def meet(self, ticket: bytes, timeout: float) -> None:
        """Send the ticket, and drop what comes until it comes back: that was another session's.

        Raises:
            TimeoutError: it did not come back in time.
            EOFError: the other end is gone, see `failure`.
        """
        deadline = time.monotonic() + timeout
        unsent, seen = ticket, b""
        while unsent:
            self.settimeout(max(deadline - time.monotonic(), 0))
            unsent = unsent[self.send(unsent) :]
        while (at := seen.find(ticket)) < 0:
            self.settimeout(max(deadline - time.monotonic(), 0))
            data = self.recv(_DROP_BYTES)
            if not data:
                raise EOFError("the port is closed")
            seen = seen[-len(ticket) :] + data
        self._rest = seen[at + len(ticket) :]

    def settimeout(self, seconds: float | None) -> None:
        """How long `recv` and `send` may wait, seconds; None for ever."""
        self._timeout = seconds

    def recv(self, size: int) -> bytes:
        """Up to *size* bytes; none when the session is over.

        Raises:
            TimeoutError: nothing came.
        """
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        while self._ready(select.POLLIN):
            with self._lock:
                if self._closed:
                    break
                try:
                    return self._sock.recv(size, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue
                except OSError:
                    break
        return b""

    def send(self, data: bytes) -> int:
        """Send a part of *data*; how many bytes that was.

        Raises:
            TimeoutError: the guest takes nothing.
            EOFError: the session is over.
        """
        while self._ready(select.POLLOUT):
            with self._lock:
                if self._closed:
                    break
                try:
                    return self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    continue
                except OSError:
                    break
        raise EOFError("the session is over")

    def close(self) -> None:
        """End the session; when this returns, no byte is read or written by it any more."""
        self._closed = True
        with self._lock:  # held around every single read and write
            pass

    def _ready(self, event: int) -> bool:
        """Wait until the socket lets; False when the session is over."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._closed:
            now = time.monotonic()
            if now - self._checked >= _CHECK_SECONDS:
                self._checked = now
                try:
                    self._check()
                except Exception as failure:  # it belongs to whoever waits for an answer, in another thread
                    self.failure = failure
                    return False
            left = _CHECK_SECONDS if deadline is None else min(max(deadline - now, 0.0), _CHECK_SECONDS)
            seen = self._look(event, left)
            if seen is None:
                return False
            if seen:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
        return False

    def _look(self, event: int, seconds: float) -> bool | None:
        poll = select.poll()
        try:
            poll.register(self._sock, event)
        except ValueError:
            return None  # somebody has closed it: the machine is
        return bool(poll.poll(math.ceil(seconds * 1000)))
