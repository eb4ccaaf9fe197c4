# SPDX-License-Identifier: MIT
"""One command in the guest, from its start to its exit status."""

import contextlib
import os
import re
import select
import shlex
import time
from collections.abc import Sequence
from typing import NamedTuple

import paramiko

from harness.errors import BadInput
from harness.link.ssh.errors import CommandTimedOut
from harness.link.ssh.session import START_SECONDS, Session

#: The agent, where the boot image has it; it is the parent of a command, see guest/command.c.
AGENT = "/init"
_CHUNK = 1 << 16
# paramiko wakes a waiting thread for output; for a status or for room to write it has to look.
_LOOK_MS = 20
_END_LOOK_SECONDS = 0.002
_END_SECONDS = 10.0
#: MAX_CMD_LEN in dropbear's sysoptions.h.
_COMMAND_MAX = 9000


class Completed(NamedTuple):
    """What a command left behind.

    Attributes:
        status: its exit status; 128 and more: the signal that ended it, above 128.
        stdout: what it wrote.
        stderr: what it complained about.
    """

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """The standard output as text, without the line end behind it."""
        return self.stdout.decode(errors="replace").rstrip("\n")


def as_text(command: str | Sequence[str]) -> str:
    """Return the command as the guest's shell reads it; a sequence becomes one quoted word each.

    Raises:
        BadInput: there is nothing to run, or it holds a NUL.
    """
    text = command if isinstance(command, str) else shlex.join(command)
    if not text.strip() or "\0" in text:
        raise BadInput(f"{command!r} is no command", hint="for example 'uname -r', or ['uname', '-r']")
    return text


def run(session: Session, command: str, stdin: bytes, timeout: float) -> Completed:
    """Run one command by the guest's ``/bin/sh``.

    Args:
        session: where.
        command: for the shell.
        stdin: what it reads.
        timeout: seconds from now to its end.

    Raises:
        CommandTimedOut: it still ran, and was killed.
        GuestFailure: the guest or the session died meanwhile.
    """
    deadline = time.monotonic() + timeout
    mark = os.urandom(12).hex()
    outputs = _Outputs(mark.encode())
    wrapped = f"exec {AGENT} --command {mark} -- /bin/sh -c {shlex.quote(command)}"
    if len(wrapped.encode()) > _COMMAND_MAX:
        raise BadInput(
            f"a command of {len(command.encode())} bytes is longer than the SSH server takes",
            hint="put a script into the guest and run that, or feed it to 'sh -s' as stdin",
        )
    with session.named(command):
        with session.turn(command):
            channel = session.transport.open_session(timeout=START_SECONDS)
            channel.exec_command(wrapped)
        try:
            # The loop has the deadline; the session's is for a server that takes or says nothing more.
            with session.waiting(command, timeout + START_SECONDS):
                late = not _follow(channel, memoryview(stdin), outputs, deadline)
            _end(session, channel, outputs)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                _end(session, channel, outputs)
            raise
        finally:
            channel.close()
        if late:
            raise CommandTimedOut(command, timeout, bytes(outputs.stdout), bytes(outputs.stderr))
        if outputs.status is None:
            raise EOFError("it ended before the command, or the command killed its parent")
    return Completed(outputs.status, bytes(outputs.stdout), bytes(outputs.stderr))


class _Outputs:
    """What a command has written; behind the mark comes its status, and nothing more is its own."""

    def __init__(self, mark: bytes) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.status: int | None = None
        self._end = re.compile(mark + rb"(\d+)\.")
        self._room = len(mark) + 4

    def drain(self, channel: paramiko.Channel) -> None:
        """Take what there is."""
        while channel.recv_ready():
            data = channel.recv(_CHUNK)
            if self.status is not None:
                continue
            start = max(len(self.stdout) - self._room, 0)
            self.stdout += data
            if found := self._end.search(self.stdout, start):
                self.status = int(found[1])
                del self.stdout[found.start() :]
        while channel.recv_stderr_ready():
            self.stderr += channel.recv_stderr(_CHUNK)


def _follow(channel: paramiko.Channel, unsent: memoryview, outputs: _Outputs, deadline: float) -> bool:
    """Move bytes until the command has said its status or the channel is closed; False at the deadline."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    if not unsent:
        channel.shutdown_write()
    while True:
        closed = channel.closed
        outputs.drain(channel)
        if closed or outputs.status is not None:
            return True
        if time.monotonic() >= deadline:
            return False
        if unsent and not (unsent := feed(channel, unsent)):
            channel.shutdown_write()
        poll.poll(_LOOK_MS)


def _end(session: Session, channel: paramiko.Channel, outputs: _Outputs) -> None:
    """Have the command's parent killed, and with it what still runs; take what was on its way."""
    deadline = time.monotonic() + _END_SECONDS
    with session.turn("end a command"):
        if not channel.closed:  # the server does not take a word about a channel that is
            _kill(session, channel)
        while not channel.closed and time.monotonic() < deadline:
            outputs.drain(channel)
            channel.status_event.wait(_END_LOOK_SECONDS)
    outputs.drain(channel)


def feed(channel: paramiko.Channel, unsent: memoryview) -> memoryview:
    """Send what a command's window takes.

    Args:
        channel: the command's.
        unsent: what it is to read.

    Returns:
        What is left; nothing when the command has ended, which it may without reading.
    """
    while unsent and channel.send_ready():
        try:
            unsent = unsent[channel.send(bytes(unsent[:_CHUNK])) :]
        except OSError:
            if not channel.closed:
                raise
            return unsent[:0]
    return unsent


def _kill(session: Session, channel: paramiko.Channel) -> None:
    """Ask the server to send SIGKILL (RFC 4254, section 6.9), which paramiko has no words for."""
    message = paramiko.Message()
    message.add_byte(bytes([98]))  # SSH_MSG_CHANNEL_REQUEST
    message.add_int(channel.remote_chanid)
    message.add_string("signal")
    message.add_boolean(False)
    message.add_string("KILL")
    session.transport._send_user_message(message)
