# SPDX-License-Identifier: MIT
"""The link to a real guest: a kernel under QEMU, the agent as its pid 1."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import threading
import time

import pytest

from harness.link import (
    ChannelBroken,
    GuestOSError,
    In,
    Nr,
    Out,
    RequestRefused,
    RequestTimedOut,
    cstring,
)
from harness.link.syscalls import Call
from harness.vm import GuestPanicked, QemuDied


@pytest.fixture
def victim(fresh_guest):
    """A guest of this test's own, to be destroyed."""
    return fresh_guest


class Stuck:
    """Reads of an empty pipe in the guest."""

    def __init__(self, guest):
        self.guest, self.link = guest, guest.link
        fds = guest.syscall(Nr.PIPE, Out(8), what="pipe").outputs[0]
        self.reader, self.writer = struct.unpack("2i", fds)

    def start(self):
        call = Call(self.link.protocol, Nr.READ, (self.reader, Out(1), 1))
        return self.link.submit(self.link.protocol.syscall, call.payload)

    def let_go(self):
        self.guest.syscall(Nr.WRITE, self.writer, In(b"x"), 1, what="write")


def test_the_kernel_that_was_asked_for_answers(guest):
    assert guest.hello.pid == 1
    assert guest.hello.release == guest.image.kernel.release
    assert guest.read_file("/proc/sys/kernel/osrelease").decode().strip() == guest.image.kernel.release
    assert 0 < guest.boot_seconds < guest.deadlines.boot


def test_the_nonce_stays_the_same_within_a_boot(guest):
    assert guest.link.hello() == guest.hello
    assert any(guest.hello.boot_nonce)


def test_our_module_is_loaded_and_nothing_complained(guest):
    assert b"iobmd " in guest.read_file("/proc/modules")
    assert guest.machine.console.panic is None


@pytest.mark.parametrize("size", [0, 1, 4063, 4064, 4065, 32_736, 32_737, 300_000, 1 << 20])
def test_pings_of_every_size(guest, size):
    """Sizes around a page with its header and around the driver's 32 KiB per write."""
    payload = os.urandom(size)
    assert guest.link.ping(payload, timeout=30) == payload


def test_files_come_and_go(guest):
    data = os.urandom(1_500_000)
    guest.write_file("/tmp/file", data)
    assert guest.read_file("/tmp/file") == data
    guest.write_file("/tmp/file", b"short")
    assert guest.read_file("/tmp/file") == b"short"
    with pytest.raises(GuestOSError, match="open /tmp/missing: No such file") as caught:
        guest.read_file("/tmp/missing")
    assert caught.value.errno == errno.ENOENT


def test_an_ioctl_with_a_structure(guest):
    """FIONREAD through the everyday helper."""
    stuck = Stuck(guest)
    for _ in range(3):
        stuck.let_go()
    result = guest.ioctl(stuck.reader, 0x541B, bytes(4))
    assert (result.value, struct.unpack("i", result.arg)) == (0, (3,))
    with pytest.raises(GuestOSError, match="ioctl 0xdead") as caught:
        guest.ioctl(stuck.reader, 0xDEAD)
    assert caught.value.errno == errno.ENOTTY


def test_the_module_can_be_unloaded_and_loaded_again(guest):
    guest.unload_module("iobmd")
    assert b"iobmd " not in guest.read_file("/proc/modules")
    guest.load_module(guest.image.module.ko.read_bytes())
    assert b"iobmd " in guest.read_file("/proc/modules")
    with pytest.raises(GuestOSError) as caught:
        guest.load_module(b"no module at all")
    assert caught.value.errno == errno.ENOEXEC


def test_a_ping_while_operations_are_stuck_in_the_kernel(guest):
    stuck = Stuck(guest)
    pending = [stuck.start() for _ in range(guest.hello.workers - 1)]
    for _ in range(20):
        guest.link.ping(timeout=5)
    assert not any(one.done for one in pending)
    for _ in pending:
        stuck.let_go()
    assert {len(one.wait(10).payload) for one in pending} == {9}


def test_a_timeout_says_who_is_silent(guest):
    stuck = Stuck(guest)
    with pytest.raises(RequestTimedOut, match="stuck in the kernel"):
        stuck.start().wait(0.3)
    stuck.let_go()
    guest.link.ping()


def test_what_would_end_the_agent_is_refused(guest):
    for number in (60, 231, 57, 59, 169):
        with pytest.raises(RequestRefused):
            guest.link.syscall(number, 0, 0, 0)
    assert guest.link.hello() == guest.hello


@pytest.mark.parametrize("junk", [b"\n", b"console noise\r\n" * 50, bytes(3000), b"IBL1" * 20 + bytes(40)])
def test_garbage_on_the_real_port(guest, junk):
    """Written past the link into the same socket; fits one of the driver's buffers, so it is one report."""
    stuck = Stuck(guest)
    pending = stuck.start()
    guest.machine.port("org.iobmd.link").send(junk)
    with pytest.raises(ChannelBroken, match=f"{len(junk)} bytes reached the agent"):
        pending.wait(10)
    assert guest.link.ping(b"goes on") == b"goes on"
    stuck.let_go()
    assert guest.link.hello() == guest.hello


def test_threads_share_the_link(guest):
    failures = []

    def work(seed):
        try:
            for i in range(40):
                payload = bytes([seed, i]) * (i * 50)
                assert guest.link.ping(payload, timeout=60) == payload
                assert guest.link.syscall(Nr.GETPID, timeout=60).value == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures


def test_a_killed_qemu_is_told_to_who_waits(victim):
    """Killed from outside while a request that never ends is under way."""
    pending = Stuck(victim).start()
    killer = threading.Timer(0.3, os.kill, (victim.machine.pid, signal.SIGKILL))
    killer.start()
    before = time.monotonic()
    with pytest.raises(QemuDied):
        pending.wait(60)
    assert time.monotonic() - before < 5
    with pytest.raises(QemuDied):
        victim.link.ping()


@pytest.mark.expect_oops("sysrq triggered crash")
def test_a_panic_is_told_to_who_waits(victim):
    before = time.monotonic()
    with pytest.raises(GuestPanicked):
        victim.write_file("/proc/sysrq-trigger", b"c")
    assert time.monotonic() - before < 10


def test_an_oops_does_not_go_unnoticed(victim):
    """The command line makes every oops a panic: an operation on half a kernel proves nothing."""
    words = victim.read_file("/proc/cmdline").split()
    assert b"oops=panic" in words
    assert victim.read_file("/proc/sys/kernel/panic_on_oops") == b"1\n"
    assert victim.read_file("/proc/sys/kernel/panic") == b"-1\n"


def _watch(machine, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        machine.check()
        time.sleep(0.01)


def test_a_guest_does_not_outlive_its_link(victim):
    """The host closes the port; the agent powers the machine off."""
    victim.machine.port("org.iobmd.link").close()
    with pytest.raises(QemuDied):
        _watch(victim.machine, seconds=20)


def test_children_nobody_waits_for_are_reaped(victim):
    """Kernel threads aside, pid 1 is alone: the agent starts nothing by itself."""
    victim.peer.kill()
    users = []
    for pid in filter(str.isdigit, _list_dir(victim, "/proc")):
        with contextlib.suppress(GuestOSError):  # a thread of the kernel's that has ended since it was listed
            users += [pid] if victim.read_file(f"/proc/{pid}/cmdline") else []
    assert users == ["1"]


def _list_dir(guest, path):
    fd = guest.open(path, os.O_RDONLY | os.O_DIRECTORY)
    names = []
    while (result := guest.syscall(217, fd, Out(32768), 32768, what="getdents64")).value:
        data, at = result.outputs[0], 0
        while at < result.value:
            length = struct.unpack_from("<H", data, at + 16)[0]
            names.append(data[at + 19 : at + length].split(b"\0")[0].decode())
            at += length
    guest.close(fd)
    return names


def test_arguments_reach_the_kernel_as_strings(guest):
    assert guest.syscall(83, cstring("/tmp/dir"), 0o700, what="mkdir").value == 0
    with pytest.raises(GuestOSError) as caught:
        guest.syscall(83, cstring("/tmp/dir"), 0o700, what="mkdir")
    assert caught.value.observed == "EEXIST"
    assert "dir" in _list_dir(guest, "/tmp")
