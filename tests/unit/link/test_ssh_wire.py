# SPDX-License-Identifier: MIT
"""One session's use of a socket that outlives it."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from harness.errors import BadInput, GuestFailure
from harness.link.program import new_ticket
from harness.link.ssh import wire as wire_module
from harness.link.ssh.cli import pairs
from harness.link.ssh.command import as_text
from harness.link.ssh.keys import Keys
from harness.link.ssh.wire import Wire


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        yield ours, theirs


@pytest.fixture
def wire(ends):
    wire = Wire(ends[0], lambda: None)
    wire.settimeout(5)
    return wire


def test_what_an_earlier_session_left_is_dropped(ends, wire, monkeypatch):
    monkeypatch.setattr(wire_module, "_DROP_BYTES", 5)
    ticket = new_ticket()
    ends[1].sendall(b"left over" + ticket[:5] + b"and more" + ticket + b"fresh")
    wire.meet(ticket, 5)
    assert ends[1].recv(8) == ticket
    assert wire.recv(2) == b"fr"
    assert wire.recv(100) == b"esh"


def test_a_ticket_in_pieces_behind_megabytes(ends, wire):
    ticket = new_ticket()

    def other() -> None:
        ends[1].sendall(bytes(3_000_000))
        for byte in ticket:
            ends[1].sendall(bytes([byte]))

    thread = threading.Thread(target=other)
    thread.start()
    wire.meet(ticket, 10)
    thread.join(10)


def test_the_last_one_made_has_the_socket(ends, wire):
    results = []
    thread = threading.Thread(target=lambda: results.append(wire.recv(10)))
    thread.start()
    other = Wire(ends[0], lambda: None)
    ends[1].sendall(b"for the other")
    thread.join(5)
    assert results == [b""]
    other.settimeout(5)
    assert other.recv(100) == b"for the other"


def test_no_ticket_in_time(ends, wire):
    ends[1].sendall(b"something else")
    with pytest.raises(TimeoutError):
        wire.meet(new_ticket(), 0.1)


def test_closing_ends_every_wait_and_leaves_the_socket(ends, wire):
    results = []
    threads = [threading.Thread(target=lambda: results.append(wire.recv(10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wire.close()
    for thread in threads:
        thread.join(5)
    assert results == [b""] * 3
    with pytest.raises(EOFError):
        wire.send(b"x")
    ends[1].sendall(b"for the next one")
    assert wire.recv(1) == b""
    assert Wire(ends[0], lambda: None).recv(100) == b"for the next one"


def test_a_wait_ends_with_the_guest(ends):
    death = threading.Event()

    def check() -> None:
        if death.is_set():
            raise GuestFailure("it died")

    wire = Wire(ends[0], check)
    threading.Timer(0.1, death.set).start()
    before = time.monotonic()
    assert wire.recv(1) == b""
    assert time.monotonic() - before < 2
    assert str(wire.failure) == "it died"


def test_silence_is_a_timeout_and_a_closed_socket_an_end(ends, wire):
    wire.settimeout(0.05)
    with pytest.raises(TimeoutError):
        wire.recv(1)
    ends[1].close()
    assert wire.recv(1) == b""
    with pytest.raises(EOFError):
        wire.send(b"x")
    ends[0].close()
    assert wire.recv(1) == b""


def test_a_full_socket_is_a_timeout(wire):
    wire.settimeout(0.05)
    with pytest.raises(TimeoutError):
        _ = [wire.send(bytes(1 << 16)) for _ in range(1000)]


def test_tickets_differ_and_do_not_start_with_zero():
    tickets = {new_ticket() for _ in range(1000)}
    assert len(tickets) == 1000
    assert all(len(ticket) == 8 and ticket[0] for ticket in tickets)


def test_keys_are_made_for_one_session():
    one, other = Keys.fresh(), Keys.fresh()
    assert one.host != other.host
    assert one.authorized != other.authorized
    assert one.authorized.startswith("ssh-ed25519 AAAA")
    # dropbear's format (ed25519.c): the type, then private and public half in one string
    assert one.host[: 4 + 11 + 4] == b"\0\0\0\x0bssh-ed25519\0\0\0\x40"
    assert one.pinned == one.host[:15] + b"\0\0\0\x20" + one.host[-32:]


def test_commands():
    assert as_text("a | b") == "a | b"
    assert as_text(["echo", "a b", "$c"]) == "echo 'a b' '$c'"
    for nothing in ("", "  ", [], "a\0b"):
        with pytest.raises(BadInput):
            as_text(nothing)


def test_pairs_of_paths():
    assert pairs(["a:/b", "c:/d:e"], "--put") == (("a", "/b"), ("c", "/d:e"))
    for bad in ("a", ":b", "a:"):
        with pytest.raises(BadInput, match="--put"):
            pairs([bad], "--put")
