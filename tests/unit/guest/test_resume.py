# SPDX-License-Identifier: MIT
"""HOLD and RESUME against the real agent: what lies before the ticket is dropped, the nonce comes back."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.link import Link, RequestMalformed

TICKET = 0x1234_5678_9ABC_DEF1


def hold(agent, protocol, ident=7):
    agent.request(protocol.hold, ident, protocol.hold_record.pack(ticket=TICKET))
    assert [(frame.id, frame.status) for frame in agent.frames(until=ident)] == [(ident, 0)]


def stale(protocol):
    """What a life before may have left on the wire."""
    whole = protocol.encode(protocol.ping, 99, b"old" * 100)
    call = protocol.encode(protocol.hello, 98)
    return {
        "nothing": b"",
        "whole requests": whole + call,
        "half a header": whole[:20],
        "a header and half of its payload": whole[:100],
        "half, then whole": whole[:50] + call + whole,
        "noise": os.urandom(5000),
        "a megabyte": whole * 3000,
    }


KINDS = (
    "nothing", "whole requests", "half a header", "a header and half of its payload", "half, then whole",
    "noise", "a megabyte",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_everything_before_the_ticket_is_dropped(agent, protocol, kind):
    left = stale(protocol)[kind]
    hold(agent, protocol)
    agent.send(left)
    agent.request(protocol.hello, TICKET)
    frames = agent.frames(until=TICKET)
    assert [frame.id for frame in frames] == [TICKET]
    agent.request(protocol.ping, 5, b"on we go")
    assert [frame.payload for frame in agent.frames(until=5)] == [b"on we go"]


@given(st.binary(max_size=3000))
def test_no_bytes_whatever_get_past_it(agent, protocol, noise):
    hold(agent, protocol)
    agent.send(noise)
    agent.request(protocol.hello, TICKET)
    assert [frame.id for frame in agent.frames(until=TICKET)] == [TICKET]


def test_a_link_with_the_ticket_goes_on_where_another_stopped(agent, protocol):
    first = Link(agent.socket, protocol.layouts, agent.check)
    boot_nonce = first.hello().boot_nonce
    first.hold(TICKET)
    first.retire("a snapshot follows")
    second = Link(agent.socket, protocol.layouts, agent.check, ticket=TICKET)
    assert second.hello().boot_nonce == boot_nonce
    nonce = os.urandom(16)
    resumed = second.resume(nonce, 0)
    assert (resumed.boot_nonce, resumed.restore_nonce, resumed.error) == (boot_nonce, nonce, 0)
    assert second.hello().restore_nonce == nonce


def test_outside_a_guest_the_clock_is_left_alone(agent, protocol):
    link = Link(agent.socket, protocol.layouts, agent.check)
    resumed = link.resume(os.urandom(16), 0)
    assert abs(resumed.realtime_ns - time.time_ns()) < 60 * 10**9
    assert abs(time.time() - resumed.realtime_ns / 1e9) < 60
    assert 0 < resumed.monotonic_ns <= time.monotonic_ns()


@pytest.mark.parametrize("payload", [b"", bytes(7), bytes(9)], ids=["empty", "short", "long"])
def test_a_hold_of_another_size_is_malformed(agent, protocol, payload):
    link = Link(agent.socket, protocol.layouts, agent.check)
    with pytest.raises(RequestMalformed):
        link.submit(protocol.hold, payload).wait(5)
    assert link.ping(b"x") == b"x"


def test_a_ticket_of_nought_is_malformed(agent, protocol):
    link = Link(agent.socket, protocol.layouts, agent.check)
    with pytest.raises(RequestMalformed):
        link.hold(0)
    assert link.ping(b"x") == b"x"


@pytest.mark.parametrize("size", [0, 23, 25])
def test_a_resume_of_another_size_is_malformed(agent, protocol, size):
    link = Link(agent.socket, protocol.layouts, agent.check)
    with pytest.raises(RequestMalformed):
        link.submit(protocol.resume, bytes(size)).wait(5)
    assert not any(link.hello().restore_nonce)
