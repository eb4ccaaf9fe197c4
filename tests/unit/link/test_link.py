# SPDX-License-Identifier: MIT
"""A link to a healthy agent: order, parallel work, operations that hang."""

from __future__ import annotations

import os
import random
import signal
import struct
import threading
import time
from pathlib import Path

import pytest

from harness.deadlines import Deadlines
from harness.errors import BadInput, GuestFailure
from harness.link.channel import Channel
from harness.link.errors import GuestBusy, OperationTimedOut, RequestTimedOut, UnknownOperation
from harness.link.link import Link
from harness.link.syscalls import In, Nr, Out


@pytest.fixture
def link(agent, link_layouts):
    return Link(agent.socket, link_layouts, agent.check)


class Stuck:
    """System calls that hang until they are let go: reads of an empty pipe in the agent."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.reader, self.writer = struct.unpack("2i", link.syscall(Nr.PIPE, Out(8)).outputs[0])

    def start(self):
        from harness.link.syscalls import Call

        call = Call(self.link.protocol, Nr.READ, (self.reader, Out(1), 1))
        pending = self.link.submit(self.link.protocol.syscall, call.payload)
        return lambda timeout=5.0: call.result(pending.wait(timeout).payload)

    def let_go(self, byte: bytes = b"x") -> None:
        # Not by a system call: with all workers stuck, that would wait behind them.
        with Path(f"/proc/{self.link.hello().pid}/fd/{self.writer}").open("wb", buffering=0) as pipe:
            pipe.write(byte)


@pytest.fixture
def stuck(link):
    return Stuck(link)


def test_hello_says_who_answers(link, agent):
    hello = link.hello()
    assert (hello.pid, hello.protocol, hello.page_size) == (
        agent.process.pid,
        link.protocol.version,
        os.sysconf("SC_PAGESIZE"),
    )
    assert hello.release == os.uname().release
    assert hello.payload_max == link.protocol.payload_max
    assert hello.workers == link.workers > 1
    assert hello == link.hello()
    assert any(hello.boot_nonce)
    assert not any(hello.restore_nonce)


@pytest.mark.parametrize("size", [0, 1, 31, 4096, 65_536, 1 << 20])
def test_a_ping_returns_its_payload(link, size):
    payload = random.Random(size).randbytes(size)
    assert link.ping(payload) == payload


def test_a_payload_over_the_limit_is_not_even_sent(link):
    with pytest.raises(BadInput, match="does not fit"):
        link.ping(bytes(link.protocol.payload_max + 1))
    link.ping()


def test_many_in_flight_find_their_requests(link):
    payloads = [random.Random(i).randbytes(i * 37 % 5000) for i in range(500)]
    pending = [link.submit(link.protocol.ping, payload) for payload in payloads]
    order = list(range(500))
    random.Random(0).shuffle(order)
    for i in order:
        assert pending[i].wait(5).payload == payloads[i]
        assert pending[i].done


def test_more_in_flight_than_both_sockets_hold(link):
    """Neither end may wait for the other to read first."""
    payload = bytes(1 << 20)
    pending = [link.submit(link.protocol.ping, payload) for _ in range(12)]
    assert all(one.wait(20).payload == payload for one in pending)


def test_a_slow_call_is_overtaken(link, stuck):
    finish = stuck.start()
    assert link.syscall(Nr.GETPID).value > 0
    link.ping()
    stuck.let_go(b"!")
    assert finish().outputs == (b"!",)


def test_pings_while_every_worker_is_stuck(link, stuck):
    calls = [stuck.start() for _ in range(link.hello().workers)]
    for _ in range(50):
        link.ping(b"alive", timeout=2)
    for _ in calls:
        stuck.let_go()
    assert [call().value for call in calls] == [1] * len(calls)


def test_what_no_worker_is_free_for_is_queued(link, stuck):
    workers = link.hello().workers
    calls = [stuck.start() for _ in range(workers)]
    queued = [link.submit(link.protocol.syscall, _getpid(link)) for _ in range(100)]
    link.ping()
    assert not any(one.done for one in queued)
    stuck.let_go()
    assert [len(one.wait(5).payload) for one in queued] == [8] * 100
    for _ in calls[1:]:
        stuck.let_go()
    assert sum(call().value for call in calls) == workers


def test_the_queue_is_bounded_and_pings_go_on(link, stuck):
    calls = [stuck.start() for _ in range(link.hello().workers)]
    big = _call(link, Nr.WRITE, 99_999, In(bytes(900_000)), 1)
    queued = [link.submit(link.protocol.syscall, big) for _ in range(20)]
    link.ping()
    refused = [one for one in queued if one.done]
    assert 8 <= len(refused) <= 14
    for one in refused:
        with pytest.raises(GuestBusy):
            one.wait(1)
    for _ in calls:
        stuck.let_go()
    assert all(len(one.wait(5).payload) == 8 for one in queued if one not in refused)


def test_a_timeout_says_that_only_the_operation_hangs(stuck):
    finish = stuck.start()
    before = time.monotonic()
    with pytest.raises(RequestTimedOut, match="stuck in the kernel") as caught:
        finish(0.2)
    assert time.monotonic() - before < 2
    assert caught.value.agent_answers is True


def test_a_timeout_says_that_workers_are_all_taken(link, stuck):
    for _ in range(link.hello().workers):
        with pytest.raises(RequestTimedOut):
            stuck.start()(0.01)
    with pytest.raises(RequestTimedOut, match="waits behind them"):
        link.syscall(Nr.GETPID, timeout=0.1)


def test_a_late_reply_is_dropped(link, stuck):
    for _ in range(3):
        with pytest.raises(RequestTimedOut):
            stuck.start()(0.05)
    for _ in range(3):
        stuck.let_go()
    for i in range(50):
        assert link.ping(bytes([i])) == bytes([i])
        assert link.syscall(Nr.GETPID).value == link.hello().pid


def test_a_stopped_agent_is_called_silent(link, agent, monkeypatch):
    monkeypatch.setattr("harness.link.link._PROBE_SECONDS", 0.1)
    agent.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, agent.process.pid, os.WSTOPPED)
    try:
        with pytest.raises(RequestTimedOut, match="silent") as caught:
            link.syscall(Nr.GETPID, timeout=0.1)
    finally:
        agent.process.send_signal(signal.SIGCONT)
    assert caught.value.agent_answers is False
    assert link.ping(b"back") == b"back"


def test_a_host_that_stands_still_is_no_silent_agent(link, agent, monkeypatch):
    """As if neither this process nor the agent had been given a processor for half a second."""
    agent.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, agent.process.pid, os.WSTOPPED)
    receive, moments = Channel._receive, iter((0.5,))

    def held(channel, seconds):
        for moment in moments:
            time.sleep(moment)
            agent.process.send_signal(signal.SIGCONT)
            return None
        return receive(channel, seconds)

    monkeypatch.setattr(Channel, "_receive", held)
    assert link.answers(0.2)


def test_an_outcome_can_be_asked_for_twice(link):
    pending = link.submit(link.protocol.ping, b"x")
    assert pending.wait(5) == pending.wait(5)
    pending = link.submit(77)
    for _ in range(2):
        with pytest.raises(UnknownOperation, match="operation 77"):
            pending.wait(5)


def test_threads_share_a_link(link, stuck):
    """Every thread gets its own replies; one of them is stuck meanwhile."""
    failures = []
    finish = stuck.start()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(100):
                payload = rng.randbytes(rng.randrange(20_000))
                assert link.ping(payload, timeout=20) == payload
                result = link.syscall(Nr.WRITE, 99_999, In(payload), len(payload), timeout=20)
                assert result.value == -9
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    stuck.let_go()
    assert finish().value == 1


def test_two_links_follow_each_other_on_one_stream(agent, link_layouts, stuck):
    """Replies that were meant for the first disturb the second's requests at most, never answer them."""
    with pytest.raises(RequestTimedOut):
        stuck.start()(0.05)
    second = Link(agent.socket, link_layouts, agent.check)
    assert second.hello().pid == agent.process.pid


def _call(link, number, *args):
    from harness.link.syscalls import Call

    return Call(link.protocol, number, args).payload


def _getpid(link):
    return _call(link, Nr.GETPID)


@pytest.fixture
def refining(agent, link_layouts):
    """A link whose time-outs are looked into; what is looked into, and what is raised instead."""
    seen = []

    def refine(error):
        seen.append(error)
        return GuestFailure("refined")

    link = Link(agent.socket, link_layouts, agent.check, refine=refine, deadlines=Deadlines(scale=0.1))
    return link, seen


def test_the_time_out_of_a_silent_agent_is_looked_into(refining, agent):
    link, seen = refining
    agent.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, agent.process.pid, os.WSTOPPED)
    try:
        for ask in (lambda: link.syscall(Nr.GETPID, timeout=0.1), lambda: link.ping(timeout=0.1)):
            with pytest.raises(GuestFailure, match="refined"):
                ask()
        assert [error.agent_answers for error in seen] == [False, False]
        assert not link.answers(0.1)
    finally:
        agent.process.send_signal(signal.SIGCONT)
    assert link.answers(5)
    assert len(seen) == 2


def test_an_operation_that_hangs_needs_no_look(refining):
    link, seen = refining
    stuck = Stuck(link)
    with pytest.raises(OperationTimedOut):
        stuck.start()(0.1)
    assert seen == []
    stuck.let_go()


def test_deadlines_that_are_not_given_are_the_links(refining, agent):
    link, seen = refining
    agent.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, agent.process.pid, os.WSTOPPED)
    try:
        for ask in (link.ping, link.hello):
            with pytest.raises(GuestFailure):
                ask()
            assert "within 0.5 s" in seen[-1].summary
        link.deadlines = Deadlines(scale=0.01)
        with pytest.raises(GuestFailure):
            link.syscall(Nr.GETPID)
        assert "within 0.2 s" in seen[-1].summary
    finally:
        agent.process.send_signal(signal.SIGCONT)
