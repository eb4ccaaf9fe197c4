# SPDX-License-Identifier: MIT
"""A link to a peer that misbehaves: the test itself is the agent."""

from __future__ import annotations

import random
import socket
import threading
import time

import pytest

from harness.errors import FailureKind, GuestFailure
from harness.link import channel
from harness.link.errors import ChannelBroken, RequestRejected, RequestTimedOut
from harness.link.frames import Decoder
from harness.link.link import Link


class Dead(GuestFailure):
    """What the machine's check would raise."""


class Peer:
    """The agent's end, by hand."""

    def __init__(self, sock, protocol):
        self.sock, self.protocol, self.decoder = sock, protocol, Decoder(protocol)
        sock.settimeout(5)

    def request(self):
        while (frame := self.decoder.next()) is None:
            self.decoder.feed(self.sock.recv(1 << 16))
        return frame

    def frame(self, to, payload=b"", **fields):
        fields = {"flags": self.protocol.reply, "status": 0, **fields}
        return self.protocol.encode(to.op, to.id, payload, **fields)

    def send(self, data):
        """Without waiting until somebody reads."""
        thread = threading.Thread(target=self.sock.sendall, args=(data,))
        thread.start()
        return thread

    def reply(self, to, payload=b"", **fields):
        self.sock.sendall(self.frame(to, payload, **fields))


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def peer(ends, protocol):
    return Peer(ends[1], protocol)


@pytest.fixture
def link(ends, link_layouts, monkeypatch):
    # How long a link waits for the reason of a closed stream; here there will be none.
    monkeypatch.setattr("harness.link.link._DEATH_SECONDS", 0.1)
    return Link(ends[0], link_layouts, lambda: None, lambda: ["last words"])


GARBAGE = {
    "text": b"[    1.234567] Kernel panic - not syncing",
    "zeros": bytes(100),
    "random": random.Random(3).randbytes(70_000),
    "half a magic": b"IB",
    "magic": b"IBL1" + bytes(28),
}


@pytest.mark.parametrize("junk", GARBAGE.values(), ids=GARBAGE)
def test_garbage_fails_what_is_in_flight_once_and_the_link_goes_on(link, peer, junk):
    first = [link.submit(link.protocol.ping, b"a"), link.submit(link.protocol.ping, b"b")]
    requests = [peer.request(), peer.request()]
    # The replies follow, late and unwanted; nobody may get them.
    sender = peer.send(junk + b"".join(peer.frame(request, b"wrong") for request in requests))
    for one in first:
        with pytest.raises(ChannelBroken, match=f"{len(junk)} bytes|bytes arrived") as caught:
            one.wait(5)
        assert caught.value.kind is FailureKind.CHANNEL_BROKEN
    second = link.submit(link.protocol.ping, b"c")
    request = peer.request()
    answer = threading.Thread(target=lambda: (sender.join(), peer.reply(request, b"c")))
    answer.start()
    assert second.wait(5).payload == b"c"
    answer.join()


def test_the_first_bytes_of_garbage_are_shown(link, peer):
    pending = link.submit(link.protocol.ping)
    peer.sock.sendall(b"Oops: 0000")
    with pytest.raises(ChannelBroken, match="10 bytes: 4f 6f 70 73 3a 20 30 30 30 30"):
        pending.wait(5)


def test_a_frame_that_never_ends_is_found_by_the_reply_inside_of_it(link, peer):
    pending = link.submit(link.protocol.ping, b"a")
    promised = link.protocol.encode(link.protocol.ping, 77, bytes(4096), flags=link.protocol.reply)[:32]
    peer.sock.sendall(promised)
    peer.reply(peer.request(), b"a")
    with pytest.raises(ChannelBroken, match="inside of a frame that does not end"):
        pending.wait(0.2)
    again = link.submit(link.protocol.ping, b"b")
    peer.reply(peer.request(), b"b")
    assert again.wait(5).payload == b"b"


def test_a_frame_that_comes_slowly_is_no_broken_one(link, peer):
    pending = link.submit(link.protocol.ping, b"a")
    whole = peer.frame(peer.request(), b"a" * 4000)
    peer.sock.sendall(whole[:2000])
    with pytest.raises(RequestTimedOut):
        pending.wait(0.2)
    peer.sock.sendall(whole[2000:])
    again = link.submit(link.protocol.ping, b"b")
    peer.request()  # the sign of life that the time-out asked for
    peer.reply(peer.request(), b"b")
    assert again.wait(5).payload == b"b"


@pytest.mark.parametrize("lives", [True, False])
def test_an_agent_that_waits_for_the_rest_of_a_frame_answers_behind_it(link, peer, lives):
    size = link.protocol.payload_max + link.protocol.header.size

    def agent():
        seen = 0
        while seen < size:
            seen += len(peer.sock.recv(1 << 16))
        for _ in range(2):  # the first ping is told of the noise, and so may be the second
            noise = link.protocol.noise_record.pack(skipped=size)
            status = {"flags": link.protocol.reply, "status": 6}
            peer.sock.sendall(link.protocol.encode(link.protocol.noise, 0, noise, **status))
        peer.reply(peer.request())

    thread = threading.Thread(target=agent)
    if lives:
        thread.start()
    assert link.answers_behind(1.0 if lives else 0.2) is lives
    if lives:
        thread.join()


def test_a_header_with_a_wrong_crc_is_garbage(link, peer):
    pending = link.submit(link.protocol.ping)
    frame = bytearray(peer.frame(peer.request()))
    frame[-1] ^= 1
    peer.sock.sendall(frame)
    with pytest.raises(ChannelBroken):
        pending.wait(5)


def test_a_length_beyond_the_limit_is_garbage(link, peer):
    pending = link.submit(link.protocol.ping)
    sender = peer.send(peer.frame(peer.request(), bytes(link.protocol.payload_max + 1)))
    with pytest.raises(ChannelBroken):
        pending.wait(5)
    follower = link.submit(link.protocol.ping)
    with pytest.raises(RequestTimedOut):
        follower.wait(0.1)
    sender.join()


def test_noise_on_the_agents_side_is_told(link, peer, protocol):
    pending = link.submit(protocol.ping)
    request = peer.request()
    noise = protocol.encode(
        protocol.noise, 0, protocol.noise_record.pack(skipped=17), flags=protocol.reply,
        status={name: number for number, name in protocol.statuses.items()}["LINK_DESYNCHRONISED"],
    )  # fmt: skip
    peer.sock.sendall(noise + peer.frame(request))
    with pytest.raises(ChannelBroken, match="17 bytes reached the agent"):
        pending.wait(5)
    pending = link.submit(protocol.ping)
    peer.reply(peer.request())
    pending.wait(5)


@pytest.mark.parametrize("what", ["unknown id", "no reply flag"])
def test_a_frame_nobody_asked_for(link, peer, protocol, what):
    pending = link.submit(protocol.ping)
    request = peer.request()
    if what == "unknown id":
        peer.sock.sendall(protocol.encode(protocol.ping, 12345, flags=protocol.reply))
    else:
        peer.reply(request, flags=0)
    with pytest.raises(ChannelBroken, match="nobody asked for"):
        pending.wait(5)


def test_an_unknown_status_is_a_rejection(link, peer):
    pending = link.submit(link.protocol.ping)
    peer.reply(peer.request(), status=4711)
    with pytest.raises(RequestRejected, match="status 4711"):
        pending.wait(5)


def test_an_echo_that_differs_is_noticed(link, peer):
    thread = threading.Thread(target=lambda: peer.reply(peer.request(), b"other"))
    thread.start()
    with pytest.raises(ChannelBroken, match="echo differs"):
        link.ping(b"mine")
    thread.join()


@pytest.mark.parametrize("payload", [b"", bytes(8), bytes(112)])
def test_a_hello_of_another_protocol_is_noticed(link, peer, payload):
    thread = threading.Thread(target=lambda: peer.reply(peer.request(), payload))
    thread.start()
    with pytest.raises(ChannelBroken, match="another protocol"):
        link.hello()
    thread.join()


def test_a_syscall_reply_of_the_wrong_length_is_noticed(link, peer):
    thread = threading.Thread(target=lambda: peer.reply(peer.request(), bytes(9)))
    thread.start()
    with pytest.raises(ChannelBroken, match="9 bytes where 8 were due"):
        link.syscall(39)
    thread.join()


@pytest.mark.parametrize("cut", [0, 10, 32, 40])
def test_the_end_of_the_stream_is_told(link, peer, cut):
    pending = [link.submit(link.protocol.ping, bytes(20)) for _ in range(2)]
    request = peer.request()
    peer.request()
    peer.sock.sendall(peer.frame(request, bytes(20))[:cut])
    peer.sock.close()
    for one in pending:
        with pytest.raises(ChannelBroken, match="closed") as caught:
            one.wait(5)
        assert caught.value.evidence == ("last words",)
        assert ("into a frame" in str(caught.value)) == bool(cut)


def test_a_reply_before_the_end_of_the_stream_counts(link, peer):
    pending = link.submit(link.protocol.ping, b"x")
    peer.reply(peer.request(), b"last")
    peer.sock.close()
    assert pending.wait(5).payload == b"last"
    with pytest.raises(ChannelBroken, match="closed"):
        link.ping()


def test_the_death_of_the_guest_is_told_at_once(ends, link_layouts):
    died = time.monotonic() + 0.2

    def check():
        if time.monotonic() > died:
            raise Dead("QEMU died")

    link = Link(ends[0], link_layouts, check)
    waiting, seen = [], []

    def wait():
        try:
            waiting.append(link.submit(link.protocol.ping).wait(30))
        except Dead:
            seen.append(time.monotonic())

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 4
    assert max(seen) - died < 1


def test_the_death_of_the_guest_explains_a_closed_stream(ends, link_layouts):
    died = []

    def check():
        if died and time.monotonic() > died[0]:
            raise Dead("QEMU died")

    link = Link(ends[0], link_layouts, check)
    pending = link.submit(link.protocol.ping)
    died.append(time.monotonic() + 0.1)  # the process is reaped later than its sockets close
    ends[1].close()
    with pytest.raises(Dead):
        pending.wait(5)


def test_writing_has_a_deadline(link):
    """Nobody reads: the socket fills up."""
    pending = [link.submit(link.protocol.ping, bytes(1 << 20)) for _ in range(3)]
    for one in pending:
        before = time.monotonic()
        with pytest.raises(RequestTimedOut, match="could not be sent") as caught:
            one.wait(0.2)
        assert time.monotonic() - before < 1
        assert caught.value.agent_answers is None


def test_a_frame_that_was_begun_is_completed(link, peer):
    """A request that timed out half sent must not leave half a frame in front of the next."""
    pending = link.submit(link.protocol.ping, bytes(1 << 20))
    never = link.submit(link.protocol.ping, b"never begun")
    for one in (pending, never):
        with pytest.raises(RequestTimedOut):
            one.wait(0.05)
    after = link.submit(link.protocol.ping, b"after")
    answers = []

    def serve():
        for _ in range(2):
            request = peer.request()
            answers.append(len(request.payload))
            peer.reply(request, request.payload[:5])

    thread = threading.Thread(target=serve)
    thread.start()
    assert after.wait(5).payload == b"after"
    thread.join()
    assert answers == [1 << 20, 5]


def test_a_writer_is_not_held_up_by_a_waiting_reader(link, peer, monkeypatch):
    """One thread sleeps in poll() for its reply; another one's large frame goes out all the same."""
    monkeypatch.setattr(channel, "_CHECK_SECONDS", 60)
    idle = link.submit(link.protocol.ping, b"slow")
    slow = peer.request()
    waiter = threading.Thread(target=lambda: idle.wait(30))
    waiter.start()
    while not link._channel._pumping:
        assert waiter.is_alive()
    received = []

    def answer():
        received.append(peer.request())
        peer.reply(received[0], b"ok")
        peer.reply(slow)

    thread = threading.Thread(target=answer)
    thread.start()
    assert link.submit(link.protocol.ping, bytes(1 << 20)).wait(5).payload == b"ok"
    thread.join()
    waiter.join()
    assert len(received[0].payload) == 1 << 20
