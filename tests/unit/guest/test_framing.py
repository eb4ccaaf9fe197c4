# SPDX-License-Identifier: MIT
"""Bytes that are no frame, frames that are not quite right, and streams that end early."""

from __future__ import annotations

import random
import socket
import threading
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st


def noise(frames, protocol):
    """Bytes the agent says were no frame."""
    for frame in frames:
        if frame.op == protocol.noise:
            assert (frame.id, protocol.statuses[frame.status]) == (0, "LINK_DESYNCHRONISED")
    return sum(protocol.noise_skipped(frame.payload) for frame in frames if frame.op == protocol.noise)


def garbage(protocol):
    ping = protocol.encode(protocol.ping, 1, b"abc")
    magic = protocol.magic.to_bytes(4, "little")
    bad_crc = ping[:31] + bytes([ping[31] ^ 1])
    huge = protocol.header.pack(magic=protocol.magic, length=0xFFFFFFFF, id=1, op=protocol.ping)
    return {
        "zeros": bytes(1000),
        "one byte": b"x",
        "text": b"login: root\r\nPassword:\r\n",
        "random": random.Random(1).randbytes(50_000),
        "magic alone": magic,
        "magic over and over": magic * 100,
        "beginnings of the magic": magic[:1] * 9 + magic[:2] * 9 + magic[:3] * 9,
        "header without its last byte": ping[:31],
        "header with a wrong CRC": bad_crc,
        "many headers with wrong CRCs": bad_crc * 300,
        "huge length without a CRC": huge,
        "a reader's buffer and more": b"IBL" * 100_000,
    }


KINDS = [
    "zeros", "one byte", "text", "random", "magic alone", "magic over and over", "beginnings of the magic",
    "header without its last byte", "header with a wrong CRC", "many headers with wrong CRCs",
    "huge length without a CRC", "a reader's buffer and more",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pause", [0.0, 0.03], ids=["at once", "after a pause"])
def test_garbage_is_counted_and_the_next_frame_answered(agent, protocol, kind, pause):
    junk = garbage(protocol)[kind]
    agent.send(junk)
    time.sleep(pause)
    agent.request(protocol.ping, 7, b"hello")
    frames = agent.frames(7)
    assert noise(frames, protocol) == len(junk)
    assert frames[-1].payload == b"hello"
    assert len(frames) <= 5


def test_every_kind_is_tried(protocol):
    assert sorted(KINDS) == sorted(garbage(protocol))


def test_garbage_is_reported_without_a_frame_behind_it(agent, protocol):
    agent.send(b"?" * 100)
    frames = agent.frames(0, seconds=2.0)
    assert noise(frames, protocol) == 100


def test_a_flood_of_garbage_is_not_answered_with_a_flood(agent, protocol):
    junk = bytes(5 << 20)
    agent.send(junk)
    agent.request(protocol.ping, 9)
    frames = agent.frames(9)
    assert noise(frames, protocol) == len(junk)
    # At least one per MiB is promised; pauses of the sender may add some.
    assert 5 <= len(frames) - 1 < 50


def test_a_frame_may_arrive_byte_by_byte(agent, protocol):
    agent.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for byte in protocol.encode(protocol.ping, 3, b"slowly"):
        agent.send(bytes([byte]))
    assert [frame.payload for frame in agent.frames(3)] == [b"slowly"]


def test_frames_may_arrive_all_at_once(agent, protocol):
    agent.send(b"".join(protocol.encode(protocol.ping, i, bytes([i])) for i in range(1, 101)))
    got = [(frame.id, frame.payload) for frame in agent.frames(100)]
    assert got == [(i, bytes([i])) for i in range(1, 101)]


@pytest.mark.parametrize("extra", [1, 100_000])
def test_an_oversized_payload_is_skipped_and_named(agent, protocol, extra):
    payload = bytes(protocol.payload_max + extra)
    agent.send(protocol.encode(protocol.ping, 5, payload) + protocol.encode(protocol.ping, 6, b"next"))
    too_big, ping = agent.frames(6)
    assert (too_big.id, protocol.statuses[too_big.status], too_big.payload) == (5, "LINK_TOO_BIG", b"")
    assert ping.payload == b"next"


def test_the_largest_payload_comes_back_whole(agent, protocol):
    payload = random.Random(2).randbytes(protocol.payload_max)
    sender = threading.Thread(target=agent.request, args=(protocol.ping, 5, payload))
    sender.start()
    assert agent.frames(5)[0].payload == payload
    sender.join()


@pytest.mark.parametrize("op", [0, 4, 99, 999, 0xFFFF])
def test_unknown_operations_are_answered(agent, protocol, op):
    agent.request(op, 5, b"payload")
    (frame,) = agent.frames(5)
    assert (frame.op, protocol.statuses[frame.status]) == (op, "LINK_UNKNOWN_OP")


@pytest.mark.parametrize("fields", [{"flags": 1}, {"flags": 0x8000}, {"status": 1}])
def test_a_request_that_is_no_request_is_malformed(agent, protocol, fields):
    agent.request(protocol.ping, 5, b"", **fields)
    (frame,) = agent.frames(5)
    assert protocol.statuses[frame.status] == "LINK_MALFORMED"


def test_id_zero_is_malformed(agent, protocol):
    agent.request(protocol.ping, 0)
    (frame,) = agent.frames(0)
    assert protocol.statuses[frame.status] == "LINK_MALFORMED"


def test_the_reserved_word_is_not_ignored(agent, protocol):
    head = bytearray(protocol.encode(protocol.ping, 5)[:28])
    head[protocol.header.offset("reserved")] = 1
    agent.send(bytes(head) + zlib.crc32(head).to_bytes(4, "little"))
    (frame,) = agent.frames(5)
    assert protocol.statuses[frame.status] == "LINK_MALFORMED"


def test_hello_takes_no_payload(agent, protocol):
    agent.request(protocol.hello, 5, b"x")
    (frame,) = agent.frames(5)
    assert protocol.statuses[frame.status] == "LINK_MALFORMED"


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 34])
def test_the_agent_ends_with_its_host(agent, protocol, cut):
    agent.send(protocol.encode(protocol.ping, 5, b"abc")[:cut])
    agent.socket.close()
    assert agent.process.wait(5) == 0


@given(data=st.data())
def test_a_damaged_frame_never_ends_the_agent(agent, protocol, data):
    """Flip, drop and insert bytes; behind enough padding the next frame is understood whatever happened."""
    op = data.draw(st.sampled_from([protocol.ping, protocol.hello, 99]))
    frame = bytearray(protocol.encode(op, 5, data.draw(st.binary(max_size=100))))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["flip", "drop", "insert"])):
            case "flip":
                frame[at] ^= 1 << data.draw(st.integers(0, 7))
            case "drop" if len(frame) > 1:
                del frame[at]
            case _:
                frame.insert(at, data.draw(st.integers(0, 255)))
    agent.send(bytes(frame) + bytes(200))
    agent.request(protocol.ping, 6, b"still there?")
    assert agent.frames(6)[-1].payload == b"still there?"
    agent.check()
