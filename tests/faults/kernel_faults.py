# SPDX-License-Identifier: MIT
"""Faults of the guest's kernel: by the injector, and by what every kernel can be made to do."""

import os
import time

from fault_table import DEADLINE, HANG_SECONDS, PANIC_SECONDS
from stage import DEVICE, IOC_PANIC, Stage, fault

from harness.errors import FailureKind
from harness.link import In, Nr, Out

_PANICKED = FailureKind.KERNEL_PANICKED
_HUNG = FailureKind.KERNEL_HUNG
_TIMED_OUT = FailureKind.OPERATION_TIMED_OUT
_DIED = FailureKind.QEMU_DIED
_DAY = 86_400
_CLOCK_SETTIME, _CLOCK_REALTIME = 227, 0  # syscall_64.tbl, linux/time.h


@fault("kernel", "panic() in a write", _PANICKED, PANIC_SECONDS)
def panic_in_a_write(stage: Stage) -> None:
    stage.break_by("panic", seconds=30.0)


@fault("kernel", "panic() in an ioctl", _PANICKED, PANIC_SECONDS)
def panic_in_an_ioctl(stage: Stage) -> None:
    with stage.guest() as guest:
        fd = guest.open(DEVICE, os.O_RDWR)
        with stage.injection():
            guest.link.syscall(Nr.IOCTL, fd, IOC_PANIC, 0, timeout=30.0)


@fault("kernel", "panic() while sixteen other operations are under way", _PANICKED, PANIC_SECONDS)
def panic_beside_others(stage: Stage) -> None:
    with stage.guest() as guest:
        fd = guest.open(DEVICE, os.O_RDWR)
        pipe = int.from_bytes(guest.syscall(Nr.PIPE, Out(8), what="pipe").outputs[0][:4], "little")
        waiting = [guest.link.start(Nr.READ, pipe, Out(1), 1) for _ in range(guest.hello.workers - 1)]
        guest.link.start(Nr.WRITE, fd, In(b"panic"), 5)
        with stage.injection():
            waiting[-1].wait(30.0)


@fault("kernel", "a NULL pointer is written to, oops=panic", _PANICKED, PANIC_SECONDS)
def oops_that_panics(stage: Stage) -> None:
    with stage.guest() as guest:
        guest.write_file("/proc/sys/kernel/panic_on_oops", b"1")
        with stage.injection():
            stage.ask(guest, "oops", 30.0)


@fault("kernel", "the kernel's stack overflows", _PANICKED, PANIC_SECONDS)
def stack_overflow(stage: Stage) -> None:
    stage.break_by("stack-overflow", seconds=30.0)


@fault("kernel", "a write behind an array on the stack", _PANICKED, PANIC_SECONDS)
def stack_smash(stage: Stage) -> None:
    stage.break_by("stack-smash", seconds=30.0)


@fault("kernel", "a module allocates all memory", _PANICKED, PANIC_SECONDS)
def out_of_memory(stage: Stage) -> None:
    """To fill the memory takes the guest's time; ours counts from the panic, as above."""
    stage.break_by("out-of-memory", seconds=120.0, says="Kernel panic")


@fault("kernel", "all interrupt vectors gone, then a trap: triple fault", _DIED, PANIC_SECONDS)
def triple_fault(stage: Stage) -> None:
    stage.break_by("triple-fault", seconds=30.0)


@fault("kernel", "reboot by SysRq", _DIED, PANIC_SECONDS)
def reboot(stage: Stage) -> None:
    with stage.guest() as guest, stage.injection():
        guest.write_file("/proc/sysrq-trigger", b"b")


@fault("kernel", "spins with interrupts on, the only processor", _HUNG, HANG_SECONDS)
def spin(stage: Stage) -> None:
    stage.break_by("spin")


@fault("kernel", "loops and lets others run", _TIMED_OUT, HANG_SECONDS)
def spin_politely(stage: Stage) -> None:
    stage.break_by("spin-politely")


@fault("kernel", "spins with interrupts off", _HUNG, HANG_SECONDS)
def spin_deaf(stage: Stage) -> None:
    stage.break_by("spin-deaf")


@fault("kernel", "deadlock: a spinlock taken twice", _HUNG, HANG_SECONDS)
def deadlock(stage: Stage) -> None:
    stage.break_by("lock-twice")


@fault("kernel", "deadlock: a spinlock taken twice with interrupts off", _HUNG, HANG_SECONDS)
def deadlock_deaf(stage: Stage) -> None:
    stage.break_by("lock-twice-deaf")


@fault("kernel", "deadlock: a mutex taken twice", _TIMED_OUT, HANG_SECONDS)
def deadlock_asleep(stage: Stage) -> None:
    stage.break_by("mutex-twice")


@fault("kernel", "all processors halt with interrupts off", _HUNG, HANG_SECONDS)
def halt(stage: Stage) -> None:
    stage.break_by("halt", cpus=2)


@fault("kernel", "an uninterruptible sleep without end", _TIMED_OUT, HANG_SECONDS)
def hang(stage: Stage) -> None:
    stage.break_by("hang")


@fault("kernel", "spins for 2 s, then goes on", None, 6.0)
def stall(stage: Stage) -> None:
    """An operation whose deadline it meets; nothing has failed."""
    stage.break_by("stall", seconds=20.0)


@fault("kernel", "nothing: the injector as a control", None, PANIC_SECONDS)
def nothing(stage: Stage) -> None:
    stage.break_by("nothing")


@fault("kernel", "a page of the direct map stays write-combined", None, PANIC_SECONDS)
def page_left_combined(stage: Stage) -> None:
    stage.break_by("leave-combined")


@fault("kernel", "the clock jumps by a day, forth and back", None, PANIC_SECONDS)
def clock_jump(stage: Stage) -> None:
    """Deadlines are the host's; an operation under way meanwhile is not late."""
    with stage.guest() as guest, stage.injection():
        for seconds in (int(time.time()) + _DAY, int(time.time()) - _DAY):
            to = In(seconds.to_bytes(8, "little") + bytes(8))
            assert guest.link.syscall(_CLOCK_SETTIME, _CLOCK_REALTIME, to, timeout=DEADLINE).value == 0
            guest.link.ping(timeout=DEADLINE)
