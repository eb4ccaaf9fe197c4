# SPDX-License-Identifier: MIT
"""A guest over SSH: commands, files, a terminal."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paramiko

from harness.errors import BadInput, GuestFailure
from harness.images import SshPayload
from harness.link.errors import GuestOSError
from harness.link.ssh.command import Completed, as_text, run
from harness.link.ssh.errors import CommandFailed, SshFailure
from harness.link.ssh.keys import Keys
from harness.link.ssh.server import install
from harness.link.ssh.session import PARAMIKO_ERRORS, Access, Session
from harness.link.ssh.terminal import interact

Transferred = Callable[[int, int], object]
"""Hears of a transfer: bytes so far, bytes in all."""


class Ssh:
    """A guest's shell; made by `Guest.ssh`.

    Nothing happens before it is used.  The first use brings an SSH server into the guest and makes a session;
    the session is kept, any number of threads may use it at once, and a new one takes its place when it broke
    or the guest was restored.  Both ends are verified: the keys of both are made for the session and put into
    the guest over the agent's link.

    Args:
        access: the guest.
        payload: gives the server's files; may download them the first time.
        keys: makes the keys of a session.
    """

    def __init__(
        self, access: Access, payload: Callable[[], SshPayload], keys: Callable[[], Keys] = Keys.fresh
    ) -> None:
        self._access = access
        self._payload = payload
        self._keys = keys
        self._session: Session | None = None
        self._lock = threading.Lock()
        self._sftp: tuple[Session, paramiko.SFTPClient] | None = None
        self._sftp_lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def transport(self) -> paramiko.Transport:
        """The connection as paramiko has it, for all that is not below: channels of one's own, more of SFTP.

        Debian 12's server breaks down when one of its commands ends while another channel is being opened;
        `run`, `put`, `get` and `interact` see to that among themselves.

        Raises:
            GuestFailure: the guest is dead, or there is no session to be had.
            HostLacks: the server's packages are not cached and cannot be fetched.
        """
        return self._ready().transport

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes = b"",
        check: bool = False,
    ) -> Completed:
        """Run a command by the guest's shell, as root in ``/root``.

        Args:
            command: for ``/bin/sh``; a sequence is one program and its arguments, quoted.
            timeout: seconds from its start to its end.
            stdin: what it reads.
            check: raise when its status is not 0.

        Returns:
            Status, standard output and standard error; bytes, as they came.

        Raises:
            CommandFailed: with *check*, it did not succeed.
            CommandTimedOut: it had not ended in time.
            GuestFailure: the guest died meanwhile, under its own name, or the session broke.
        """
        text = as_text(command)
        done = run(self._ready(), text, stdin, timeout)
        if check and done.status:
            raise CommandFailed(text, *done)
        return done

    def put(
        self,
        local: str | os.PathLike[str],
        remote: str,
        *,
        progress: Transferred | None = None,
        timeout: float = 300.0,
    ) -> None:
        """Copy a file into the guest, with its permissions; an existing one is overwritten.

        Args:
            local: file of this host.
            remote: path in the guest.
            progress: hears of it.
            timeout: seconds for all of it.

        Raises:
            BadInput: there is no such file here.
            GuestOSError: the guest does not take it.
            GuestFailure: the guest died, the session broke, or time ran out.
        """
        path = Path(local)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                self._transfer(
                    f"put {remote}",
                    timeout,
                    lambda sftp: (
                        sftp.putfo(file, remote, status.st_size, progress),
                        sftp.chmod(remote, stat.S_IMODE(status.st_mode)),
                    ),
                )
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise BadInput(f"cannot read {path}", observed=str(error), hint="put copies one file") from error

    def get(
        self,
        remote: str,
        local: str | os.PathLike[str],
        *,
        progress: Transferred | None = None,
        timeout: float = 300.0,
    ) -> None:
        """Copy a file out of the guest; files in /proc and /sys, which tell no size, want `run` and ``cat``.

        Args:
            remote: path in the guest.
            local: where to; a folder keeps the name.  An existing file is replaced when all of it is there.
            progress: hears of it.
            timeout: seconds for all of it.

        Raises:
            BadInput: it cannot be written here.
            GuestOSError: the guest has no such file.
            GuestFailure: the guest died, the session broke, or time ran out.
        """
        path = Path(local)
        if path.is_dir():
            path /= Path(remote).name
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with partial.open("wb") as file:
                self._transfer(f"get {remote}", timeout, lambda sftp: sftp.getfo(remote, file, progress))
            partial.replace(path)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise BadInput(f"cannot write {path}", observed=str(error)) from error
        finally:
            partial.unlink(missing_ok=True)

    def interact(
        self, command: str | None = None, *, stdin: int = 0, stdout: int = 1, stderr: int = 2
    ) -> int:
        """Connect a person's terminal, or any descriptors, to a shell or a command in the guest.

        Where both ends here are a terminal the command gets one as well, of the same size.

        Args:
            command: what to run; a login shell if None.
            stdin: descriptor of the keyboard, or whatever is read to its end.
            stdout: descriptor of the screen.
            stderr: descriptor for complaints, where there is no terminal to show them.

        Returns:
            The exit status; 255, as ssh has it, when a signal ended it.

        Raises:
            GuestFailure: the guest died, or the session broke.
        """
        return interact(self._ready(), command, stdin, stdout, stderr)

    def close(self) -> None:
        """End the session, if there is one; the next use makes another."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _ready(self) -> Session:
        """The session: the living one of this life of the guest, or a new one."""
        with self._lock:
            session = self._session
            if session is not None:
                if session.alive and session.link is self._access.agent.link:
                    return session
                session.close()
                self._session = None
            self._access.check()
            install(self._access.agent, self._payload)
            self._session = Session(self._access, self._keys())
            return self._session

    def _transfer(self, what: str, timeout: float, act: Callable[[paramiko.SFTPClient], Any]) -> None:
        session = self._ready()
        deadline = time.monotonic() + timeout
        if not self._sftp_lock.acquire(timeout=timeout):
            raise SshFailure(f"{what}: other transfers took all of {timeout:g} s")
        try:
            with session.waiting(what, max(deadline - time.monotonic(), 0.0)):
                act(self._files(session))
        except PARAMIKO_ERRORS as error:
            if session.alive and isinstance(error, OSError):
                raise _refused(what, error) from error
            raise session.explain(what, error) from error
        finally:
            self._sftp_lock.release()

    def _files(self, session: Session) -> paramiko.SFTPClient:
        """One SFTP server per session, kept: its start costs more than a small file.  Lock held."""
        if self._sftp is None or self._sftp[0] is not session:
            with session.turn("start an SFTP server"):
                client = paramiko.SFTPClient.from_transport(session.transport)
            if client is None:
                raise EOFError
            self._sftp = (session, client)
        return self._sftp[1]


def _refused(what: str, error: OSError) -> Exception:
    """The SFTP server's own no."""
    if error.errno in (errno.ENOENT, errno.EACCES):
        return GuestOSError(error.errno, what)
    return GuestFailure(f"{what}: the guest refuses", observed=str(error) or type(error).__name__)
