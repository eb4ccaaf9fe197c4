# SPDX-License-Identifier: MIT
"""Work for a network card's driver: a lease, pings of all sizes, a stream each way, every byte compared."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from harness.audit.disk_traffic import TrafficDiffers, check
from harness.audit.named import network_name
from harness.link import Guest, GuestOSError, In, Nr, Out, UserMemory
from harness.vm.attached import ADDRESS, GATEWAY, PEER

_SOCKET, _CONNECT, _SENDTO, _RECVFROM, _BIND, _SETSOCKOPT = 41, 42, 44, 45, 49, 54
_INET, _STREAM, _DGRAM, _RAW = 2, 1, 2, 3
_IPPROTO_ICMP = 1
_SOL_SOCKET, _BROADCAST, _BINDTODEVICE = 1, 6, 25
_RCVTIMEO, _SNDTIMEO = 20, 21
_WAITALL = 0x100
_SIFFLAGS, _SIFADDR, _SIFNETMASK = 0x8914, 0x8916, 0x891C  # include/uapi/linux/sockios.h
_IFF_UP = 1
_NETMASK = "255.255.255.0"
_NOBODY = "0.0.0.0"  # noqa: S104 - INADDR_ANY, in a guest that reaches nobody
_SECONDS = 10
_LINK_SECONDS = 30
"""For a link to come up, and a driver to notice, which takes some 3 s in a guest that nothing slows down."""
_MIB = 1 << 20
_AT_ONCE = 64 * 1024  # bytes the guest waits for with one call, and so for so many seconds
#: Payloads: nothing, one byte more than nothing, what fills a frame of 1500 bytes and what does not, and what
#: takes several frames.
_PINGS = (0, 1, 17, 56, 511, 1000, 1471, 1472, 1473, 4096, 8001)
_ECHO, _ECHO_REPLY = 8, 0
_DHCP_SERVER, _DHCP_CLIENT = 67, 68
_COOKIE = bytes((0x63, 0x82, 0x53, 0x63))  # RFC 2131, 3
_DISCOVER, _OFFER = 1, 2
_ROOM = 64 * 1024


@dataclass(frozen=True)
class NetworkTraffic:
    """What went through a network card, all of it compared.

    Attributes:
        name: the kernel's for the card.
        lease: the address DHCP offered.
        pings: echoes that came back.
        sent: bytes the guest sent as a stream.
        received: bytes the guest received as a stream.
    """

    name: str
    lease: str
    pings: int
    sent: int
    received: int


def network(
    guest: Guest,
    index: int = 0,
    *,
    kib: int = 512,
    rounds: int = 4,
    seed: int = 0,
    meanwhile: Callable[[], object] | None = None,
) -> NetworkTraffic:
    """Use a network card of the machine: up, a DHCP offer, pings, TCP both ways, down.

    Args:
        guest: it runs, and has a driver for the card.
        index: the network's place in `GuestOptions.networks`.
        kib: length of the stream in each direction, in KiB.
        rounds: how often each size of ping is sent.
        seed: of the bytes.
        meanwhile: called once while the card is up and a connection is open.

    Raises:
        TrafficDiffers: what arrived is not what was sent, or nothing arrived.
        GuestOSError: the kernel reported an error.
        GuestFailure: no driver shows the card.
    """
    name = network_name(guest, index)
    random = np.random.default_rng(seed)
    work = Card(guest, name, guest.machine.attached.wires[index])
    with work.up():
        lease = work.lease(random.bytes(4))
        if lease != ADDRESS:
            raise TrafficDiffers(f"DHCP on {name} offers {lease}", observed=f"{ADDRESS} was expected")
        work.address()
        pings = sum(work.ping(number, random.bytes(size)) for number, size in enumerate(_PINGS * rounds))
        with work.connected() as fd:
            sent = work.send(fd, random.bytes(kib * 1024))
            if meanwhile is not None:
                meanwhile()
            received = work.receive(fd, random.bytes(kib * 1024))
    return NetworkTraffic(name, lease, pings, sent, received)


@dataclass(frozen=True)
class Card:
    """A network card at work; see `network`.

    Attributes:
        guest: where it is.
        name: the kernel's for it.
        wire: the host's end of the connections it makes.
    """

    guest: Guest
    name: str
    wire: socket.socket

    @contextmanager
    def up(self) -> Iterator[None]:
        """Have the interface up; without an address at first, and at the end."""
        self._control(_SIFFLAGS, struct.pack("<H", _IFF_UP))
        try:
            yield
        finally:
            self._control(_SIFADDR, _address(_NOBODY, 0))
            self._control(_SIFFLAGS, struct.pack("<H", 0))

    def address(self) -> None:
        """Give it the address that QEMU's DHCP would."""
        self._control(_SIFADDR, _address(ADDRESS, 0))
        self._control(_SIFNETMASK, _address(_NETMASK, 0))

    def lease(self, xid: bytes) -> str:
        """Ask for an address (RFC 2131); asked again while the link is still coming up."""
        request = struct.pack("!BBBB4sHH16x", 1, 1, 6, 0, xid, 0, 0x8000) + self._hardware().ljust(208, b"\0")
        request = (request + _COOKIE + bytes((53, 1, _DISCOVER, 255))).ljust(300, b"\0")
        with self._socket(_DGRAM, 0, seconds=1) as fd:
            self._option(fd, _BROADCAST, struct.pack("<i", 1))
            self._call(_BIND, fd, In(_address(_NOBODY, _DHCP_CLIENT)), 16, what="bind")
            for _ in range(_LINK_SECONDS):
                self._send_to(fd, request, "255.255.255.255", _DHCP_SERVER)
                answer = self._receive_from(fd)
                if answer is not None and answer[4:8] == xid and answer[242:243] == bytes((_OFFER,)):
                    return socket.inet_ntoa(answer[16:20])
        raise TrafficDiffers(
            f"DHCP on {self.name}: no answer in {_LINK_SECONDS} s", observed="nothing arrived"
        )

    def ping(self, number: int, payload: bytes) -> int:
        """Send an echo and compare what comes back (RFC 792)."""
        head = struct.pack("!HH", 0x1234, number)
        body = (
            struct.pack("!BBH", _ECHO, 0, _checksum(bytes((_ECHO, 0, 0, 0)) + head + payload))
            + head
            + payload
        )
        with self._socket(_RAW, _IPPROTO_ICMP, seconds=_SECONDS) as fd:
            self._send_to(fd, body, GATEWAY, 0)
            while True:
                packet = self._receive_from(fd)
                if packet is None:
                    raise TrafficDiffers(f"ping of {len(payload)} bytes on {self.name}: no answer")
                answer = packet[(packet[0] & 15) * 4 :]
                if answer[0] == _ECHO_REPLY and answer[4:8] == head:
                    check(payload, answer[8:], f"ping of {len(payload)} bytes on {self.name}")
                    return 1

    @contextmanager
    def connected(self) -> Iterator[int]:
        """Connect to the host's wire; the descriptor, in the guest, is closed at the end."""
        with self._socket(_STREAM, 0, seconds=_SECONDS) as fd:
            self._call(_CONNECT, fd, In(_address(*PEER)), 16, what="connect")
            yield fd

    def send(self, fd: int, data: bytes) -> int:
        """Send bytes as a stream, and compare what the host has got."""
        with self.guest.memory(data) as memory:
            check(data, self.pour(fd, memory), f"TCP from the guest on {self.name}")
        return len(data)

    def receive(self, fd: int, data: bytes) -> int:
        """Have the host send bytes, and compare what the guest has got."""
        with self.guest.memory(len(data)) as memory:
            moved = self.fill(fd, memory, data)
            check(data, memory.read(0, moved), f"TCP to the guest on {self.name}")
        return moved

    def pour(self, fd: int, memory: UserMemory) -> bytes:
        """Send memory of the agent's as a stream, and return what the host has got."""
        with _reader(self.wire, memory.size) as arrived:
            done = 0
            while done < memory.size:
                done += self._call(Nr.WRITE, fd, memory.address + done, memory.size - done, what="write")
        return bytes(arrived)

    def fill(self, fd: int, memory: UserMemory, data: bytes) -> int:
        """Have the host send bytes into memory of the agent's, and return how many came."""
        moved = 0
        with _beside(self.wire, lambda: _send(self.wire, data)):
            while moved < len(data):
                wanted = min(_AT_ONCE, len(data) - moved)
                call = (_RECVFROM, fd, memory.address + moved, wanted, _WAITALL, 0, 0)
                got = self._call(*call, what="recv")
                moved += got
                if got < wanted:
                    break
        return moved

    @contextmanager
    def _socket(self, kind: int, protocol: int, *, seconds: int) -> Iterator[int]:
        fd = self._call(_SOCKET, _INET, kind, protocol, what="socket")
        try:
            for option in (_RCVTIMEO, _SNDTIMEO):
                self._option(fd, option, struct.pack("<qq", seconds, 0))
            # Several cards can have the same address, each on a network of its own.
            self._option(fd, _BINDTODEVICE, self.name.encode())
            yield fd
        finally:
            self.guest.close(fd)

    def _option(self, fd: int, option: int, value: bytes) -> None:
        self._call(_SETSOCKOPT, fd, _SOL_SOCKET, option, In(value), len(value), what="setsockopt")

    def _send_to(self, fd: int, data: bytes, host: str, port: int) -> None:
        self._call(_SENDTO, fd, In(data), len(data), 0, In(_address(host, port)), 16, what=f"send to {host}")

    def _receive_from(self, fd: int) -> bytes | None:
        what = f"receive on {self.name}"
        try:
            result = self.guest.syscall(_RECVFROM, fd, Out(_ROOM), _ROOM, 0, 0, 0, what=what)
        except GuestOSError as error:
            if error.observed != errno.errorcode[errno.EAGAIN]:
                raise
            return None
        return result.outputs[0][: result.value]

    def _hardware(self) -> bytes:
        text = self.guest.read_file(f"/sys/class/net/{self.name}/address").decode().strip()
        return bytes.fromhex(text.replace(":", ""))

    def _control(self, command: int, value: bytes) -> None:
        """Struct ifreq (include/uapi/linux/if.h): a name, and 24 bytes for everything else."""
        request = self.name.encode().ljust(16, b"\0") + value.ljust(24, b"\0")
        fd = self._call(_SOCKET, _INET, _DGRAM, 0, what="socket")
        try:
            self._call(Nr.IOCTL, fd, command, In(request), what=f"ioctl {command:#x}")
        finally:
            self.guest.close(fd)

    def _call(self, number: int, *args: int | In, what: str) -> int:
        return self.guest.syscall(number, *args, what=f"{what}, {self.name}").value


def _address(host: str, port: int) -> bytes:
    """Struct sockaddr_in (include/uapi/linux/in.h)."""
    return struct.pack("<H", _INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    words = np.frombuffer(data + bytes(len(data) % 2), ">u2")
    total = int(words.sum(dtype=np.uint64))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _send(wire: socket.socket, data: bytes) -> None:
    """Send all of it, however slowly it goes: sendall() would count the time from the start."""
    left = memoryview(data)
    while left:
        left = left[wire.send(left) :]


@contextmanager
def _reader(wire: socket.socket, size: int) -> Iterator[bytearray]:
    """Read the wire meanwhile: QEMU waits, and with it the machine, for whoever does not."""
    arrived = bytearray()

    def read() -> None:
        while len(arrived) < size and (part := wire.recv(min(_MIB, size - len(arrived)))):
            arrived.extend(part)

    with _beside(wire, read):
        yield arrived


@contextmanager
def _beside(wire: socket.socket, work: Callable[[], None]) -> Iterator[None]:
    """Do something with the wire in a thread while the block runs; both are done afterwards.

    That it was not done in time shows in the bytes, which are compared.
    """

    def patiently() -> None:
        with contextlib.suppress(OSError):
            work()

    before = wire.gettimeout()
    wire.settimeout(_SECONDS)
    thread = threading.Thread(target=patiently, name="network traffic", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        wire.settimeout(before)
