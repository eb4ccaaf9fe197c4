# SPDX-License-Identifier: MIT
"""The agent peer: qemu-guest-agent out of its Debian package, in the same guest, on a port of its own."""

import json
import shlex
from pathlib import Path
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
        for path, source, mode in _files(progress):
            _push(guest, path, source.read_bytes(), mode)
        device = _device(guest)
        argv = [_PROGRAM, "--method=virtio-serial", f"--path={device}", "--statedir=/tmp"]
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
        guest.link.syscall(Nr.MKDIR, cstring(at), 0o755)  # most of them exist
    guest.write_file(path, data)
    guest.syscall(Nr.CHMOD, cstring(path), mode, what=f"chmod {path}")


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
