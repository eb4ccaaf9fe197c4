# SPDX-License-Identifier: MIT
"""Rows of system calls by a real agent on this host: cut into frames, kept in flight, put together again."""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from harness.errors import BadInput
from harness.link import (
    Batch,
    ChannelBroken,
    GuestOSError,
    In,
    Loaded,
    Nr,
    Out,
    RequestMalformed,
    RequestRefused,
    RequestTimedOut,
)
from harness.link.interrupts import Deferred
from harness.link.link import Link

FSTAT, DUP, WRITEV = 5, 32, 20
PAIR = np.dtype([("reader", "<i4"), ("writer", "<i4")])
VECTOR = np.dtype([("base", "<u8"), ("length", "<u8")])


@pytest.fixture
def link(agent, link_layouts):
    return Link(agent.socket, link_layouts, agent.check)


@pytest.fixture
def batch(link):
    return lambda rows, timeout=20.0: Batch(link, rows, timeout)


def open_files(agent) -> int:
    return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 5000])
def test_every_row_gets_its_own_answer(batch, link, rows):
    one = batch(rows)
    data = np.frombuffer(random.Random(rows).randbytes(8 * rows), "<u8").copy()
    sent, back = one.inputs(data), one.outputs("<u8")
    fds = struct.unpack("2i", link.syscall(Nr.PIPE, Out(8)).outputs[0])
    wrote = one.call(Nr.WRITE, fds[1], sent, 8)
    read = one.call(Nr.READ, fds[0], back, np.full(rows, 8))
    none = one.call(Nr.CLOSE, -1)
    one.run()
    assert one.values.shape == (rows, 3)
    assert one.answered.all()
    assert set(one.values[:, wrote]) == set(one.values[:, read]) == {8}
    assert set(one.values[:, none]) == {-errno.EBADF}
    # frames may overlap, rows of one frame do not: what was written is what was read, in some order
    assert sorted(back.records.tolist()) == sorted(data.tolist())


def test_a_row_uses_what_its_earlier_calls_left(batch, agent):
    before = open_files(agent)
    one = batch(300)
    pair = one.outputs(PAIR)
    text, back = one.inputs(np.arange(300, dtype="<u8")), one.outputs("<u8")
    one.call(Nr.PIPE, pair)
    one.call(Nr.WRITE, pair.loaded("writer"), text, 8)
    one.call(Nr.READ, pair.loaded("reader"), back, 8)
    one.call(Nr.CLOSE, pair.loaded("reader"))
    one.call(Nr.CLOSE, pair.loaded("writer"))
    one.run()
    for call in range(5):
        one.check(call)
    assert back.records.tolist() == list(range(300))
    assert open_files(agent) == before


def test_structures_point_at_columns(batch, link):
    fds = struct.unpack("2i", link.syscall(Nr.PIPE, Out(8)).outputs[0])
    one = batch(40)
    vectors = one.exchange(np.array([(0, 4)] * 40, VECTOR))
    words = one.inputs(np.arange(40, dtype="<u4"))
    vectors.point("base", words)
    one.call(WRITEV, fds[1], vectors, 1)
    one.run()
    assert set(one.values[:, 0]) == {4}
    data = link.syscall(Nr.READ, fds[0], Out(160), 160).outputs[0]
    assert np.frombuffer(data, "<u4").tolist() == list(range(40))


def test_more_than_a_frame_holds_is_cut_and_in_flight_together(batch, link, monkeypatch):
    """40 MB in rows of 40 000 bytes: 26 of them fit into a frame."""
    flying, most = set(), 0
    send, wait = type(link.prepare(1)).send, type(link.prepare(1)).wait

    def sent(pending):
        nonlocal most
        flying.add(pending.id)
        most = max(most, len(flying))
        send(pending)

    def waited(pending, *args):
        try:
            return wait(pending, *args)
        finally:
            flying.discard(pending.id)

    monkeypatch.setattr("harness.link.link.Pending.send", sent)
    monkeypatch.setattr("harness.link.link.Pending.wait", waited)
    one = batch(1000)
    records = np.zeros(1000, "V40000")
    marks = records.view("u1").reshape(1000, 40_000)
    marks[:, -1] = np.arange(1000) % 251
    column = one.exchange(records)
    one.call(Nr.CLOSE, -1)
    one.call(Nr.PIPE, column)
    one.call(Nr.CLOSE, Loaded(column, 0))
    one.call(Nr.CLOSE, Loaded(column, 4))
    one.run()
    assert set(one.values[:, 1]) == {0}
    assert (marks[:, -1] == np.arange(1000) % 251).all()
    assert 1 < most <= 4
    assert not flying


def test_a_row_that_no_frame_holds(batch):
    one = batch(3)
    one.call(Nr.PIPE, one.exchange(np.zeros(3, "V1048600")))
    with pytest.raises(BadInput, match="does not fit into a frame"):
        one.run()


def test_the_largest_row(batch):
    one = batch(2)
    one.call(Nr.PIPE, one.exchange(np.zeros(2, f"V{(1 << 20) - 200}")))
    one.run()
    one.check()


BAD = {
    "no rows": lambda batch: batch(0),
    "less than none": lambda batch: batch(-1),
    "no calls": lambda batch: batch(1).run(),
    "seven arguments": lambda batch: batch(1).call(0, 1, 2, 3, 4, 5, 6, 7),
    "too few numbers": lambda batch: batch(2).call(0, [1]),
    "a table of numbers": lambda batch: batch(2).call(0, [[1, 2]]),
    "floats": lambda batch: batch(2).call(0, [1.0, 2.0]),
    "a short column": lambda batch: batch(2).inputs(np.zeros(3, "<u8")),
    "another batch's column": lambda batch: batch(2).call(0, batch(2).outputs("<u8")),
    "another batch's number": lambda batch: batch(2).call(0, batch(2).outputs(PAIR).loaded("reader")),
    "no such field": lambda batch: batch(2).outputs(PAIR).loaded("nothing"),
    "a field of 64 bits": lambda batch: batch(2).outputs(VECTOR).loaded("base"),
    "a pointer of 32 bits": lambda batch: batch(2).outputs(PAIR).point("reader", batch(2).outputs("<u8")),
    "a number that has no fields": lambda batch: batch(2).outputs("<u8").loaded("reader"),
}


@pytest.mark.parametrize("call", BAD.values(), ids=BAD)
def test_bad_input_is_told(batch, call):
    with pytest.raises(BadInput):
        call(batch)


def test_arguments_are_numbers_of_either_sign(batch):
    one = batch(3)
    one.call(Nr.CLOSE, [-1, 9999, 0x7FFF_FFFF])
    one.call(Nr.CLOSE, np.array([(1 << 63) + 12_345, (1 << 64) - 1, 12_345], np.uint64))
    one.run()
    assert set(one.values.ravel()) == {-errno.EBADF}


def test_the_first_failure_is_told(batch):
    one = batch(700)
    one.call(Nr.GETPID)
    one.call(Nr.CLOSE, np.where(np.arange(700) % 3 == 2, -1, 1 << 20), what="close it")
    one.run()
    one.check(0)
    assert one.failed(1).size == 700
    with pytest.raises(GuestOSError, match=r"row 0 of 700: close it \(700 of 700 rows failed\)") as caught:
        one.check(1)
    assert caught.value.errno == errno.EBADF


def test_stop_at_the_first_failure(batch, agent):
    one = batch(1000)
    fds = np.full(1000, -1)
    fds[:] = 0
    fds[400] = -1
    one.call(DUP, fds)
    one.call(Nr.GETPID)
    one.run(stop=True)
    assert (one.values[:400, 0] > 0).all()
    assert one.values[400].tolist() == [-errno.EBADF, -errno.ECANCELED]
    assert set(one.values[401:].ravel()) == {-errno.ECANCELED}
    assert open_files(agent) < 420


# -- when something goes wrong ------------------------------------------------------------------------------


def test_a_forbidden_call_is_told_and_nothing_of_its_frame_happens(batch, agent, link):
    one = batch(10)
    one.call(DUP, 0)
    one.call(Nr.CLOSE, [100] * 9 + [agent.fd])
    before = open_files(agent)
    with pytest.raises(RequestRefused, match="rows 0 to 9 of 10"):
        one.run()
    assert open_files(agent) == before
    link.ping()


def test_a_call_that_turns_out_to_be_forbidden(batch, agent):
    one = batch(10)
    column = one.exchange(np.full(10, 100, "<i4"))
    column.records[7] = agent.fd
    one.call(DUP, 0)
    one.call(Nr.CLOSE, Loaded(column, 0), what="close it")
    with pytest.raises(RequestRefused, match="row 7 of 10: close it"):
        one.run()
    assert (one.values[:8, 0] > 0).all()
    assert one.values[8:].ravel().tolist() == [-errno.ECANCELED] * 4


def test_a_malformed_frame_is_told(batch, monkeypatch):
    monkeypatch.setattr(Batch, "_payload", lambda *_: b"nonsense")
    one = batch(10)
    one.call(Nr.GETPID)
    with pytest.raises(RequestMalformed, match="rows 0 to 9 of 10"):
        one.run()
    assert set(one.values.ravel()) == {-errno.ECANCELED}


@pytest.fixture
def gate(link, agent):
    """A read of a pipe that hangs until somebody writes, from outside of the link."""
    reader, writer = struct.unpack("2i", link.syscall(Nr.PIPE, Out(8)).outputs[0])

    def open_it(count: int) -> None:
        with Path(f"/proc/{agent.process.pid}/fd/{writer}").open("wb", buffering=0) as pipe:
            pipe.write(b"x" * count)

    return reader, open_it


def test_a_time_out_says_who_hangs_and_nothing_is_lost(batch, gate, agent):
    reader, open_it = gate
    one = batch(600, timeout=0.2)
    one.call(Nr.READ, reader, one.outputs("u1"), 1, what="read")
    opened = one.call(DUP, 0)
    before = open_files(agent)
    with pytest.raises(RequestTimedOut, match=r"read and so on, rows 0 to 127 of 600.*\n.*stuck"):
        one.run()
    open_it(600)
    one.run(timeout=10)
    assert one.answered.all()
    assert (one.values[:, opened] > 0).all()
    assert open_files(agent) == before + 600, "a row was made twice, or not at all"


def test_what_is_halted_is_settled_and_not_begun(batch, gate, agent):
    reader, open_it = gate
    one = batch(2000, timeout=0.1)
    one.call(Nr.READ, reader, one.outputs("u1"), 1)
    opened = one.call(DUP, 0)
    before = open_files(agent)
    with pytest.raises(RequestTimedOut):
        one.run()
    with pytest.raises(RequestTimedOut):
        one.settle()
    open_it(2000)
    one.settle(10)
    assert one.answered.sum() == 512, "four frames of 128 rows were under way"
    assert open_files(agent) == before + 512 == before + (one.values[:, opened] > 0).sum()
    one.settle()


def test_the_death_of_the_agent_is_told(batch, gate, agent, monkeypatch):
    monkeypatch.setattr("harness.link.link._DEATH_SECONDS", 0.1)
    reader, _ = gate
    one = batch(1000)
    one.call(Nr.READ, reader, one.outputs("u1"), 1)
    killer = threading.Timer(0.1, agent.process.kill)
    killer.start()
    with pytest.raises((ChannelBroken, AssertionError), match=r"closed|ended with -9"):
        one.run()
    with pytest.raises((ChannelBroken, AssertionError)):
        one.settle()


def test_noise_is_told_and_the_batch_ends(batch, gate, agent):
    reader, open_it = gate
    one = batch(1000)
    one.call(Nr.READ, reader, one.outputs("u1"), 1)
    noisy = threading.Timer(0.1, agent.socket.send, (b"noise" * 10,))
    noisy.start()
    with pytest.raises(ChannelBroken, match="no frame"):
        one.run()
    open_it(1000)
    one.settle()


def test_threads_share_the_link(batch):
    failures = []

    def work(seed):
        try:
            for _ in range(5):
                one = batch(seed * 300 + 1)
                column = one.outputs("<u8")
                one.call(Nr.GETPID)
                one.call(Nr.READ, -1, column, 8)
                one.run()
                assert set(one.values[:, 1]) == {-errno.EBADF}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    work(3)
    for thread in threads:
        thread.join(60)
    assert not failures


@pytest.fixture
def ctrl_c():
    """Whoever started the tests may have it ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, old)


def test_ctrl_c_while_it_waits(batch, gate, agent, ctrl_c):
    reader, open_it = gate
    one = batch(1000, timeout=60)
    one.call(Nr.READ, reader, one.outputs("u1"), 1)
    opened = one.call(DUP, 0)
    before = open_files(agent)
    threading.Timer(0.1, ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        one.run()
    open_it(1000)
    one.run()
    assert (one.values[:, opened] > 0).all()
    assert open_files(agent) == before + 1000


def test_ctrl_c_at_any_moment_loses_and_repeats_nothing(batch, agent, ctrl_c):
    """A hundred of them, wherever they fall: in a send, in a receive, in between."""
    chance = random.Random(1)
    for _ in range(100):
        before = open_files(agent)
        one = batch(600)
        opened = one.call(DUP, 0)
        timer = threading.Timer(0.001 + chance.random() * 0.004, ctrl_c)
        interrupted = 0
        while not (interrupted and one.answered.all()):
            try:
                if not timer.ident:
                    timer.start()
                one.run()
                timer.join()
                time.sleep(0.001)  # the thread that sent it may be gone before the signal is noticed
            except KeyboardInterrupt:
                interrupted += 1
        assert interrupted == 1
        assert open_files(agent) == before + 600
        back = batch(600)
        back.call(Nr.CLOSE, one.values[:, opened])
        back.run()
        back.check()


def test_a_deferred_interrupt_comes_when_it_is_let(ctrl_c):
    reached = []

    def careful():
        with Deferred() as interrupts:
            ctrl_c()
            reached.append("held back")
            interrupts.check()
            reached.append("not here")

    with pytest.raises(KeyboardInterrupt):
        careful()
    assert reached == ["held back"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_deferred_interrupt_comes_at_the_end_at_the_latest(ctrl_c):
    def careful(error):
        with Deferred():
            ctrl_c()
            if error:
                raise error

    for error in (None, OSError("something else")):
        with pytest.raises(KeyboardInterrupt):
            careful(error)
    with Deferred(), pytest.raises(ValueError, match="none came"):
        raise ValueError("none came")


def test_a_handler_of_ones_own_is_called_once(ctrl_c):
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append("mine"))
    with Deferred() as outer, Deferred() as inner:
        ctrl_c()
        inner.check()
        assert seen == []
        outer.check()
        outer.check()
    assert seen == ["mine"]


def test_other_threads_have_nothing_to_defer(link):
    values = []

    def work():
        one = Batch(link, 10, 5.0)
        one.call(Nr.WRITE, 1, one.inputs(np.zeros(10, "<u8")), 0)
        one.run()
        values.extend(one.values.ravel())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert len(values) == 10
    assert link.syscall(Nr.WRITE, 99_999, In(b"x"), 1).value == -errno.EBADF
