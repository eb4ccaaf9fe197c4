# SPDX-License-Identifier: MIT
"""One SSH session: a server in the guest, the wire to it, and paramiko on this side."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import paramiko

from harness.errors import HarnessError
from harness.link.errors import RequestTimedOut
from harness.link.link import Link
from harness.link.process import Process
from harness.link.program import Program, new_ticket
from harness.link.ssh.errors import ClientKeyRefused, HostKeyMismatch, SshFailure
from harness.link.ssh.keys import Keys
from harness.link.ssh.server import AUTHORIZED, serve
from harness.link.ssh.wire import Wire

#: Seconds for a server to start and to agree on keys; a busy emulated guest needs a tenth of one.
START_SECONDS = 30.0
_USER = "root"
# How often whoever waits for the server asks the agent whether it still runs.
_LOOK_SECONDS = 0.25
# The socket closes a moment before the death of QEMU shows.
_DEATH_SECONDS = 1.0
_DEATH_LOOK_SECONDS = 0.005
_KEY_TYPE = "ssh-ed25519"


_LOG = logging.getLogger("harness.ssh")
_LOG.addHandler(logging.NullHandler())  # what paramiko says goes nowhere unless somebody listens

PARAMIKO_ERRORS = (paramiko.SSHException, EOFError, OSError)
"""What paramiko raises when a session is in trouble."""


@dataclass(frozen=True)
class Access:
    """What is known of a guest before it can be spoken to.

    Attributes:
        agent: its agent, which starts the server and hands it the keys.
        port: gives the host end of the port; asked for every session.
        check: raises when the machine is dead.
        evidence: lines to show beside a failure.
    """

    agent: Process
    port: Callable[[], socket.socket]
    check: Callable[[], None]
    evidence: Callable[[], Sequence[str]] = tuple


class Session:
    """A server in the guest and an authenticated connection to it.

    Args:
        access: the guest.
        keys: of both ends.

    Attributes:
        link: the agent's, as it was when this was made; another one means another life of the guest.
        program: the server.
        transport: the connection.

    Raises:
        HostKeyMismatch: another key than the pinned one answered.
        ClientKeyRefused: the guest did not take this side's key.
        SshFailure: it did not come up, for another reason.
        GuestFailure: the guest is dead.
    """

    link: Link
    program: Program
    transport: paramiko.Transport

    def __init__(self, access: Access, keys: Keys) -> None:
        self._access = access
        self._waits: dict[object, tuple[str, float]] = {}
        self._waits_lock = threading.Lock()
        self._looked = time.monotonic()
        self._turn = threading.Lock()
        self.link = access.agent.link
        ticket = new_ticket()
        self.program = serve(access.agent, keys, ticket)
        self.wire = Wire(access.port(), self._look)
        try:
            with self.named("start an SSH session"), self.waiting("start an SSH session", START_SECONDS):
                self.wire.meet(ticket, START_SECONDS)
                self.transport = paramiko.Transport(self.wire)
                self._shake_hands(keys)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it still works, as far as is known without asking the guest."""
        return self.transport.is_active() and self.wire.failure is None

    def close(self) -> None:
        """End it on this side; the server is ended with the next one's start, or with the guest."""
        self.wire.close()
        if hasattr(self, "transport"):
            self.transport.close()

    @contextmanager
    def waiting(self, what: str, seconds: float) -> Iterator[None]:
        """Break the session when a block takes too long: paramiko waits for some answers without end.

        Args:
            what: what the block does, for the error.
            seconds: how long it may take.
        """
        ticket = object()
        with self._waits_lock:
            self._waits[ticket] = (f"{what}: no answer within {seconds:g} s", time.monotonic() + seconds)
        try:
            yield
        finally:
            with self._waits_lock:
                del self._waits[ticket]

    @contextmanager
    def turn(self, what: str, seconds: float = START_SECONDS) -> Iterator[None]:
        """Be the only one who opens a channel or ends a command.

        A server older than 2024.87 breaks down when one command ends while another channel has been opened
        and not been told yet what to run (guest/command.c).

        Args:
            what: what for, for the error.
            seconds: how long the block, and the wait for it, may take.
        """
        with self.waiting(what, seconds):
            if not self._turn.acquire(timeout=seconds):
                raise EOFError("others kept the session busy")
            try:
                yield
            finally:
                self._turn.release()

    @contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Turn what paramiko raises about the session into what happened to the guest."""
        try:
            yield
        except PARAMIKO_ERRORS as error:
            raise self.explain(what, error) from error

    def explain(self, what: str, error: BaseException) -> Exception:
        """Why the session broke: the guest's own end, if there is one, names it best."""
        if isinstance(self.wire.failure, HarnessError):
            return self.wire.failure
        deadline = time.monotonic() + _DEATH_SECONDS
        pause = threading.Event()
        while True:
            try:
                self._access.check()
            except HarnessError as death:
                return death
            if time.monotonic() >= deadline:
                break
            pause.wait(_DEATH_LOOK_SECONDS)
        return SshFailure(
            f"{what}: the SSH session broke",
            observed=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
            hint="use it again: the next use makes a new session",
            evidence=tuple(self._access.evidence()),
        )

    def _shake_hands(self, keys: Keys) -> None:
        transport = self.transport
        transport.set_log_channel(_LOG.name)
        transport.get_security_options().key_types = (_KEY_TYPE,)
        transport.start_client(timeout=START_SECONDS)
        shown = transport.get_remote_server_key()
        if shown.asbytes() != keys.pinned:
            raise HostKeyMismatch(
                "the SSH server in the guest has another key than it was given",
                tried="compared it with the one put into the guest over the agent's link",
                observed=f"{shown.get_name()} {shown.get_base64()}",
                hint="something else in the guest answers on the port org.iobmd.ssh",
            )
        try:
            transport.auth_publickey(_USER, keys.client)
        except paramiko.AuthenticationException as error:
            if not transport.is_active():
                raise
            raise ClientKeyRefused(
                "the guest does not accept this session's key",
                observed=str(error),
                hint=f"{AUTHORIZED} or the folders above it were changed in the guest",
                evidence=tuple(self._access.evidence()),
            ) from error

    def _look(self) -> None:
        """The wire's liveness check: the machine, the deadlines, and while somebody waits the server."""
        self._access.check()
        now = time.monotonic()
        with self._waits_lock:
            late = [text for text, deadline in self._waits.values() if now > deadline]
            waited_for = bool(self._waits)
        if late:
            raise SshFailure(
                late[0],
                observed="the guest lives, its SSH server is silent",
                hint="on a slow machine give it a longer timeout; the next use makes a new session",
                evidence=tuple(self._access.evidence()),
            )
        if not waited_for or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        status = None
        with contextlib.suppress(RequestTimedOut):  # a busy agent says nothing about the server
            status = self.program.status
        if status is not None:
            raise SshFailure(
                "the SSH server in the guest has ended",
                observed=f"exit status {status}",
                hint="the next use starts another",
                evidence=tuple(self._access.evidence()),
            )
