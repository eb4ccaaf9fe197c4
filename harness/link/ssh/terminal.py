# SPDX-License-Identifier: MIT
"""A person's terminal, connected to a shell of the guest."""

import os
import select
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from types import FrameType

import paramiko

from harness.link.ssh.command import feed
from harness.link.ssh.session import START_SECONDS, Session
from harness.vm.terminal import raw, terminating_signals_unwind, write_all

_CHUNK = 1 << 16
# paramiko wakes us for output; for a status, or for room to write, we look.
_LOOK_SECONDS = 0.02
_NO_STATUS = 255


def interact(session: Session, command: str | None, stdin: int, stdout: int, stderr: int) -> int:
    """Pass bytes until the command exits; with a terminal of its own when both ends here are one.

    Args:
        session: where.
        command: what to run; a login shell if None.
        stdin: descriptor of the keyboard, or whatever is read to its end.
        stdout: descriptor of the screen.
        stderr: descriptor for complaints, where there is no terminal to show them.

    Returns:
        The exit status; 255, as ssh has it, when a signal ended it.

    Raises:
        GuestFailure: the guest died, or the session broke.
    """
    what = command or "a shell"
    with session.named(what):
        with session.turn(what):
            channel = session.transport.open_session(timeout=START_SECONDS)
            if os.isatty(stdin) and os.isatty(stdout):
                channel.get_pty(os.environ.get("TERM", "vt100"), *_size(stdout))
            if command is None:
                channel.invoke_shell()
            else:
                channel.exec_command(command)
        try:
            with terminating_signals_unwind(), raw(stdin), _resized() as resize, session.waiting(what, inf):
                _Visit(channel, stdin, stdout, stderr, resize).run()
            if not session.alive:
                raise EOFError("the session ended before the command")
        finally:
            channel.close()
        return int(channel.exit_status) if channel.exit_status >= 0 else _NO_STATUS


@dataclass
class _Visit:
    channel: paramiko.Channel
    stdin: int
    stdout: int
    stderr: int
    resize: int
    typed: memoryview = field(default_factory=lambda: memoryview(b""))
    listening: bool = True

    def run(self) -> None:
        channel = self.channel
        while True:
            over = channel.closed or (channel.eof_received and channel.exit_status_ready())
            self._show()
            if over:
                return
            self.typed = feed(channel, self.typed)
            # Not more is read here than the guest takes there.
            readers = [self.resize, *([self.stdin] if self.listening and not self.typed else [])]
            if not channel.eof_received:
                readers.append(channel.fileno())
            ready, _, _ = select.select(readers, [], [], _LOOK_SECONDS)
            if self.resize in ready:
                os.eventfd_read(self.resize)
                channel.resize_pty(*_size(self.stdout))
            if self.stdin in ready:
                self._read()

    def _show(self) -> None:
        while self.channel.recv_ready():
            write_all(self.stdout, self.channel.recv(_CHUNK))
        while self.channel.recv_stderr_ready():
            write_all(self.stderr, self.channel.recv_stderr(_CHUNK))

    def _read(self) -> None:
        try:
            self.typed = memoryview(os.read(self.stdin, _CHUNK))
        except OSError:  # a terminal whose window was closed
            self.typed = memoryview(b"")
        self.listening = bool(self.typed)
        if not self.listening:
            self.channel.shutdown_write()


def _size(descriptor: int) -> tuple[int, int]:
    try:
        return os.get_terminal_size(descriptor)
    except OSError:
        return shutil.get_terminal_size()


@contextmanager
def _resized() -> Iterator[int]:
    """An eventfd that is signalled when the terminal's size changes."""
    changed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        if threading.current_thread() is not threading.main_thread():
            yield changed
            return

        def note(_number: int, _frame: FrameType | None) -> None:
            os.eventfd_write(changed, 1)

        before = signal.signal(signal.SIGWINCH, note)
        try:
            yield changed
        finally:
            signal.signal(signal.SIGWINCH, before if before is not None else signal.SIG_DFL)
    finally:
        os.close(changed)
