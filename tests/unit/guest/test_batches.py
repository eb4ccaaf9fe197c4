# SPDX-License-Identifier: MIT
"""System calls in one frame: order, what is checked before the first, how far a batch gets.

The real agent, as an ordinary process of this host; see test_remote_calls.py.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.link.errors import GuestBusy, RequestMalformed, RequestRefused
from harness.link.link import Link, rejection
from harness.link.syscalls import Nr, Out, cstring

PAGE = mmap.PAGESIZE
GETPID = {"number": Nr.GETPID}
OK, MALFORMED, REFUSED, NO_MEMORY = 0, 2, 4, 5
STOP = 1


@pytest.fixture
def link(agent, link_layouts):
    return Link(agent.socket, link_layouts, agent.check)


@pytest.fixture
def batch(link, protocol):
    """Send calls, get (made, status, results, window)."""

    def send(these, contents=b"", links=(), trailing=b"", **fields):
        reply = link.submit(protocol.batch, payload_of(protocol, these, contents, links, fields) + trailing)
        payload = reply.wait(10).payload
        head = protocol.batch_result_record.unpack(payload)
        results = struct.unpack_from(f"<{len(these)}q", payload, 8)
        assert len(payload) == 8 + 8 * len(these) + fields.get("out_length", 0)
        return head["made"], head["status"], list(results), payload[8 + 8 * len(these) :]

    return send


def payload_of(protocol, calls, filled=b"", relocs=(), fields=None):
    counts = {"calls": len(calls), "relocs": len(relocs), "filled": len(filled)}
    head = protocol.batch_record.pack(**{**counts, **(fields or {})})
    call = protocol.layouts.struct("link_batch_call")
    packed = b"".join(call.pack(**{**one, "args": unsigned(one.get("args", ()))}) for one in calls)
    return head + packed + b"".join(protocol.reloc_record.pack(**one) for one in relocs) + filled


def unsigned(args):
    return [arg % (1 << 64) for arg in args]


def call(number, *args, arena=(), load=()):
    return {
        "number": number, "args": args, "arena_args": sum(1 << k for k in arena),
        "load_args": sum(1 << k for k in load),
    }  # fmt: skip


def test_results_are_raw_and_in_order(batch, agent):
    calls = [call(Nr.GETPID), call(Nr.CLOSE, 9999), call(1024), call(Nr.GETPID)]
    pid = agent.process.pid
    assert batch(calls) == (4, OK, [pid, -errno.EBADF, -errno.ENOSYS, pid], b"")


def test_no_calls_at_all(batch):
    assert batch([]) == (0, OK, [], b"")
    assert batch([], b"abc", arena=8, out_start=1, out_length=4) == (0, OK, [], b"bc\0\0")


def test_calls_follow_each_other(batch, tmp_path):
    """Open, write, seek, read, close: each needs the one before; the descriptor goes by its number."""
    path = str(tmp_path / "file").encode() + b"\0"
    text, room = len(path), len(path) + 8
    made, status, results, window = batch(
        [call(Nr.OPEN, 0, os.O_RDWR | os.O_CREAT, 0o600, arena=[0])],
        path, arena=len(path),
    )  # fmt: skip
    assert (made, status) == (1, OK)
    (fd,) = results
    made, status, results, window = batch(
        [
            call(Nr.WRITE, fd, text, 7, arena=[1]),
            call(8, fd, 2, 0),  # lseek
            call(Nr.READ, fd, room, 5, arena=[1]),
            call(Nr.CLOSE, fd),
            call(Nr.CLOSE, fd),
        ],
        path + b"payload\0", arena=room + 8, out_start=room, out_length=8,
    )  # fmt: skip
    assert (made, status, results) == (5, OK, [7, 2, 5, 0, -errno.EBADF])
    assert window == b"yload\0\0\0"


def test_a_descriptor_is_loaded_when_the_call_is_made(batch):
    """pipe() leaves two of them in the arena; what lies there before the call is no descriptor."""
    made, status, results, window = batch(
        [
            call(Nr.PIPE, 0, arena=[0]),
            call(Nr.WRITE, 4, 8, 3, arena=[1], load=[0]),
            call(Nr.READ, 0, 12, 3, arena=[1], load=[0]),
            call(Nr.CLOSE, 0, load=[0]),
            call(Nr.CLOSE, 4, load=[0]),
            call(Nr.CLOSE, 4, load=[0]),
        ],
        b"\xff" * 8 + b"abc\0", arena=16, out_length=16,
    )  # fmt: skip
    assert (made, status, results) == (6, OK, [0, 3, 3, 0, 0, -errno.EBADF])
    assert window[8:] == b"abc\0abc\0"


def test_a_loaded_number_keeps_its_sign(batch, link):
    """Three bytes before the end of a file of ten; 4294967293 would be far behind it."""
    fd = link.syscall(Nr.MEMFD_CREATE, cstring("file"), 0).value
    _, status, results, _ = batch(
        [call(77, fd, 10), call(8, fd, 0, os.SEEK_END, load=[1])], struct.pack("<i", -3), arena=4
    )  # ftruncate, lseek
    assert (status, results) == (OK, [0, 7])


def test_structures_with_pointers_in_them(batch):
    vector = struct.pack("4Q", 0, 3, 0, 4) + b"abcdefg\0"
    relocs = ({"kind": 1, "place": 0, "target": 32}, {"kind": 1, "place": 16, "target": 35})
    _, status, results, _ = batch(
        [call(Nr.PIPE, 40, arena=[0]), call(20, 44, 0, 2, arena=[1], load=[0])], vector, relocs, arena=48
    )
    assert (status, results) == (OK, [0, 7])


def test_the_first_failure_can_be_the_last_call(batch, agent):
    calls = [call(Nr.GETPID), call(Nr.CLOSE, 9999), call(Nr.GETPID)]
    pid = agent.process.pid
    assert batch(calls, flags=STOP) == (2, OK, [pid, -errno.EBADF, 0], b"")
    assert batch(calls) == (3, OK, [pid, -errno.EBADF, pid], b"")
    assert batch([calls[0]] * 3, flags=STOP) == (3, OK, [pid] * 3, b"")


def test_what_is_forbidden_is_refused_before_anything_happens(batch, link):
    before = struct.unpack("2i", link.syscall(Nr.PIPE, Out(8)).outputs[0])
    for forbidden in (call(60, 0), call(Nr.KILL, 0, 0), call(231, 0), call(12, 0), call(9, 0, 1, 3, 0x32)):
        with pytest.raises(RequestRefused):
            batch([call(Nr.PIPE, 0, arena=[0]), forbidden], arena=8)
    after = struct.unpack("2i", link.syscall(Nr.PIPE, Out(8)).outputs[0])
    assert after == (before[0] + 2, before[1] + 2), "a pipe was made by a batch that was refused"


def test_the_links_descriptor_is_off_limits_by_number(batch, agent):
    with pytest.raises(RequestRefused):
        batch([call(Nr.GETPID), call(Nr.CLOSE, agent.fd)])


@pytest.mark.parametrize("number", [Nr.CLOSE, Nr.READ, Nr.WRITE, Nr.IOCTL, 32, 33])
def test_the_links_descriptor_is_off_limits_when_loaded(batch, agent, link, number):
    calls = [call(Nr.GETPID), call(number, 0, load=[0]), call(Nr.GETPID)]
    made, status, results, window = batch(calls, struct.pack("<i", agent.fd), arena=4, out_length=4)
    assert (made, status, results) == (1, REFUSED, [agent.process.pid, 0, 0])
    assert window == struct.pack("<i", agent.fd)
    link.ping()
    with pytest.raises(RequestRefused, match="close"):
        raise rejection(link.protocol, status, "close")


def test_a_signal_to_a_loaded_process_id_is_looked_at(batch, agent):
    made, status, _, _ = batch([call(Nr.KILL, 0, 0, load=[0])], struct.pack("<i", agent.process.pid), arena=4)
    assert (made, status) == (0, REFUSED)


def test_memory_the_batch_maps_is_the_hosts(batch, link):
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapping = call(Nr.MMAP, 0, PAGE, 3, anonymous, -1, 0)
    _, status, results, _ = batch([mapping, mapping])
    assert status == OK
    calls = [call(Nr.MUNMAP, start, PAGE) for start in results]
    assert batch(calls) == (2, OK, [0, 0], b"")
    made, status, results, _ = batch([call(Nr.GETPID), calls[0], call(Nr.GETPID)])  # no longer the host's
    assert (made, status) == (1, REFUSED)
    made, status, _, _ = batch([mapping] * 1025)
    assert (made, status) == (1024, NO_MEMORY)
    assert isinstance(rejection(link.protocol, status, "mmap"), GuestBusy)


def test_the_arena_ends_before_an_unmapped_page(batch, link):
    fd = link.syscall(Nr.OPEN, Out(1), os.O_RDONLY).value
    assert fd == -errno.ENOENT
    _, status, results, _ = batch(
        [call(Nr.OPEN, 0, os.O_RDONLY, arena=[0]), call(Nr.PIPE, 16, arena=[0])], b"/dev/zero\0".ljust(16),
        arena=24,
    )  # fmt: skip
    _, status, (value,), _ = batch([call(Nr.READ, results[0], 0, PAGE, arena=[1])], arena=64)
    assert status == OK
    assert value == -errno.EFAULT or value <= 64


def test_the_largest_batch(batch, agent):
    count = ((1 << 20) - 32) // 64
    made, status, results, _ = batch([call(Nr.GETPID)] * count)
    assert (made, status) == (count, OK)
    assert set(results) == {agent.process.pid}


BAD = {
    "reserved": ([GETPID], {"reserved": 1}, b"", (), b""),
    "unknown flag": ([GETPID], {"flags": 2}, b"", (), b""),
    "trailing byte": ([GETPID], {}, b"", (), b"x"),
    "calls without bytes": ([GETPID], {"calls": 2}, b"", (), b""),
    "calls of 4 GiB": ([GETPID], {"calls": 0xFFFFFFFF}, b"", (), b""),
    "calls that wrap 32 bits": ([GETPID], {"calls": (1 << 26) + 1}, b"", (), b""),
    "relocs without bytes": ([GETPID], {"relocs": 1}, b"", (), b""),
    "relocs of 4 GiB": ([GETPID], {"relocs": 0xFFFFFFFF}, b"", (), b""),
    "filled of 4 GiB": ([GETPID], {"arena": 8, "filled": 0xFFFFFFFF}, b"", (), b""),
    "more filled than arena": ([GETPID], {"arena": 4}, b"12345", (), b""),
    "arena too large": ([GETPID], {"arena": (1 << 20) + 1}, b"", (), b""),
    "window past the arena": ([GETPID], {"arena": 8, "out_start": 1, "out_length": 8}, b"", (), b""),
    "window that wraps": ([GETPID], {"arena": 8, "out_start": 0xFFFFFFFF, "out_length": 2}, b"", (), b""),
    "window no reply can hold": ([GETPID], {"arena": 1 << 20, "out_length": (1 << 20) - 15}, b"", (), b""),
    "address past the arena": ([call(Nr.GETPID, 9, arena=[0])], {"arena": 8}, b"", (), b""),
    "address far past it": ([call(Nr.GETPID, (1 << 64) - 1, arena=[0])], {"arena": 8}, b"", (), b""),
    "load past the arena": ([call(Nr.GETPID, 5, load=[0])], {"arena": 8}, b"", (), b""),
    "load that wraps": ([call(Nr.GETPID, (1 << 64) - 2, load=[0])], {"arena": 8}, b"", (), b""),
    "load without an arena": ([call(Nr.GETPID, 0, load=[0])], {}, b"", (), b""),
    "load from three bytes": ([call(Nr.GETPID, 0, load=[0])], {"arena": 3}, b"", (), b""),
    "address and load": ([call(Nr.GETPID, 0, arena=[1], load=[1])], {"arena": 8}, b"", (), b""),
    "seventh argument": ([call(Nr.GETPID, arena=[6])], {"arena": 8}, b"", (), b""),
    "seventh load": ([call(Nr.GETPID, load=[31])], {"arena": 8}, b"", (), b""),
    "reloc of an argument": ([GETPID], {"arena": 8}, b"", ({"kind": 0},), b""),
    "reloc of no kind": ([GETPID], {"arena": 8}, b"", ({"kind": 2},), b""),
    "reloc past the arena": ([GETPID], {"arena": 8}, b"", ({"kind": 1, "place": 1},), b""),
    "the last call only": ([GETPID] * 50 + [call(Nr.GETPID, 9, arena=[0])], {"arena": 8}, b"", (), b""),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_batches_that_contradict_themselves_are_malformed(batch, link, case):
    calls, fields, filled, relocs, trailing = case
    with pytest.raises(RequestMalformed):
        batch(calls, filled, relocs, trailing, **fields)
    link.ping()


@pytest.mark.parametrize("size", [0, 1, 31, 33, 95])
def test_truncated_batches_are_malformed(link, protocol, size):
    whole = payload_of(protocol, [GETPID])
    with pytest.raises(RequestMalformed):
        link.submit(protocol.batch, whole[:size]).wait(5)
    link.ping()


small = st.one_of(st.integers(0, 80), st.integers(0, (1 << 64) - 1))
word = st.one_of(st.integers(0, 80), st.integers(0, 0xFFFFFFFF))
bits = st.sampled_from([0, 1, 2, 1 << 5, 1 << 6, 0x3F])
requests = st.fixed_dictionaries({
    "arena": word,
    "out_start": word,
    "out_length": word,
    "flags": st.integers(0, 2),
    "filled": st.binary(max_size=80),
    "calls": st.lists(
        st.fixed_dictionaries({
            "number": st.just(int(Nr.GETPID)), "args": st.lists(small, min_size=6, max_size=6),
            "arena_args": bits, "load_args": bits,
        }), max_size=4,
    ),
    "relocs": st.lists(
        st.fixed_dictionaries({"kind": st.integers(0, 2), "place": word, "target": word}), max_size=2
    ),
})  # fmt: skip


def is_sound(request):
    arena = request["arena"]
    return (
        len(request["filled"]) <= arena <= 1 << 20
        and request["out_start"] + request["out_length"] <= arena
        and request["flags"] < 2
        and request["out_length"] + 8 + 8 * len(request["calls"]) <= 1 << 20
        and all(call_is_sound(one, arena) for one in request["calls"])
        and all(
            one["kind"] == 1 and one["place"] + 8 <= arena and one["target"] <= arena
            for one in request["relocs"]
        )
    )


def call_is_sound(one, arena):
    addresses, loads = one["arena_args"], one["load_args"]
    return (
        not addresses & loads
        and (addresses | loads) < 64
        and all(arg <= arena for k, arg in enumerate(one["args"]) if addresses >> k & 1)
        and all(arg + 4 <= arena for k, arg in enumerate(one["args"]) if loads >> k & 1)
    )


@given(fields=requests)
def test_every_batch_is_either_sound_or_malformed(batch, link, agent, fields):
    rest = {name: fields[name] for name in ("arena", "out_start", "out_length", "flags")}
    arguments = (fields["calls"], fields["filled"], fields["relocs"])
    if is_sound(fields):
        made, status, results, _ = batch(*arguments, **rest)
        assert (made, status, set(results)) == (
            len(results), OK, {agent.process.pid} if results else set()
        )  # fmt: skip
    else:
        with pytest.raises(RequestMalformed):
            batch(*arguments, **rest)
    assert link.syscall(Nr.GETPID).value == agent.process.pid


@given(data=st.binary(max_size=200))
def test_noise_as_a_payload_is_malformed_or_empty(link, protocol, data):
    try:
        reply = link.submit(protocol.batch, data).wait(5).payload
    except (RequestMalformed, RequestRefused):
        reply = None
    assert reply is None or len(reply) >= 8
    link.ping()
