# SPDX-License-Identifier: MIT
"""QEMU's test port: I/O ports and device registers of a running machine, from the host.

What it does is done as the first vCPU would do it, at physical addresses, whether the guest runs or stands
still; the guest is not asked and does not notice. Devices still see the machine's DMA remapping: it is the
processor's side that the host takes, not the device's.
"""

import socket
import threading
from typing import Final

from harness.vm.errors import QmpLost, QmpRefused, QmpSilent
from harness.vm.leaks import track
from harness.vm.qmp import Qmp, Session

SECONDS: Final = 10.0
"""For one command; it takes some 0.1 ms."""
_NAME: Final = "iobmd-qtest"


class QTest:
    """The test port of one QEMU.

    It is made when it is first used, over the machine protocol: so every machine has one, and none has it for
    nothing. From then on it stays, because a QEMU 7.2 that is told to take it away dies.
    """

    def __init__(self, qmp: Qmp) -> None:
        """Remember whose port it is.

        Args:
            qmp: the protocol of that QEMU.
        """
        self._qmp = qmp
        self._sock: socket.socket | None = None
        self._rest = b""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the host's end; QEMU has ended or is about to."""
        if self._sock is not None:
            self._sock.close()

    def inl(self, port: int) -> int:
        """Read 32 bits from an I/O port; errors as `writeq`."""
        return int(self._ask(f"inl {port:#x}"), 0)

    def outl(self, port: int, value: int) -> None:
        """Write 32 bits to an I/O port; errors as `writeq`."""
        self._ask(f"outl {port:#x} {value:#x}")

    def readl(self, address: int) -> int:
        """Read 32 bits at a physical address, which may be a device's register; errors as `writeq`."""
        return int(self._ask(f"readl {address:#x}"), 0)

    def readq(self, address: int) -> int:
        """Read 64 bits at a physical address; errors as `writeq`."""
        return int(self._ask(f"readq {address:#x}"), 0)

    def writeq(self, address: int, value: int) -> None:
        """Write 64 bits at a physical address.

        Raises:
            QmpRefused: QEMU refused the port or the command.
            QmpSilent: no answer in time.
            QmpLost: QEMU is gone.
        """
        self._ask(f"writeq {address:#x} {value:#x}")

    def _ask(self, line: str) -> str:
        """Send a command and return what stands behind ``OK`` (QEMU's softmmu/qtest.c)."""
        with self._lock:
            try:
                sock = self._sock or self._attached()
                sock.sendall(line.encode() + b"\n")
                answer = self._line(sock)
            except TimeoutError as error:
                raise QmpSilent("QEMU's test port does not answer", command=line) from error
            except OSError as error:
                raise QmpLost("QEMU's test port is gone", command=line, observed=str(error)) from error
        word, _, value = answer.partition(" ")
        if word != "OK":
            raise QmpRefused("QEMU's test port refused a command", command=line, observed=answer)
        return value

    def _line(self, sock: socket.socket) -> str:
        while b"\n" not in self._rest:
            data = sock.recv(4096)
            if not data:
                raise ConnectionResetError("end of file")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _attached(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock = track(ours)
        ours.settimeout(SECONDS * self._qmp.scale)
        with theirs:

            async def attach(session: Session) -> None:
                session.send_fd(theirs.fileno())
                await session.execute("getfd", {"fdname": _NAME})
                options = {"addr": {"type": "fd", "data": {"str": _NAME}}, "server": False}
                backend = {"type": "socket", "data": options}
                await session.execute("chardev-add", {"id": _NAME, "backend": backend})
                # log=none: otherwise every command is written to QEMU's standard error.
                made = {"qom-type": "qtest", "id": _NAME, "chardev": _NAME, "log": "none"}
                await session.execute("object-add", made)

            self._qmp.transact("attaching the test port", attach)
        return ours
