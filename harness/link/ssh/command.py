# SPDX-License-Identifier: MIT
"""One command in the guest, from its start to its exit status."""

import select
import shlex
import time
from collections.abc import Sequence
from typing import NamedTuple

import paramiko

from harness.errors import BadInput
from harness.link.ssh.errors import CommandTimedOut
from harness.link.ssh.session import START_SECONDS, Session

Outputs = tuple[list[bytes], list[bytes]]

_CHUNK = 1 << 16
# paramiko wakes a waiting thread for output; for a status or for room to write it has to look.
_LOOK_MS = 20


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
        CommandTimedOut: it still runs; its shell was sent SIGKILL.
        GuestFailure: the guest or the session died meanwhile.
    """
    deadline = time.monotonic() + timeout
    outputs: Outputs = ([], [])
    with session.named(command):
        with session.waiting(command, START_SECONDS):
            channel = session.transport.open_session(timeout=START_SECONDS)
            channel.exec_command(command)
        try:
            # The loop below has the deadline; the session's is for a server that takes or says nothing more.
            with session.waiting(command, timeout + START_SECONDS):
                if not _follow(channel, memoryview(stdin), outputs, deadline):
                    _kill(session, channel)
                    raise CommandTimedOut(command, timeout, *map(b"".join, outputs))
        finally:
            channel.close()
        if channel.exit_status < 0:
            raise EOFError("it ended before the command")
        return Completed(channel.exit_status, *map(b"".join, outputs))


def _follow(channel: paramiko.Channel, unsent: memoryview, outputs: Outputs, deadline: float) -> bool:
    """Move bytes until the command has ended; False at the deadline."""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    if not unsent:
        channel.shutdown_write()
    while True:
        over = channel.closed or (channel.eof_received and channel.exit_status_ready())
        _drain(channel, outputs)
        if over:
            return True
        if time.monotonic() >= deadline:
            return False
        if unsent and not (unsent := feed(channel, unsent)):
            channel.shutdown_write()
        if channel.eof_received:
            channel.status_event.wait(_LOOK_MS / 1000)
        else:
            poll.poll(_LOOK_MS)


def _drain(channel: paramiko.Channel, outputs: Outputs) -> None:
    while channel.recv_ready():
        outputs[0].append(channel.recv(_CHUNK))
    while channel.recv_stderr_ready():
        outputs[1].append(channel.recv_stderr(_CHUNK))


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
