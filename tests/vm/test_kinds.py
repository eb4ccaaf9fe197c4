# SPDX-License-Identifier: MIT
"""Real guests in every kind of trouble: what each is called, how soon, and that the next start is clean."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import FailureKind, HarnessError, Sign
from harness.forensics import KernelLog, diagnose, diagnosed
from harness.forensics.probes import Probes
from harness.images import SilentProgress, build_module, cache_root
from harness.link import (
    AgentDead,
    ChannelBroken,
    Guest,
    GuestOptions,
    In,
    KernelHung,
    Nr,
    OperationTimedOut,
    Out,
    RequestTimedOut,
)
from harness.vm import GuestPanicked, QemuDied, QemuStuck, QmpLost, SnapshotStore

K = FailureKind
# What a report may take after its deadline, and what this busy host adds.
REPORT_SECONDS = 2.0
SLACK_SECONDS = 1.0
CALL_SECONDS = 0.3


@pytest.fixture(scope="module")
def hang(guest_image):
    """The object file of a module that hangs the kernel on request."""
    source = Path(__file__).with_name("hang")
    return build_module(guest_image.kernel, source, SilentProgress(), name="hang").ko.read_bytes()


def _guests(image, cpus):
    options = GuestOptions(cpus=cpus)
    return Guest(image, options, SnapshotStore.default(), diagnose)


@pytest.fixture(scope="module")
def _one(guest_image):
    with _guests(guest_image, 1) as guest:
        yield guest


@pytest.fixture
def sick(_one):
    """A clean guest of one processor; whatever was done to it, it is put back and answers."""
    yield _one
    _one.restore()
    _one.link.ping()


def named(guest, what=None, seconds=CALL_SECONDS):
    """What a call is told, and how long after its deadline."""
    before = time.monotonic()
    with pytest.raises(HarnessError) as caught:
        (what or (lambda: guest.link.syscall(Nr.GETPID, timeout=seconds)))()
    took = time.monotonic() - before - seconds
    assert took < REPORT_SECONDS + SLACK_SECONDS, f"{took:.1f} s after the deadline: {caught.value}"
    return caught.value


def send_off(guest, *call):
    """Send a system call that does not come back; its frame is on its way when this returns."""
    with contextlib.suppress(RequestTimedOut, GuestPanicked):
        guest.link.start(*call).wait(0.2)


def hang_it(guest, ko, how):
    guest.load_module(ko)
    fd = guest.open("/sys/module/hang/parameters/how", os.O_WRONLY)
    flight = guest.link.start(Nr.WRITE, fd, In(how.encode()), 1)
    with contextlib.suppress(RequestTimedOut):
        flight._pending._link._channel.wait(flight._pending._flight, 0.3)


def answers(error):
    return {probe.name: probe.verdict for probe in error.probes}


def test_an_operation_that_is_stuck(sick):
    reader, _ = struct.unpack("2i", sick.syscall(Nr.PIPE, Out(8), what="pipe").outputs[0])
    error = named(sick, lambda: sick.link.syscall(Nr.READ, reader, Out(1), 1, timeout=CALL_SECONDS))
    assert error.kind is K.OPERATION_TIMED_OUT
    assert sick.link.ping(b"lives") == b"lives"


def test_a_call_of_the_guest_is_refined_as_well(sick, hang):
    hang_it(sick, hang, "o")
    sick.operation_timeout = CALL_SECONDS
    try:
        assert named(sick, lambda: sick.read_file("/proc/version")).kind is K.KERNEL_HUNG
    finally:
        sick.wait_as(sick.deadlines)


def test_an_agent_that_loops(sick):
    """Its code becomes a slide of no-operations that leads back to its start."""
    maps = sick.read_file("/proc/self/maps").decode().splitlines()
    text = next(line for line in maps if " r-xp " in line and "/init" in line)
    start, end = (int(word, 16) for word in text.split()[0].split("-"))
    code = b"\x90" * (end - start - 5) + b"\xe9" + (start - end & 0xFFFFFFFF).to_bytes(4, "little")
    fd = sick.open("/proc/self/mem", os.O_RDWR)
    first = named(sick, lambda: sick.link.syscall(Nr.PWRITE64, fd, In(code), len(code), start, timeout=0.3))
    assert first.kind is K.AGENT_DEAD
    error = named(sick)
    assert isinstance(error, AgentDead)
    assert answers(error)["kernel clock in RAM"] is Sign.LIFE
    assert "user mode" in str(error)


def test_a_kernel_that_spins_with_interrupts_on(sick, hang):
    hang_it(sick, hang, "i")
    error = named(sick)
    assert isinstance(error, KernelHung)
    assert answers(error)["kernel clock in RAM"] is Sign.LIFE
    assert answers(error)["SysRq by serial BREAK"] is Sign.LIFE
    assert "no process gets to run" in error.observed


def test_a_kernel_that_spins_with_interrupts_off(sick, hang):
    hang_it(sick, hang, "o")
    error = named(sick)
    assert isinstance(error, KernelHung)
    assert answers(error)["kernel clock in RAM"] is Sign.SILENCE
    assert answers(error)["SysRq by serial BREAK"] is Sign.SILENCE
    assert answers(error)["NMI"] is Sign.LIFE
    assert "looping in the kernel with interrupts off" in str(error)
    assert "hang: o" in "".join(error.evidence), "the log in RAM has what the console does not show"


def test_a_kernel_that_sleeps_for_good(sick, hang):
    hang_it(sick, hang, "h")
    error = named(sick)
    assert isinstance(error, KernelHung)
    assert "halted with interrupts off" in str(error)


def test_one_processor_of_two_hangs(guest_image, hang):
    with _guests(guest_image, 2) as guest:
        hang_it(guest, hang, "1")
        # The other one may go on to answer, if only pings: a worker may have to wait for the one that hangs.
        with contextlib.suppress(KernelHung, OperationTimedOut):
            for _ in range(3):
                guest.link.syscall(Nr.GETPID, timeout=CALL_SECONDS)


def test_a_panic(sick):
    fd = sick.open("/proc/sysrq-trigger", os.O_WRONLY)
    error = named(sick, lambda: sick.link.syscall(Nr.WRITE, fd, In(b"c"), 1, timeout=20), seconds=0)
    assert isinstance(error, GuestPanicked)


def test_qemu_stopped_from_outside(sick):
    os.kill(sick.machine.pid, signal.SIGSTOP)
    try:
        error = named(sick)
    finally:
        os.kill(sick.machine.pid, signal.SIGCONT)
    assert isinstance(error, QemuStuck)
    assert "stopped" in error.observed


def test_a_paused_machine(sick):
    sick.machine.qmp.execute("stop")
    error = named(sick)
    assert isinstance(error, QemuStuck)
    assert "'paused'" in error.observed
    sick.machine.qmp.execute("cont")
    sick.link.ping()


def test_qemu_killed(sick):
    os.kill(sick.machine.pid, signal.SIGKILL)
    error = named(sick)
    assert isinstance(error, QemuDied)
    assert error.signal_name == "SIGKILL"


def test_the_protocol_is_gone_and_the_guest_lives(sick):
    sick.machine.qmp._sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(QmpLost) as caught, diagnosed(sick), sick.machine.stopped():
        pytest.fail("it stopped without a protocol")
    assert caught.value.kind is K.CHANNEL_BROKEN
    assert answers(caught.value)["ping"] is Sign.LIFE


def test_without_a_protocol_a_hang_is_still_seen_in_memory(sick, hang):
    hang_it(sick, hang, "o")
    sick.machine.qmp._sock.shutdown(socket.SHUT_RDWR)
    assert named(sick).kind is K.KERNEL_HUNG


def test_noise(sick):
    reader, _ = struct.unpack("2i", sick.syscall(Nr.PIPE, Out(8), what="pipe").outputs[0])
    pending = sick.link.start(Nr.READ, reader, Out(1), 1)
    sick.machine.port("org.iobmd.link").send(b"no frame at all")
    with pytest.raises(ChannelBroken) as caught, diagnosed(sick):
        pending.wait(10)
    assert caught.value.kind is K.CHANNEL_BROKEN
    assert answers(caught.value)["ping"] is Sign.LIFE


@pytest.mark.parametrize("idle", [0.0, 1.5])
def test_an_idle_guest_is_no_hung_one(sick, idle):
    """Its clock stands still while everything sleeps, until somebody wakes it."""
    time.sleep(idle)
    probes = Probes(sick)
    time.sleep(idle / 3)
    assert probes.agent(2.0) is Sign.LIFE
    assert probes.clock() is Sign.LIFE
    assert probes.processors(2.0) is Sign.LIFE
    assert probes.sysrq(2.0) is Sign.LIFE
    assert probes.nmi(2.0) is Sign.LIFE
    sick.link.ping()


def test_the_log_in_memory_is_the_kernels(sick):
    sick.write_file("/dev/kmsg", b"<7>iobmd: below the console's level\n")
    log = KernelLog.of(sick)
    # The kernel may have said more since.
    assert any(line.endswith("iobmd: below the console's level") for line in log.lines())
    assert any("Run /init as init process" in line for line in log.lines(1000))
    assert "below the console" not in sick.machine.console.text()


def test_vitals_are_the_same_after_a_restore(sick):
    before = sick.vitals
    assert None not in (before.clock, before.note)
    sick.restore()
    assert sick.vitals == before


def test_deadlines_come_from_the_boot(sick):
    assert sick.deadlines.slowness >= 0.5
    assert "boots in" in sick.deadlines.why
    assert sick.operation_timeout == sick.deadlines.operation == sick.link.deadlines.operation


def test_a_kernel_that_does_not_get_to_its_agent(guest_image):
    """It stays in its boot for longer than it is given."""
    options = GuestOptions(boot_timeout=1.0, cmdline=("initcall_debug", "boot_delay=50", "lpj=1000000"))
    with (
        pytest.raises(HarnessError, match="did not answer within 1 s") as caught,
        Guest(guest_image, options, None, diagnose),
    ):
        pytest.fail("it booted")
    assert caught.value.probes
    assert caught.value.kind in (K.GUEST_FAILED, K.KERNEL_HUNG, K.AGENT_DEAD)


def _iobmd(*words, limit=None):
    return subprocess.run(
        [sys.executable, "-m", "harness", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with the same kernels and modules, and one snapshot, which is nobody else's."""
    folder = tmp_path_factory.mktemp("cache")
    for entry in cache_root().iterdir():
        if entry.name not in ("snapshots", "locks"):
            (folder / entry.name).symlink_to(entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IOBMD_CACHE", str(folder))
        assert _iobmd("check", "--group", "A01").returncode == 0
    return folder


@pytest.mark.parametrize("files", [8, 13, 15, 18])
def test_no_descriptors_left(files, cache, monkeypatch):
    """Wherever it strikes, it is named, and a good snapshot is not thrown away for it."""
    monkeypatch.setenv("IOBMD_CACHE", str(cache))
    (before,) = (cache / "snapshots").iterdir()

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    done = _iobmd("check", "--group", "A01", limit=limit)
    assert done.returncode == K.HOST_EXHAUSTED.exit_code, done.stderr
    assert "descriptors" in done.stderr
    assert "Traceback" not in done.stderr
    assert [*(cache / "snapshots").iterdir()] == [before]


def test_a_terminated_check_leaves_nothing(tmp_path):
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", "check"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    # The signal may have come before the folder belonged to anybody; then the heir removes it.
    deadline = time.monotonic() + 1
    while any(tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
