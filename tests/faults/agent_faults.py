# SPDX-License-Identifier: MIT
"""Faults of the agent, which is the guest's init, and of the guest's second process.

Init takes no signal from anybody that would stop or end it, so its own program is changed under its feet:
``/proc/self/mem`` may be written even where the program's text is read-only.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from elftools.elf.elffile import ELFFile
from fault_table import DEADLINE, HANG_SECONDS, PANIC_SECONDS
from stage import Stage, fault, until

from harness.errors import FailureKind
from harness.link import Guest, In, Nr, Out, cstring
from harness.link.link import PendingCall

_DEAD = FailureKind.AGENT_DEAD
_TIMED_OUT = FailureKind.OPERATION_TIMED_OUT
_PANICKED = FailureKind.KERNEL_PANICKED
_PAUSE = 34  # arch/x86/entry/syscalls/syscall_64.tbl
_PROT_RW, _PRIVATE_ANONYMOUS, _POPULATE = 3, 0x22, 0x8000


@fault("agent", "an infinite loop in the agent", _DEAD, HANG_SECONDS)
def agent_loops(stage: Stage) -> None:
    """Its reading of the port becomes an instruction that jumps to itself."""
    with _patched(stage, "frame_send", b"\xeb\xfe") as reply, stage.injection():
        reply.wait(DEADLINE)


@fault("agent", "the agent crashes: it is init, so the kernel panics", _PANICKED, PANIC_SECONDS)
def agent_crashes(stage: Stage) -> None:
    with _patched(stage, "frame_send", b"\x0f\x0b") as reply, stage.injection():
        reply.wait(30.0)


@fault(
    "agent",
    "the agent is killed: it is init, so the kernel panics",
    FailureKind.KERNEL_PANICKED,
    PANIC_SECONDS,
)
def agent_killed(stage: Stage) -> None:
    stage.break_by("kill-agent", seconds=30.0)


@fault("agent", "the agent is frozen by its control group", _DEAD, HANG_SECONDS)
def agent_frozen(stage: Stage) -> None:
    with stage.guest() as guest:
        guest.syscall(Nr.MKDIR, cstring("/tmp/groups"), 0o700, what="mkdir")
        guest.syscall(
            Nr.MOUNT, cstring("none"), cstring("/tmp/groups"), cstring("cgroup2"), 0, 0, what="mount"
        )
        guest.syscall(Nr.MKDIR, cstring("/tmp/groups/cold"), 0o700, what="mkdir")
        guest.write_file("/tmp/groups/cold/cgroup.procs", b"1")
        fd = guest.open("/tmp/groups/cold/cgroup.freeze", os.O_WRONLY)
        with stage.injection():
            guest.link.syscall(Nr.WRITE, fd, In(b"1"), 1, timeout=DEADLINE)
            guest.link.ping(timeout=DEADLINE)


@fault("agent", "deadlock in the agent: a lock that is never released", _DEAD, HANG_SECONDS)
def agent_deadlocks(stage: Stage) -> None:
    """What sends a reply begins with a wait for itself: pause() in place of the function."""
    code = b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7"  # mov $34 (pause), %eax; syscall; jmp to the start
    with _patched(stage, "frame_send", code) as reply, stage.injection():
        reply.wait(DEADLINE)


@fault(
    "agent",
    "all workers stuck in the kernel, one more operation",
    FailureKind.OPERATION_TIMED_OUT,
    HANG_SECONDS,
)
def all_workers_stuck(stage: Stage) -> None:
    with stage.guest() as guest:
        pipe = int.from_bytes(guest.syscall(Nr.PIPE, Out(8), what="pipe").outputs[0][:4], "little")
        for _ in range(guest.hello.workers):
            guest.link.start(Nr.READ, pipe, Out(1), 1)
        with stage.injection():
            guest.link.syscall(Nr.GETPID, timeout=DEADLINE)


@fault("agent", "init is asked to power off", FailureKind.QEMU_DIED, PANIC_SECONDS)
def powered_off(stage: Stage) -> None:
    with stage.guest() as guest:
        peer = guest.peer
        with stage.injection():
            peer.syscall(Nr.KILL, 1, signal.SIGTERM, what="kill 1")
            guest.link.syscall(_PAUSE, timeout=30.0)


@fault("agent", "the second process is killed", FailureKind.GUEST_FAILED, PANIC_SECONDS)
def peer_killed(stage: Stage) -> None:
    with stage.guest() as guest:
        peer = guest.peer
        guest.syscall(Nr.KILL, peer.hello.pid, signal.SIGKILL, what="kill")
        with stage.injection():
            peer.link.ping(timeout=30.0)


@fault("agent", "the second process is stopped", _DEAD, HANG_SECONDS)
def peer_stopped(stage: Stage) -> None:
    with stage.guest() as guest:
        peer = guest.peer
        guest.syscall(Nr.KILL, peer.hello.pid, signal.SIGSTOP, what="kill")
        stat = f"/proc/{peer.hello.pid}/stat"
        until(lambda: b") T " in guest.read_file(stat), PANIC_SECONDS, "the process does not stop")
        with stage.injection():
            peer.link.ping(timeout=DEADLINE)


@fault("agent", "the second process takes all memory", FailureKind.GUEST_FAILED, 10.0)
def peer_takes_all_memory(stage: Stage) -> None:
    """The kernel kills it for that; init is spared.  The limit is for giving the memory back, after that."""
    with stage.guest() as guest:
        peer, size = guest.peer, guest.options.memory_mib << 20
        guest.write_file("/proc/sys/vm/overcommit_memory", b"1")
        flags = _PRIVATE_ANONYMOUS | _POPULATE
        with stage.after(guest, "Out of memory: Killed process"), stage.injection():
            peer.link.syscall(Nr.MMAP, 0, size, _PROT_RW, flags, (1 << 64) - 1, 0, timeout=120.0)
            peer.link.ping(timeout=30.0)


@contextmanager
def _patched(stage: Stage, function: str, code: bytes) -> Iterator[PendingCall]:
    """Let an agent execute *code* where one of its functions began; yields the answer to that."""
    with stage.guest() as guest:
        address = _address(guest, function)
        fd = guest.open("/proc/self/mem", os.O_RDWR)
        yield guest.link.start(Nr.PWRITE64, fd, In(code), len(code), address)


def _address(guest: Guest, function: str) -> int:
    with guest.image.agent.debug.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab").get_symbol_by_name(function)
    return int(symbols[0]["st_value"])
