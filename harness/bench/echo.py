# SPDX-License-Identifier: MIT
"""The RPC peer: a guest whose pid 1 sends every byte back, and a client that waits for them."""

import dataclasses
import hashlib
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import GuestFailure
from harness.images import GuestImage, Progress, cpio, source_root
from harness.images.guest import guest_nodes
from harness.images.run import need, run
from harness.images.store import Store
from harness.vm import Machine, MachineSpec

_BOOT_SECONDS = 60.0
_REPLY_SECONDS = 10


class Echo:
    """The host's end of the port: blocking, nothing in between."""

    def __init__(self, port: socket.socket) -> None:
        port.settimeout(None)  # Python's own deadline would put a poll() before every recv()
        port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _REPLY_SECONDS, 0))
        self._port = port

    def timings(self, size: int, count: int) -> list[float]:
        """Microseconds of ``count`` round trips of ``size`` bytes."""
        message, send, receive, now = bytes(size), self._port.sendall, self._port.recv, time.perf_counter
        timings = []
        for _ in range(count):
            started = now()
            send(message)
            left = size
            while left:
                left -= len(receive(left))
            timings.append((now() - started) * 1e6)
        return timings


@contextmanager
def booted(spec: MachineSpec, image: GuestImage, progress: Progress) -> Iterator[Echo]:
    """Boot the echo in the machine that ``spec`` describes, with the image's kernel and modules.

    Raises:
        GuestFailure: it did not answer.
    """
    initrd = _initramfs(image, progress)
    with Machine(dataclasses.replace(spec, initrd=initrd)) as machine:
        port = machine.port(spec.ports[0])
        port.settimeout(_BOOT_SECONDS)
        port.sendall(b"?")
        if port.recv(1) != b"?":
            raise GuestFailure("the echo guest ended", evidence=machine.console.tail(20))
        yield Echo(port)


def _initramfs(image: GuestImage, progress: Progress) -> Path:
    sources = [
        Path(__file__).with_name("echo.c"),
        *(source_root() / "guest" / n for n in ("boot.c", "port.c")),
    ]
    nodes_of = (image.kernel.release, image.module.build_id)
    digest = hashlib.sha256(repr(nodes_of).encode() + b"".join(path.read_bytes() for path in sources))

    def build(folder: Path) -> None:
        echo = folder / "echo"
        argv = [need("gcc", "gcc"), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
        argv += [f"-I{source_root() / 'guest'}", "-o", str(echo), *map(str, sources)]
        run(argv, doing="building the echo", timeout=120)
        nodes = guest_nodes(image.kernel, image.module.ko.read_bytes(), echo.read_bytes())
        (folder / "echo.cpio").write_bytes(cpio.write_archive(nodes))

    return Store.default().entry("bench", f"echo-{digest.hexdigest()[:16]}", progress, build) / "echo.cpio"
