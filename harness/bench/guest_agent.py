# SPDX-License-Identifier: MIT
"""The agent peer: qemu-guest-agent out of its Debian package, in the same guest, on a port of its own."""

import json
import os
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

from harness.errors import GuestFailure, HarnessError
from harness.images import Progress
from harness.images.packages import unpacked
from harness.images.ssh import resolve
from harness.link import Guest, Nr, cstring

PORT_NAME = "org.qemu.guest_agent.0"
"""Where it and its users look for each other (QEMU: docs/interop/qemu-ga.rst)."""

_PACKAGE = "qemu-guest-agent"
_PROGRAM = "/usr/sbin/qemu-ga"
_FOLLOW = r"lib|zlib1g$"
_ROOT = "/opt/qemu-ga"
"""Its libraries lie apart: to overwrite those of a running SSH server would end that."""
_PORTS = "/sys/class/virtio-ports"
_START_SECONDS = 30.0
_LOG = "/tmp/qemu-ga.log"  # noqa: S108 - the guest's, and nobody else lives there
_PING = b'{"execute":"guest-ping"}\n'


class GuestAgent:
    """A running qemu-ga.

    Args:
        guest: booted with a port of this name among its options.
        progress: hears of the download.

    Raises:
        HostLacks: no network the first time.
        GuestFailure: it does not answer.
    """

    def __init__(self, guest: Guest, progress: Progress) -> None:
        files = _files(progress)
        for path, source, mode in files:
            _push(guest, f"{_ROOT}{path}", source.read_bytes(), mode)
        loader = next(f"{_ROOT}{path}" for path, _, _ in files if PurePosixPath(path).name.startswith("ld-"))
        libraries = sorted({f"{_ROOT}{PurePosixPath(path).parent}" for path, _, _ in files})
        argv = [loader, "--library-path", ":".join(libraries), f"{_ROOT}{_PROGRAM}"]
        argv += ["--method=virtio-serial", f"--path={_device(guest)}", "--statedir=/tmp"]
        self._program = guest.spawn([*argv, "--pidfile=/tmp/qemu-ga.pid"], log=_LOG)
        self._port = guest.machine.port(PORT_NAME)
        self._rest = b""
        self._port.settimeout(_START_SECONDS)
        self._synchronise()

    def ping(self) -> None:
        """Ask for nothing and wait for the answer."""
        self._port.sendall(_PING)
        if self._line() != b'{"return": {}}':
            raise GuestFailure("qemu-ga answered something else")

    def _synchronise(self) -> None:
        """What its documentation asks for: a number that comes back."""
        self._port.sendall(b'{"execute":"guest-sync","arguments":{"id":7}}\n')
        try:
            answer: dict[str, Any] = json.loads(self._line())
        except (OSError, ValueError) as error:
            raise GuestFailure(
                "qemu-ga does not answer", tried=shlex.join(self._program.argv), observed=str(error)
            ) from error
        if answer.get("return") != 7:
            raise GuestFailure("qemu-ga does not answer", observed=str(answer))

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            data = self._port.recv(4096)
            if not data:
                raise GuestFailure("qemu-ga's port is closed")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _files(progress: Progress) -> list[tuple[str, Path, int]]:
    """The program, and the libraries that it and they say they need."""

    def complete(folder: Path) -> dict[str, Any]:
        rows = resolve(folder, (_PROGRAM,))
        return {"payload": [[path, str(source.relative_to(folder)), mode] for path, source, mode in rows]}

    folder, manifest = unpacked(_PACKAGE, [_PACKAGE], _FOLLOW, progress, complete)
    return [(path, folder / source, mode) for path, source, mode in manifest["payload"]]


def _push(guest: Guest, path: str, data: bytes, mode: int) -> None:
    at = ""
    for part in path.split("/")[1:-1]:
        at += f"/{part}"
        guest.link.syscall(Nr.MKDIR, cstring(at), 0o755)  # most exist; one that fails shows at the file
    fd = guest.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        guest.write_all(fd, data, path)
    finally:
        guest.close(fd)


def _device(guest: Guest) -> str:
    """The port's device file; their numbers follow the order of names on QEMU's command line."""
    number = guest.machine.spec.ports.index(PORT_NAME) + 1
    for bus in range(4):
        name = f"vport{bus}p{number}"
        try:
            found = guest.read_file(f"{_PORTS}/{name}/name").decode().strip()
        except HarnessError:
            continue
        if found == PORT_NAME:
            return f"/dev/{name}"
    raise GuestFailure(f"the guest has no port {PORT_NAME}", tried=f"looked in {_PORTS}")
