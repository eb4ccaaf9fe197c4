# SPDX-License-Identifier: MIT
"""A person's terminal, connected to a guest's console."""

import contextlib
import os
import select
import signal
import socket
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

#: Ctrl-], as telnet and virsh have it: no shell or editor needs it.
ESCAPE: Final = b"\x1d"
_BANNER: Final = b"[iobmd] connected to the guest's console; Ctrl-] leaves\r\n"
_CHUNK: Final = 1 << 16
#: Keys that wait for a guest that does not read them; what is typed beyond is dropped, as a real UART does.
_PENDING_MAX: Final = 1 << 16


@dataclass
class Interaction:
    """One session of a person at a guest's console.

    Attributes:
        sock: where keys go.
        log: gives what the console printed: from which byte on, and how much at most.
        ended: whether the guest is gone.
        wake: eventfd that is signalled when the log has grown or the guest has ended.
        stdin: descriptor of the keyboard.
        stdout: descriptor of the screen.
    """

    sock: socket.socket
    log: Callable[[int, int], bytes]
    ended: Callable[[], bool]
    wake: int
    stdin: int
    stdout: int

    def run(self) -> None:
        """Passes bytes both ways until Ctrl-] or the end of the guest."""
        with terminating_signals_unwind(), raw(self.stdin):
            write_all(self.stdout, _BANNER)
            self._loop()
            write_all(self.stdout, b"\r\n")

    def _loop(self) -> None:
        shown, keys, listening = 0, b"", True
        while True:
            over = self.ended()  # read before the log, so that nothing printed last is missed
            while fresh := self.log(shown, _CHUNK):
                write_all(self.stdout, fresh)
                shown += len(fresh)
            if over:
                return
            readers = [self.wake, self.stdin] if listening else [self.wake]
            ready, writable, _ = select.select(readers, [self.sock] if keys else [], [])
            if self.wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.wake)
            if self.stdin in ready:
                typed = os.read(self.stdin, _CHUNK)
                before, escape, _ = typed.partition(ESCAPE)
                keys = (keys + before)[:_PENDING_MAX]
                listening = bool(typed)  # a closed standard input still lets one watch
                if escape:
                    self._send(keys)
                    return
            if writable:
                keys = keys[self._send(keys) :]

    def _send(self, keys: bytes) -> int:
        try:
            return self.sock.send(keys, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            return len(keys)  # the guest is gone; the loop sees that next


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however long that takes."""
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """The terminal in raw mode; nothing happens when it is no terminal."""
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        yield
        return
    try:
        tty.setraw(fd)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal itself is gone: a closed window
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)


@contextmanager
def terminating_signals_unwind() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit meanwhile: their default would leave the terminal raw."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
