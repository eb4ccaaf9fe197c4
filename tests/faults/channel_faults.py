# SPDX-License-Identifier: MIT
"""Faults of the byte stream between host and agent: ten kinds of corrupted frames each way, and its end.

Towards the host they are written by the guest itself, to a second descriptor of the agent's own port.  In
both directions an operation is under way, which has to learn of it; afterwards the stream has to go on.
"""

import random
import select
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fault_table import DEADLINE, HANG_SECONDS, PANIC_SECONDS
from stage import Stage, fault

from harness.errors import FailureKind
from harness.link import ChannelBroken, Guest, GuestOSError, In, Nr, Out, cstring
from harness.link.frames import Protocol
from harness.link.link import PendingCall

_BROKEN = FailureKind.CHANNEL_BROKEN
_READLINK = 89  # arch/x86/entry/syscalls/syscall_64.tbl
_PORT = "org.iobmd.link"
_NOBODY = 0x7E57 << 40
_FILES = 64
_VIRTIO_CONSOLE = b"0x0003"  # include/uapi/linux/virtio_ids.h


def _frame(protocol: Protocol, **changes: int) -> bytes:
    """A ping's frame with some fields changed and the right check sum for it."""
    fields = {"magic": protocol.magic, "id": _NOBODY, "op": protocol.ping, **changes}
    head = protocol.header.pack(**fields)[:-4]
    return head + struct.pack("<I", zlib.crc32(head))


def _noise(_: Protocol) -> bytes:
    return random.Random(7).randbytes(3000)


def _zeros(_: Protocol) -> bytes:
    return bytes(3000)


def _text(_: Protocol) -> bytes:
    return b"Loading Linux 6.1 ...\r\n" * 40


def _wrong_magic(protocol: Protocol) -> bytes:
    return _frame(protocol, magic=protocol.magic ^ 1)


def _wrong_check(protocol: Protocol) -> bytes:
    whole = bytearray(_frame(protocol))
    whole[-1] ^= 0x80
    return bytes(whole)


def _flipped_bit(protocol: Protocol) -> bytes:
    whole = bytearray(_frame(protocol))
    whole[9] ^= 0x10
    return bytes(whole)


def _magics_only(protocol: Protocol) -> bytes:
    return protocol.magic.to_bytes(4, "little") * 100 + b"\n"


def _cut_header(protocol: Protocol) -> bytes:
    return _frame(protocol)[:20]


def _too_long(protocol: Protocol) -> bytes:
    """Sound, but it promises more than a frame may have; the agent steps over what it promised."""
    return _frame(protocol, length=protocol.payload_max + 1) + bytes(protocol.payload_max + 1)


def _unknown_operation(protocol: Protocol) -> bytes:
    return _frame(protocol, op=999)


def _reserved_set(protocol: Protocol) -> bytes:
    return _frame(protocol, reserved=1)


def _too_long_reply(protocol: Protocol) -> bytes:
    return _frame(protocol, length=protocol.payload_max + 1, flags=protocol.reply)


def _reply_to_nobody(protocol: Protocol) -> bytes:
    return _frame(protocol, flags=protocol.reply)


def _request(protocol: Protocol) -> bytes:
    return _frame(protocol)


_BOTH: dict[str, Callable[[Protocol], bytes]] = {
    "random bytes": _noise,
    "zeros": _zeros,
    "a boot loader's text": _text,
    "a frame with a wrong magic": _wrong_magic,
    "a frame with a wrong check sum": _wrong_check,
    "a frame with one bit flipped": _flipped_bit,
    "nothing but magics": _magics_only,
    "a header that is cut off": _cut_header,
}
SOUND_GARBAGE = _BOTH
"""What is no frame in either direction."""
_TO_GUEST = {
    **_BOTH,
    "a frame longer than any may be": _too_long,
    "a sound frame, an operation that is none": _unknown_operation,
    "a sound frame with reserved bits set": _reserved_set,
}
_TO_HOST = {
    **_BOTH,
    "a frame longer than any may be": _too_long_reply,
    "a reply that nobody asked for": _reply_to_nobody,
    "a request instead of a reply": _request,
}


def _towards_guest(make: Callable[[Protocol], bytes]) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        with stage.guest() as guest, _under_way(guest) as waiting:
            data = make(guest.link.protocol)
            with stage.injection():
                send(guest, data)
                # What could still become a frame is known to be none when the next one comes.
                guest.link.submit(guest.link.protocol.ping)
                waiting.wait(30.0)
            _goes_on(guest)

    return inject


def _towards_host(make: Callable[[Protocol], bytes]) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        with stage.guest() as guest:
            port = _second_descriptor(guest)
            data = make(guest.link.protocol)
            with _under_way(guest) as waiting:
                with stage.injection():
                    guest.link.start(Nr.WRITE, port, In(data), len(data))
                    waiting.wait(30.0)
                _goes_on(guest)

    return inject


for _direction, _kinds, _build in (
    ("to the guest", _TO_GUEST, _towards_guest),
    ("to the host", _TO_HOST, _towards_host),
):
    for _what, _make in _kinds.items():
        _inject = _build(_make)
        _inject.__name__ = f"{_direction} {_what}".replace(",", "").replace(" ", "_").replace("'", "")
        fault("channel", f"{_direction}: {_what}", _BROKEN, PANIC_SECONDS)(_inject)


@fault("channel", "to the guest: a frame whose payload never comes", _BROKEN, HANG_SECONDS)
def promised_to_guest(stage: Stage) -> None:
    """What is asked next is taken for the payload.  The stream goes on behind as much as was promised."""
    with stage.guest() as guest, stage.injection():
        promised = _frame(guest.link.protocol, length=4096)
        send(guest, promised)
        guest.link.syscall(Nr.GETPID, timeout=DEADLINE)


@fault("channel", "to the host: a frame whose payload never comes", _BROKEN, HANG_SECONDS)
def promised_to_host(stage: Stage) -> None:
    with stage.guest() as guest:
        port = _second_descriptor(guest)
        promised = _frame(guest.link.protocol, length=4096, flags=guest.link.protocol.reply)
        with stage.injection():
            guest.link.syscall(Nr.WRITE, port, In(promised), len(promised), timeout=DEADLINE)


@fault("channel", "the guest's port is taken away from its driver", FailureKind.QEMU_DIED, PANIC_SECONDS)
def port_unplugged(stage: Stage) -> None:
    """An agent without its host ends the guest: that is how it is called."""
    with stage.guest() as guest, stage.injection():
        guest.write_file("/sys/bus/virtio/drivers/virtio_console/unbind", _serial_device(guest))


@fault("channel", "the host's end of the port is shut down", FailureKind.QEMU_DIED, PANIC_SECONDS)
def port_shut(stage: Stage) -> None:
    """Likewise: the agent sees the end of its host, and ends the guest."""
    with stage.guest() as guest, stage.injection():
        guest.machine.port(_PORT).shutdown(socket.SHUT_RDWR)
        guest.link.ping(timeout=30.0)


def send(guest: Guest, data: bytes) -> None:
    """Write past the link, into the same socket."""
    port, view = guest.machine.port(_PORT), memoryview(data)
    while view:
        select.select([], [port], [], 30.0)
        view = view[port.send(view) :]


def _goes_on(guest: Guest) -> None:
    """A stretch of garbage may be reported in two parts; more would be another fault."""
    try:
        guest.link.ping(timeout=PANIC_SECONDS)
    except ChannelBroken:
        guest.link.ping(timeout=PANIC_SECONDS)
    assert guest.link.hello(PANIC_SECONDS) == guest.hello


@contextmanager
def _under_way(guest: Guest) -> Iterator[PendingCall]:
    """A read that waits for a byte; it gets it in the end."""
    ends = guest.syscall(Nr.PIPE, Out(8), what="pipe").outputs[0]
    reader, writer = struct.unpack("2i", ends)
    yield guest.link.start(Nr.READ, reader, Out(1), 1)
    guest.syscall(Nr.WRITE, writer, In(b"x"), 1, what="write")


def _second_descriptor(guest: Guest) -> int:
    """Another descriptor of the agent's port; those that pass through one name of it the agent refuses."""
    own = guest.syscall(Nr.PIDFD_OPEN, 1, 0, what="pidfd_open").value
    for number in range(_FILES):
        found = guest.link.syscall(_READLINK, cstring(f"/proc/self/fd/{number}"), Out(64), 64)
        if found.value > 0 and found.outputs[0].startswith(b"/dev/vport"):
            return guest.syscall(Nr.PIDFD_GETFD, own, number, 0, what="pidfd_getfd").value
    raise AssertionError("the agent has no port open")


def _serial_device(guest: Guest) -> bytes:
    kinds = {number: f"/sys/bus/virtio/devices/virtio{number}/device" for number in range(8)}
    for number, path in kinds.items():
        with suppress(GuestOSError):
            if guest.read_file(path).strip() == _VIRTIO_CONSOLE:
                return f"virtio{number}".encode()
    raise AssertionError("the guest has no virtio console")
