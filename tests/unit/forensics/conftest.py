# SPDX-License-Identifier: MIT
"""A guest that shows exactly the signs of life a test gives it, without QEMU."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from harness.deadlines import Deadlines
from harness.link.vitals import Vitals
from harness.vm import GuestSilent, QmpLost, QmpSilent, Scene

CLOCK = 0x1000
IDLE = "RIP=ffffffff81a17a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1"
USER = "RIP=0000000000457e00 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0"
SPIN = "RIP=ffffffffc0219000 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0"
DEAF = "RIP=ffffffffc0219000 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0"
HALTED = "RIP=ffffffffc0219000 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1"
EARLY = "EIP=000f1234 EFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0"


def registers(*cpus: str) -> str:
    """What the monitor prints for these processors."""
    return "".join(
        f"\r\nCPU#{number}\r\nRAX=0 RBX=0\r\n{cpu}\r\nES =0000\r\n" for number, cpu in enumerate(cpus)
    )


@dataclass
class Patient:
    """What each probe is to find."""

    agent: bool = False
    behind: bool = False  # the agent answers behind a megabyte of nothing
    ticks: bool = True  # the clock page changes
    clock: int | None = CLOCK
    qmp: str = "answers"  # "silent", "lost"
    status: str = "running"
    cpus: tuple[str, ...] = (IDLE,)
    shy: int = 0  # so many questions about them get no answer
    sysrq: bool = True
    nmi: bool = True
    printing: bool = False
    dead: Exception | None = None
    dies_at: str = ""  # the QMP command at which it dies
    asked: list[str] = field(default_factory=list)
    generation: int = 0

    def __post_init__(self) -> None:
        self._reads = 0
        self._printed = 0
        self._await = ""
        self.deadlines = Deadlines()
        self.vitals = Vitals(clock=self.clock)
        self.link = SimpleNamespace(answers=self._answers, answers_behind=self._answers_behind)
        console = SimpleNamespace(
            mark=self._mark, send=lambda *_: None, wait_for=self._wait_for, tail=lambda *_: ("the last line",)
        )
        self.machine = SimpleNamespace(
            pid=os.getpid(),
            check=self._check,
            qmp=SimpleNamespace(ask=self._ask),
            ram=SimpleNamespace(read=self._read),
            console=console,
            argv=("qemu",),
            repro_command=lambda: "qemu",
            workdir=None,
        )

    def __hash__(self) -> int:
        return id(self)

    def _check(self) -> None:
        if self.dead is not None and not self.dies_at:
            raise self.dead

    def _answers(self, _timeout: float) -> bool:
        self.asked.append("ping")
        return self.agent

    def _answers_behind(self, timeout: float) -> bool:
        assert 0 < timeout < 2
        self.asked.append("megabyte")
        return self.behind

    def _read(self, gpa: int, length: int) -> bytes:
        assert (gpa, length) == (CLOCK, 4096)
        self._reads += self.ticks
        return self._reads.to_bytes(8, "little") * 512

    def _ask(self, command: str, _arguments: object = None, *, timeout: float) -> object:
        self.asked.append(command)
        assert 0 < timeout < 2
        if command == self.dies_at and self.dead is not None:
            self.dies_at = ""
            raise self.dead
        if self.qmp == "silent":
            raise QmpSilent("silence", command=command)
        if self.qmp == "lost":
            raise QmpLost("gone", command=command)
        self._await = command
        if command == "query-status":
            return {"status": self.status, "running": self.status == "running"}
        if command != "human-monitor-command":
            return {}
        self.shy -= 1
        if self.shy >= 0:
            raise QmpSilent("silence", command=command)
        return registers(*self.cpus)

    def _mark(self) -> int:
        self._printed += self.printing
        return self._printed

    def _wait_for(self, _pattern: str, timeout: float, *, since: int) -> None:  # noqa: ARG002
        if not {"chardev-send-break": self.sysrq, "inject-nmi": self.nmi}[self._await]:
            raise GuestSilent("silence", seconds=timeout, scene=Scene())


@pytest.fixture
def patient():
    return Patient
