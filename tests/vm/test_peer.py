# SPDX-License-Identifier: MIT
"""The second process in a real guest, over a real port, and how it may end."""

from __future__ import annotations

import errno
import os
import time

import pytest

from harness.errors import BadInput
from harness.link import Guest, GuestOptions, GuestOSError, Nr, PeerDied


def test_it_is_started_on_request_and_is_a_child_of_the_agent(guest):
    peer = guest.peer
    assert peer.pid > 1
    assert guest.peer is peer
    status = guest.read_file(f"/proc/{peer.pid}/status").decode()
    assert "PPid:\t1\n" in status
    assert peer.hello.boot_nonce != guest.hello.boot_nonce
    assert peer.read_file("/proc/self/status") != status


def test_it_has_its_own_memory(guest):
    peer = guest.peer
    with peer.memory(b"of the peer") as memory:
        assert memory.read() == b"of the peer"
        with pytest.raises(GuestOSError) as caught:
            guest.peek(memory.address + (1 << 40), 1)
        assert caught.value.errno == errno.EFAULT


def test_it_takes_a_descriptor_over(guest):
    guest.write_file("/tmp/shared", b"handed over")
    fd = guest.open("/tmp/shared", os.O_RDONLY)
    taken = guest.peer.take(fd, guest)
    guest.close(fd)
    assert guest.peer.read_file(f"/proc/self/fd/{taken}") == b"handed over"


def test_killed_with_replies_on_the_way(guest):
    """Twenty large replies are cut somewhere; the next process's stream starts clean."""
    for _ in range(5):
        peer = guest.peer
        pending = [peer.link.submit(peer.link.protocol.ping, bytes(1 << 20)) for _ in range(20)]
        pending[0].wait(30)
        peer.kill()
        with pytest.raises(PeerDied):
            pending[-1].wait(30)
        payload = os.urandom(100_000)
        assert guest.peer.link.ping(payload, timeout=30) == payload
        assert guest.peer.pid != peer.pid


def test_a_kill_inside_the_guest_is_noticed(guest):
    peer = guest.peer
    guest.syscall(Nr.KILL, peer.pid, 9, what="kill")
    before = time.monotonic()
    with pytest.raises(PeerDied, match="another"):
        peer.link.syscall(Nr.GETPID, timeout=20)
    assert time.monotonic() - before < 10
    assert guest.peer.syscall(Nr.GETPID, what="getpid").value == guest.peer.pid


def test_its_death_leaves_nothing(guest):
    peer = guest.peer
    peer.kill()
    with pytest.raises(GuestOSError) as caught:
        guest.read_file(f"/proc/{peer.pid}/status")
    assert caught.value.errno == errno.ENOENT


def test_a_guest_without_the_port_says_so(guest):
    with (
        Guest(guest.image, GuestOptions(accel=guest.options.accel, peer=False)) as alone,
        pytest.raises(BadInput, match="no port"),
    ):
        _ = alone.peer
