# SPDX-License-Identifier: MIT
"""A person's terminal, connected to a shell of the guest."""

import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import paramiko

from harness.link.ssh.session import START_SECONDS, Session
from harness.vm.terminal import raw, terminating_signals_unwind, write_all

_CHUNK = 1 << 16
_LOOK_MS = 50
# Output may still be on its way when the status is there.
_END_SECONDS = 2.0


def interact(session: Session, command: str | None, stdin: int, stdout: int) -> int:
    """Pass bytes both ways until the shell exits.

    Args:
        session: where.
        command: what to run; a login shell if None.
        stdin: descriptor of the keyboard; need not be a terminal.
        stdout: descriptor of the screen.

    Returns:
        The exit status; 255 when there was none.

    Raises:
        GuestFailure: the guest died, or the session broke.
    """
    what = command or "a shell"
    with session.named(what):
        with session.waiting(what, START_SECONDS):
            channel = session.transport.open_session(timeout=START_SECONDS)
            columns, lines = _size(stdout)
            channel.get_pty(os.environ.get("TERM", "vt100"), columns, lines)
            if command is None:
                channel.invoke_shell()
            else:
                channel.exec_command(command)
        try:
            with terminating_signals_unwind(), raw(stdin), _resized() as resize:
                _pass_bytes(channel, stdin, stdout, resize)
            if session.wire.failure is not None or (not session.alive and channel.exit_status < 0):
                raise EOFError("the session ended before the shell")
        finally:
            channel.close()
    return channel.exit_status if channel.exit_status >= 0 else 255


def _pass_bytes(channel: paramiko.Channel, stdin: int, stdout: int, resize: int) -> None:
    poll = select.poll()
    for descriptor in (channel.fileno(), stdin, resize):
        poll.register(descriptor, select.POLLIN)
    typed, listening, until = b"", True, float("inf")
    while not channel.closed and time.monotonic() < until:
        ready = dict(poll.poll(_LOOK_MS))
        while channel.recv_ready():
            write_all(stdout, channel.recv(_CHUNK))
        if channel.eof_received and not channel.recv_ready():
            if channel.exit_status_ready():
                return
            channel.status_event.wait(_LOOK_MS / 1000)
        if channel.exit_status_ready():
            until = min(until, time.monotonic() + _END_SECONDS)
        if resize in ready:
            os.eventfd_read(resize)
            channel.resize_pty(*_size(stdout))
        if listening and stdin in ready:
            typed += (data := os.read(stdin, _CHUNK))
            if not data:
                listening = False
                poll.unregister(stdin)
        while typed and channel.send_ready():
            typed = typed[channel.send(typed) :]
        if not listening and not typed:
            channel.shutdown_write()
    while channel.recv_ready():
        write_all(stdout, channel.recv(_CHUNK))


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
