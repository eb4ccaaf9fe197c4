# SPDX-License-Identifier: MIT
"""The second process: the agent starts it, it dies, another follows; here as processes of this host."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness.link import Nr, Peer, PeerDied, PeerNotStarted, RequestMalformed, cstring
from harness.link.frames import Decoder
from harness.link.link import Link


@pytest.fixture
def parent(agent_build, link_layouts, on_host):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        host, guest = socket.socketpair()
        with host, guest:
            argv = [agent_build.binary, "--fd", str(fd), "--peer-fd", str(guest.fileno())]
            process = subprocess.Popen(argv, pass_fds=[fd, guest.fileno()])
            theirs.close()
            try:
                parent = on_host(Link(ours, link_layouts, lambda: None))
                parent.socket = host
                yield parent
            finally:
                process.kill()
                process.wait()


@pytest.fixture
def peer(parent):
    return start(parent)


def start(parent):
    return Peer(parent, parent.socket, lambda: None)


def exists(pid):
    return Path(f"/proc/{pid}").exists()


def test_it_is_another_process_with_its_own_descriptors(parent, peer):
    assert peer.pid != parent.pid
    assert peer.syscall(Nr.GETPID, what="getpid").value == peer.pid
    assert f"PPid:\t{parent.pid}\n" in Path(f"/proc/{peer.pid}/status").read_text()
    fd = parent.open("/dev/null")
    assert peer.link.syscall(Nr.CLOSE, fd).value == -errno.EBADF
    assert len(list(Path(f"/proc/{peer.pid}/fd").iterdir())) == 4  # the standard ones, and the link


def test_descriptors_are_handed_over(parent, peer, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"of the parent")
    fd = parent.open(str(file), os.O_RDONLY)
    taken = peer.take(fd, parent)
    parent.close(fd)
    assert Path(f"/proc/{peer.pid}/fd/{taken}").readlink() == file
    assert peer.read_file(f"/proc/self/fd/{taken}") == b"of the parent"


def test_a_kill_waits_for_the_end(parent, peer):
    peer.kill()
    assert not peer.alive
    with pytest.raises(PeerDied, match="it was killed"):
        peer.syscall(Nr.GETPID, what="getpid")
    peer.kill()
    second = start(parent)
    assert second.alive
    assert second.pid != peer.pid
    assert not exists(peer.pid)


def test_starting_one_ends_the_one_before(parent, peer):
    other = start(parent)
    assert other.alive
    assert not exists(peer.pid)
    assert not peer.alive


def test_an_end_that_nobody_ordered_is_noticed(parent, peer):
    os.kill(peer.pid, signal.SIGKILL)
    before = time.monotonic()
    with pytest.raises(PeerDied, match="another"):
        peer.link.syscall(Nr.GETPID, timeout=20)
    assert time.monotonic() - before < 5
    assert start(parent).alive


def test_whoever_waits_is_told(peer):
    reader = int.from_bytes(peer.syscall(Nr.PIPE, _out(8), what="pipe").outputs[0][:4], "little")
    failures = []

    def wait():
        try:
            peer.link.syscall(Nr.READ, reader, _out(1), 1, timeout=20)
        except PeerDied as error:
            failures.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    peer.kill()
    for thread in threads:
        thread.join(10)
    assert len(failures) == 3


def until_stopped(pid):
    """A stop signal reaches one thread after the other; wait for the last of them."""
    deadline = time.monotonic() + 10
    while any(
        task.read_text().rpartition(")")[2].split()[0] != "T"
        for task in Path(f"/proc/{pid}").glob("task/*/stat")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_next_one_answers_none_of_the_last_ones_requests(parent, peer, tmp_path):
    """Requests the dead never read lie in the port; they must not be executed by another."""
    os.kill(peer.pid, signal.SIGSTOP)
    until_stopped(peer.pid)
    for number in range(20):
        peer.link.start(Nr.OPEN, cstring(str(tmp_path / f"stale{number}")), os.O_CREAT | os.O_WRONLY, 0o600)
    peer.kill()
    second = start(parent)
    for _ in range(10):
        assert second.syscall(Nr.GETPID, what="getpid").value == second.pid
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 20, 32, 33, 100_000])
def test_half_a_request_and_half_a_reply_are_stepped_over(parent, peer, cut):
    """The dead one had read a part of a request, and its last reply was cut, too."""
    protocol = peer.link.protocol
    peer.kill()
    frame = protocol.encode(protocol.ping, 7, bytes(1 << 20))
    parent.socket.setblocking(True)
    parent.socket.sendall(frame[-cut:] + frame[:40])
    second = start(parent)
    assert second.link.ping(b"clean") == b"clean"


def test_bytes_before_the_ticket_are_dropped_by_the_host(protocol):
    ticket = 0x1234_5678_9ABC
    reply = protocol.encode(protocol.hello, ticket, bytes(protocol.hello_record.size), flags=protocol.reply)
    stale = protocol.encode(protocol.ping, 5, bytes(5000), flags=protocol.reply)[:1000]
    for step in (1, 7, 4096):
        decoder, got = Decoder(protocol, protocol.hello_reply(ticket)), []
        stream = stale + stale + reply + reply
        for at in range(0, len(stream), step):
            decoder.feed(stream[at : at + step])
            while frame := decoder.next():
                got.append(frame.id)
        assert got == [ticket, ticket]
        assert decoder.take_noise() is None


@pytest.mark.parametrize("payload", [b"", bytes(8), bytes(7), b"x" * 9])
def test_a_start_without_a_ticket_is_malformed(parent, payload):
    with pytest.raises(RequestMalformed):
        parent.link.submit(parent.link.protocol.peer, payload).wait(5)


def test_a_start_that_fails_says_why(parent):
    """No room for another descriptor of the program: the agent's answer carries the errno."""
    parent.syscall(302, 0, 6, _limit(0), 0, what="prlimit")  # RLIMIT_NPROC: posix_spawn fails
    try:
        peer = start(parent)
    except PeerNotStarted as error:
        assert "errno 11" in error.observed  # noqa: PT017 - root is not limited
    else:
        assert peer.alive


def test_it_ends_with_its_parent(parent, peer):
    os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{peer.pid}/exe").is_symlink() and _is_running(peer.pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _out(size):
    from harness.link import Out

    return Out(size)


def _limit(value):
    from harness.link import In

    return In(value.to_bytes(8, "little") * 2)
