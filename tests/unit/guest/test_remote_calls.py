# SPDX-License-Identifier: MIT
"""System calls on the host's behalf: what is checked, what is refused, what comes back.

The agent runs as an ordinary process of this host here, with the rights of whoever runs the tests: the
numbers tried are harmless to the host even if a check under test were missing.
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
from harness.link.link import Link
from harness.link.syscalls import In, InOut, Nr, Out, cstring

PAGE = mmap.PAGESIZE
PROT = mmap.PROT_READ | mmap.PROT_WRITE
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MAP_FIXED, MAP_FIXED_NOREPLACE = 0x10, 0x100000
TEXT = 0x400000  # where a static executable lies


@pytest.fixture
def link(agent, link_layouts):
    return Link(agent.socket, link_layouts, agent.check)


def call_payload(protocol, relocs, filled, fields):
    head = protocol.call_record.pack(**{"relocs": len(relocs), "filled": len(filled), **fields})
    return head + b"".join(protocol.reloc_record.pack(**reloc) for reloc in relocs) + filled


def test_the_result_is_raw(link, agent):
    assert link.syscall(Nr.GETPID).value == agent.process.pid
    assert link.syscall(Nr.CLOSE, 9999).value == -errno.EBADF


def test_outputs_and_inputs(link, tmp_path):
    file = tmp_path / "file"
    fd = link.syscall(Nr.OPEN, cstring(str(file)), os.O_RDWR | os.O_CREAT, 0o600).value
    assert link.syscall(Nr.WRITE, fd, In(b"payload"), 7).value == 7
    assert file.read_bytes() == b"payload"
    other = link.syscall(Nr.OPEN, cstring(str(file)), os.O_RDONLY).value
    result = link.syscall(Nr.READ, other, Out(10), 10)
    assert (result.value, result.outputs) == (7, (b"payload\0\0\0",))


def test_structures_with_pointers_in_them(link):
    fds = struct.unpack("2i", link.syscall(Nr.PIPE, Out(8)).outputs[0])
    vector = In(struct.pack("4Q", 0, 3, 0, 4), {0: In(b"abc"), 16: In(b"defg")})
    assert link.syscall(20, fds[1], vector, 2).value == 7  # writev
    vector = InOut(struct.pack("4Q", 0, 2, 0, 5), {0: Out(2), 16: Out(5)})
    result = link.syscall(19, fds[0], vector, 2)  # readv
    assert result.value == 7
    assert result.outputs[1:] == (b"ab", b"cdefg")
    assert struct.unpack("4Q", result.outputs[0])[1::2] == (2, 5)


def test_what_is_not_filled_starts_as_zeros(link):
    fd = struct.unpack("2i", link.syscall(Nr.PIPE, Out(8)).outputs[0])[1]
    link.syscall(Nr.WRITE, fd, In(b"\xff" * 5000), 5000)
    result = link.syscall(Nr.CLOSE, 9999, Out(6000))
    assert result.outputs == (bytes(6000),)


def test_wild_pointers_are_the_kernels_business(link):
    fd = link.syscall(Nr.OPEN, cstring("/dev/zero"), os.O_RDONLY).value
    assert link.syscall(Nr.READ, fd, 16, 100).value == -errno.EFAULT
    assert link.syscall(Nr.READ, fd, 1 << 63, 100).value == -errno.EFAULT


@pytest.mark.parametrize("size", [1, 8, 100, PAGE])
def test_nothing_is_written_behind_the_arena(link, size):
    fd = link.syscall(Nr.OPEN, cstring("/dev/zero"), os.O_RDONLY).value
    result = link.syscall(Nr.READ, fd, Out(size), 1 << 20)
    assert result.value == -errno.EFAULT or result.value <= size + 7
    link.ping()


@pytest.mark.parametrize("number", [1024, 60 | 1 << 30, 60 | 1 << 32, (1 << 64) - 1, 60 - (1 << 32)])
def test_numbers_that_only_look_like_exit(link, number):
    """The kernel looks at 32 bits of the number, and at an x32 bit."""
    assert link.syscall(number % (1 << 64), 0).value == -errno.ENOSYS
    link.ping()


REFUSED = {
    "exit": (60, 0),
    "exit_group": (231, 0),
    "fork": (57,),
    "vfork": (58,),
    "clone": (56, 0),
    "clone3": (435, 0, 0),
    "execve": (59, 0, 0, 0),
    "execveat": (322, -1, 0, 0, 0, 0),
    "rt_sigreturn": (15,),
    "rt_sigaction": (13, 11, 0, 0, 8),
    "rt_sigprocmask": (14, 0, 0, 0, 8),
    "reboot": (169, 0, 0, 0),
    "brk": (12, 0),
    "mremap": (25, 0, 0, 0, 0),
    "arch_prctl": (158, 0x1004, 0),
    "prctl": (157, 0),
    "seccomp": (317, 99),
    "ptrace": (101, 99),
    "setuid": (105, -1),
    "kill the group": (62, 0, 0),
    "kill all": (62, -1, 0),
    "tkill": (200, 0, 0),
    "mmap fixed": (9, TEXT, PAGE, PROT, ANONYMOUS | MAP_FIXED, -1, 0),
    "munmap text": (11, TEXT, PAGE),
    "munmap all": (11, 0, 1 << 47),
    "munmap around": (11, PAGE, (1 << 64) - 1),
    "mprotect text": (10, TEXT, PAGE, 0),
    "madvise text": (28, TEXT, PAGE, 4),
    "cpu limit": (160, 0, 0),
    "cpu prlimit": (302, 0, 0, 1, 0),
    "close_range": (436, 0, (1 << 32) - 1, 0),
}


@pytest.mark.parametrize("args", REFUSED.values(), ids=REFUSED)
def test_what_would_end_or_confuse_the_agent_is_refused(link, args):
    with pytest.raises(RequestRefused):
        link.syscall(*args)
    link.ping()


@pytest.mark.parametrize("number", [0, 1, 3, 16, 32, 33, 72, 292])
def test_the_links_own_descriptor_is_off_limits(link, agent, number):
    with pytest.raises(RequestRefused):
        link.syscall(number, agent.fd, 0, 0)
    with pytest.raises(RequestRefused):  # the upper half of a descriptor argument does not count
        link.syscall(number, agent.fd | 1 << 32, 0, 0)
    link.ping()


def test_dup2_onto_the_link_is_refused(link, agent):
    with pytest.raises(RequestRefused):
        link.syscall(33, 0, agent.fd)


def test_killing_the_agent_is_refused_by_number(link, agent):
    with pytest.raises(RequestRefused):
        link.syscall(62, agent.process.pid, 0)


def test_memory_the_host_mapped_is_the_hosts(link):
    start = link.syscall(Nr.MMAP, 0, 5 * PAGE, PROT, ANONYMOUS, -1, 0).value
    assert start > 0
    assert link.syscall(Nr.MPROTECT, start + PAGE, PAGE, mmap.PROT_READ).value == 0
    with pytest.raises(RequestRefused):
        link.syscall(Nr.MPROTECT, start, 6 * PAGE, 0)
    # out of the middle, the front, the back, the rest
    for first, count in ((2, 1), (0, 1), (4, 1)):
        assert link.syscall(Nr.MUNMAP, start + first * PAGE, count * PAGE).value == 0
        with pytest.raises(RequestRefused):
            link.syscall(Nr.MUNMAP, start + first * PAGE, count * PAGE)
    with pytest.raises(RequestRefused):
        link.syscall(Nr.MUNMAP, start + PAGE, 3 * PAGE)
    for first in (1, 3):
        assert link.syscall(Nr.MUNMAP, start + first * PAGE, PAGE).value == 0


def test_a_failed_munmap_forgets_nothing(link):
    start = link.syscall(Nr.MMAP, 0, 2 * PAGE, PROT, ANONYMOUS, -1, 0).value
    assert link.syscall(Nr.MUNMAP, start + 1, PAGE - 1).value == -errno.EINVAL
    assert link.syscall(Nr.MUNMAP, start, 2 * PAGE).value == 0


def test_a_fixed_place_that_is_free_is_allowed(link):
    start = link.syscall(Nr.MMAP, 0, 2 * PAGE, PROT, ANONYMOUS, -1, 0).value
    link.syscall(Nr.MUNMAP, start, PAGE)
    again = (PAGE, PROT, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)
    assert link.syscall(Nr.MMAP, start, *again).value == start
    assert link.syscall(Nr.MMAP, start + PAGE, *again).value == -errno.EEXIST


def test_the_table_of_mappings_is_bounded_and_recovers(link):
    page = (Nr.MMAP, 0, PAGE, PROT, ANONYMOUS, -1, 0)
    starts = [link.syscall(*page).value for _ in range(1024)]
    with pytest.raises(GuestBusy):
        link.syscall(*page)
    for start in starts:
        assert link.syscall(Nr.MUNMAP, start, PAGE).value == 0
    assert link.syscall(*page).value > 0


BAD_SIZES = {
    "nothing": b"",
    "half a structure": bytes(40),
    "one byte short": bytes(79),
}


@pytest.mark.parametrize("payload", BAD_SIZES.values(), ids=BAD_SIZES)
def test_truncated_calls_are_malformed(link, protocol, payload):
    with pytest.raises(RequestMalformed):
        link.submit(protocol.syscall, payload).wait(5)


ARENA = {"number": Nr.GETPID, "arena": 64}
MALFORMED = {
    "trailing byte": ({"number": Nr.GETPID}, (), b"", b"x"),
    "reserved": ({"number": Nr.GETPID, "reserved": 1}, (), b"", b""),
    "arena too large": ({"number": Nr.GETPID, "arena": (1 << 20) + 1}, (), b"", b""),
    "arena of 4 GiB": ({"number": Nr.GETPID, "arena": 0xFFFFFFFF}, (), b"", b""),
    "more filled than arena": ({"number": Nr.GETPID, "arena": 4}, (), b"12345", b""),
    "filled without bytes": ({**ARENA, "filled": 8}, (), b"", b""),
    "filled of 4 GiB": ({**ARENA, "filled": 0xFFFFFFFF}, (), b"", b""),
    "relocs without bytes": ({**ARENA, "relocs": 1}, (), b"", b""),
    "relocs of 4 GiB": ({**ARENA, "relocs": 0xFFFFFFFF}, (), b"", b""),
    "window past the arena": ({**ARENA, "out_start": 1, "out_length": 64}, (), b"", b""),
    "window that wraps": ({**ARENA, "out_start": 0xFFFFFFFF, "out_length": 2}, (), b"", b""),
    "window no reply can hold": ({"number": 39, "arena": 1 << 20, "out_length": 1 << 20}, (), b"", b""),
    "reloc of no kind": (ARENA, ({"kind": 2},), b"", b""),
    "reloc with a reserved word": (ARENA, ({"reserved": 1},), b"", b""),
    "seventh argument": (ARENA, ({"place": 6},), b"", b""),
    "target past the arena": (ARENA, ({"target": 65},), b"", b""),
    "pointer half outside": (ARENA, ({"kind": 1, "place": 57},), b"", b""),
    "pointer far outside": (ARENA, ({"kind": 1, "place": 0xFFFFFFFF},), b"", b""),
    "pointer without arena": ({"number": Nr.GETPID}, ({"kind": 1},), b"", b""),
}


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED)
def test_calls_that_contradict_themselves_are_malformed(link, protocol, case):
    fields, relocs, filled, trailing = case
    payload = call_payload(protocol, relocs, filled, fields) + trailing
    with pytest.raises(RequestMalformed):
        link.submit(protocol.syscall, payload).wait(5)
    link.ping()


small = st.one_of(st.integers(0, 80), st.integers(0, 0xFFFFFFFF))
requests = st.fixed_dictionaries({
    "arena": small,
    "out_start": small,
    "out_length": small,
    "filled": st.binary(max_size=80),
    "trailing": st.sampled_from([b"", b"x"]),
    "relocs": st.lists(
        st.fixed_dictionaries({"kind": st.integers(0, 2), "place": small, "target": small}), max_size=4
    ),
})  # fmt: skip


def is_sound(request):
    return (
        not request["trailing"]
        and len(request["filled"]) <= request["arena"] <= 1 << 20
        and request["out_start"] + request["out_length"] <= request["arena"]
        and request["out_length"] <= (1 << 20) - 8
        and all(reloc_is_sound(reloc, request["arena"]) for reloc in request["relocs"])
    )


def reloc_is_sound(reloc, arena):
    if reloc["target"] > arena:
        return False
    return reloc["place"] < 6 if reloc["kind"] == 0 else reloc["kind"] == 1 and reloc["place"] + 8 <= arena


@given(fields=requests)
def test_every_call_is_either_sound_or_malformed(link, protocol, fields):
    window = {name: fields[name] for name in ("arena", "out_start", "out_length")}
    payload = call_payload(protocol, fields["relocs"], fields["filled"], {"number": Nr.GETPID, **window})
    pending = link.submit(protocol.syscall, payload + fields["trailing"])
    if is_sound(fields):
        reply = pending.wait(5).payload
        assert len(reply) == 8 + fields["out_length"]
        assert int.from_bytes(reply[:8], "little") == link.syscall(Nr.GETPID).value
    else:
        with pytest.raises(RequestMalformed):
            pending.wait(5)
