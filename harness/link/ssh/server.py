# SPDX-License-Identifier: MIT
"""Making a guest an SSH server: files, an account, a terminal file system; then one server per session.

Everything goes through the agent's link and into the guest's RAM.  Nothing of it is in the boot image, so a
guest that nobody asks for a shell pays nothing for it, and a restored one is as good as a booted one.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from harness.errors import GuestFailure
from harness.images import PayloadFile, SshPayload
from harness.images.ssh import DROPBEAR
from harness.link.guest import SSH_PORT_NAME
from harness.link.link import PendingCall
from harness.link.process import Process
from harness.link.program import Program
from harness.link.ssh.keys import Keys
from harness.link.syscalls import Argument, In, Nr, cstring

Request = tuple[int, tuple[Argument, ...]]

_FOLDER = "/run/iobmd-ssh"
_READY = f"{_FOLDER}/ready"
_HOST_KEY = f"{_FOLDER}/host_key"
_LOG = f"{_FOLDER}/log"
_HOME = "/root"
#: Whose keys the guest takes, in the guest.
AUTHORIZED = f"{_HOME}/.ssh/authorized_keys"
_SETTINGS = (
    ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("/etc/group", "root:x:0:\ntty:x:5:\n"),
    ("/etc/profile", "PS1='iobmd:\\w# '\n"),
)
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": _HOME, "LANG": "C.UTF-8"}
# Bytes the guest lets this side send ahead; dropbear's own 24 KiB make every upload wait for answers.
_WINDOW = "1048576"
_CHUNK = 512 * 1024
# Enough to hide the way there and back, and well inside of the agent's queue (guest/serve.c: QUEUE_BYTES).
_AHEAD = 8


def install(parent: Process, payload: Callable[[], SshPayload]) -> None:
    """Bring the files into the guest, unless they are there.

    Args:
        parent: the guest's agent.
        payload: gives the files; asked only when they are needed.

    Raises:
        GuestOSError: the guest has no room for 5 MB.
        HostLacks: whatever *payload* raises.
    """
    if _exists(parent, _READY):
        return
    files = payload()
    shell = not _exists(parent, files.shell.path)
    push(parent, (*files.files, files.shell) if shell else files.files)
    if shell:
        _make_commands(parent, files.shell.path)
    _folders(parent, (_FOLDER, _HOME, f"{_HOME}/.ssh", "/dev/pts"))
    for path, text in _SETTINGS:
        if not _exists(parent, path):
            _folders(parent, (str(PurePosixPath(path).parent),))
            parent.write_file(path, text.encode())
    _mount_terminals(parent)
    parent.write_file(_READY, b"")


def serve(parent: Process, keys: Keys, ticket: bytes) -> Program:
    """Start a server for one session on the guest's port; the one before it is ended.

    Args:
        parent: the guest's agent.
        keys: which key it shows, and which it accepts.
        ticket: what the session begins with.

    Raises:
        ProgramNotStarted: the agent says why not.
    """
    _write_private(parent, _HOST_KEY, keys.host)
    _write_private(parent, AUTHORIZED, keys.authorized.encode())
    argv = (
        DROPBEAR,
        "-i",  # one connection, on standard input
        "-r", _HOST_KEY,
        "-s",  # keys only: this account has no password
        "-m",  # no message of the day: /etc has none
        "-W", _WINDOW,
    )  # fmt: skip
    return Program(parent, argv, environment=_ENVIRONMENT, port=SSH_PORT_NAME, log=_LOG, ticket=ticket)


def push(parent: Process, files: Iterable[PayloadFile]) -> None:
    """Copy files into the guest, several requests ahead of the answers.

    Raises:
        GuestOSError: the guest has no room for them.
    """
    files = tuple(files)
    _folders(parent, sorted({str(parents) for file in files for parents in PurePosixPath(file.path).parents}))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    opened = _in_flight(parent, ((Nr.OPEN, (cstring(file.path), flags, file.mode)) for file in files))
    try:
        _in_flight(parent, _writes(files, opened))
    finally:
        _in_flight(parent, ((Nr.CLOSE, (fd,)) for fd in opened))


def _writes(files: Iterable[PayloadFile], opened: Iterable[int]) -> Iterator[Request]:
    """Each piece says where it belongs: requests in flight are executed in any order."""
    for file, fd in zip(files, opened, strict=True):
        data = file.source.read_bytes()
        for at in range(0, len(data), _CHUNK):
            part = data[at : at + _CHUNK]
            yield Nr.PWRITE64, (fd, In(part), len(part), at)


def _in_flight(parent: Process, calls: Iterable[Request]) -> list[int]:
    """Make independent system calls; the results in their order."""
    pending: deque[PendingCall] = deque()
    results: list[int] = []

    def take() -> None:
        done = pending.popleft().wait(parent.operation_timeout)
        results.append(done.checked("set up SSH in the guest").value)

    for number, arguments in calls:
        if len(pending) >= _AHEAD:
            take()
        pending.append(parent.link.start(number, *arguments))
    while pending:
        take()
    return results


def _folders(parent: Process, paths: Iterable[str]) -> None:
    """Make folders, parents first; the home is nobody else's, or dropbear does not trust what lies in it."""
    for path in paths:
        mode = 0o700 if path.startswith(_HOME) else 0o755
        made = parent.link.syscall(Nr.MKDIR, cstring(path), mode, what=f"mkdir {path}")
        if made.value != -errno.EEXIST:
            made.checked(f"mkdir {path}")


def _make_commands(parent: Process, shell: str) -> None:
    """Let busybox make a link for each of its commands, beside itself."""
    linking = Program(
        parent, (shell, "--install", "-s", str(PurePosixPath(shell).parent)), environment=_ENVIRONMENT
    )
    if status := linking.wait(parent.operation_timeout):
        raise GuestFailure("busybox could not make links for its commands", observed=f"exit status {status}")


def _mount_terminals(parent: Process) -> None:
    mounted = parent.link.syscall(
        Nr.MOUNT, cstring("devpts"), cstring("/dev/pts"), cstring("devpts"), 0, cstring("mode=620,gid=5"),
        what="mount /dev/pts",
    )  # fmt: skip
    if mounted.value != -errno.EBUSY:
        mounted.checked("mount /dev/pts")


def _write_private(parent: Process, path: str, data: bytes) -> None:
    fd = parent.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        parent.write_all(fd, data, path)
    finally:
        parent.close(fd)


def _exists(parent: Process, path: str) -> bool:
    result = parent.link.syscall(Nr.ACCESS, cstring(path), 0, what=f"access {path}")
    if result.value == -errno.ENOENT:
        return False
    result.checked(f"access {path}")
    return True
