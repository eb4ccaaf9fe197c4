# SPDX-License-Identifier: MIT
"""Faults of QEMU: its process, its sockets, and the memory it shares with the harness."""

import ctypes
import os
import re
import signal
import socket
from collections.abc import Callable

import pytest
from fault_table import DEADLINE, HANG_SECONDS, PANIC_SECONDS
from stage import DEVICE, IOC_PANIC, Stage, fault

from harness.errors import FailureKind
from harness.link import Guest, Nr, Out

_DIED = FailureKind.QEMU_DIED
_STUCK = FailureKind.QEMU_STUCK
_PUNCH_HOLE, _KEEP_SIZE = 2, 1  # linux/falloc.h


def _by_signal(number: signal.Signals) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        with stage.guest() as guest:
            pipe = _empty_pipe(guest)
            with stage.injection():
                os.kill(guest.machine.pid, number)
                guest.link.syscall(Nr.READ, pipe, Out(1), 1, timeout=30.0)

    inject.__name__ = f"qemu_gets_{number.name}"
    return inject


for _number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM):
    fault("QEMU", f"it gets {_number.name}", _DIED, PANIC_SECONDS)(_by_signal(_number))


@fault("QEMU", "it is stopped (SIGSTOP)", _STUCK, HANG_SECONDS)
def qemu_stopped(stage: Stage) -> None:
    with stage.guest() as guest, stage.injection():
        os.kill(guest.machine.pid, signal.SIGSTOP)
        guest.link.ping(timeout=DEADLINE)


@fault("QEMU", "it is stopped while its protocol is asked", _STUCK, HANG_SECONDS)
def qemu_stopped_in_qmp(stage: Stage) -> None:
    with stage.guest() as guest, stage.injection():
        os.kill(guest.machine.pid, signal.SIGSTOP)
        guest.machine.qmp.execute("query-status", timeout=DEADLINE)


@fault("QEMU", "somebody pauses the guest through its protocol", _STUCK, HANG_SECONDS)
def guest_paused(stage: Stage) -> None:
    with stage.guest() as guest, stage.injection():
        guest.machine.qmp.execute("stop")
        guest.link.ping(timeout=DEADLINE)


@fault("QEMU", "it is told to quit", _DIED, PANIC_SECONDS)
def qemu_quits(stage: Stage) -> None:
    with stage.guest() as guest, stage.injection():
        guest.machine.qmp.execute("quit")
        guest.link.ping(timeout=30.0)


@fault("QEMU", "its protocol's socket is gone", FailureKind.CHANNEL_BROKEN, PANIC_SECONDS)
def qmp_gone(stage: Stage) -> None:
    with stage.guest() as guest:
        with stage.injection():
            guest.machine._life.launched.qmp.shutdown(socket.SHUT_RDWR)
            guest.machine.qmp.execute("query-status", timeout=DEADLINE)
        guest.link.ping(timeout=PANIC_SECONDS)  # the guest does not need it


@fault("QEMU", "the console's socket is gone", FailureKind.CHANNEL_BROKEN, PANIC_SECONDS)
def console_gone(stage: Stage) -> None:
    with stage.guest() as guest, stage.injection():
        guest.machine.console._sock.shutdown(socket.SHUT_RDWR)
        guest.machine.console.wait_for("never", timeout=DEADLINE)


@fault(
    "QEMU",
    "the console's socket is gone, an operation is under way",
    FailureKind.CHANNEL_BROKEN,
    PANIC_SECONDS,
)
def console_gone_meanwhile(stage: Stage) -> None:
    """A panic would go unnoticed from now on."""
    with stage.guest() as guest:
        pipe = _empty_pipe(guest)
        with stage.injection():
            guest.machine.console._sock.shutdown(socket.SHUT_RDWR)
            guest.link.syscall(Nr.READ, pipe, Out(1), 1, timeout=30.0)


@fault("QEMU", "50 MB on the console, then a panic", FailureKind.KERNEL_PANICKED, PANIC_SECONDS)
def console_flood(stage: Stage) -> None:
    """Written at QEMU's end of the socket; a guest's serial port would take minutes for as much.

    The time counts from the panic, which the flood is still before.
    """
    with stage.guest() as guest:
        fd = guest.open(DEVICE, os.O_RDWR)
        _flood(guest, 50 << 20)
        guest.link.ping(timeout=30.0)
        with stage.injection():
            guest.link.syscall(Nr.IOCTL, fd, IOC_PANIC, 0, timeout=30.0)
        assert guest.machine.console.mark() > 50 << 20


@fault("QEMU", "the guest's memory is cut off behind QEMU's back", None, PANIC_SECONDS)
def memory_cut(stage: Stage) -> None:
    """Its file has no name that could be deleted, and is sealed against becoming shorter."""
    with stage.guest() as guest, stage.injection():
        with pytest.raises(PermissionError):
            os.ftruncate(guest.machine._life.launched.ram, 0)
        guest.link.ping(timeout=DEADLINE)


@fault("QEMU", "the guest's memory is emptied behind QEMU's back", _DIED, HANG_SECONDS)
def memory_emptied(stage: Stage) -> None:
    """The processor finds neither page tables nor interrupt vectors: a triple fault."""
    with stage.guest() as guest, stage.injection():
        size = guest.options.memory_mib << 20
        how = ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE)
        ram = guest.machine._life.launched.ram
        assert ctypes.CDLL(None).fallocate(ram, how, ctypes.c_long(0), ctypes.c_long(size)) == 0
        guest.link.ping(timeout=DEADLINE)


def _empty_pipe(guest: Guest) -> int:
    """A descriptor of the guest that never has anything to read."""
    return int.from_bytes(guest.syscall(Nr.PIPE, Out(8), what="pipe").outputs[0][:4], "little")


def _flood(guest: Guest, size: int) -> None:
    """Write at QEMU's end of the console's socket."""
    fd = int(re.search(r"id=console,fd=(\d+)|fd=(\d+),id=console", " ".join(guest.machine.argv))[1])
    own = os.pidfd_open(guest.machine.pid)
    theirs = ctypes.CDLL(None).syscall(ctypes.c_long(Nr.PIDFD_GETFD), own, fd, 0)
    os.close(own)
    assert theirs >= 0
    line, sent = b"x" * 99 + b"\n", 0
    with socket.socket(fileno=theirs) as end:
        end.setblocking(True)
        block = line * 2000
        while sent < size:
            end.sendall(block)
            sent += len(block)
        end.setblocking(False)
