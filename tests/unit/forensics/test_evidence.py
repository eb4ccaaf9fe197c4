# SPDX-License-Identifier: MIT
"""What a guest in trouble is asked, with guests that are none: answers, silence, and QEMU gone."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.forensics import Symbols, evidence, gdb
from harness.vm import QmpLost, QmpSilent

BACKTRACE = """[    2.000000] sysrq: Show backtrace of all active CPUs
[    2.100000] NMI backtrace for cpu 0
[    2.100000] CPU: 0 PID: 7 Comm: loops Not tainted 6.1.0 #1
[    2.100000] RIP: 0010:spins+0x5/0x10
[    2.100000] Call Trace:
[    2.100000]  <TASK>
[    2.100000]  calls_it+0x9/0x20
[    2.100000]  </TASK>
"""


class Console:
    def __init__(self, answers):
        self.answers, self.said, self.sent = answers, "", []

    def mark(self):
        return len(self.said)

    def text(self, since=0):
        return self.said[since:]

    def send(self, key, _timeout):
        self.sent.append(key)
        self.said += self.answers.get(key, "")

    def wait_output(self, seconds, *, since):
        if len(self.said) <= since:
            time.sleep(min(seconds, 0.01))
        return len(self.said) > since


class Guest:
    """Asked by QMP and by keys."""

    def __init__(self, answers=(), *, broken=None, nmi=""):
        self.asked, self.broken, self.nmi = [], broken, nmi
        self.console = Console(dict(answers))
        self.deadlines = SimpleNamespace(scale=1.0)
        qmp = SimpleNamespace(ask=self.ask, execute=self.execute, hmp=lambda line: self.ask(line, timeout=1))
        self.machine = SimpleNamespace(
            qmp=qmp, console=self.console, check=lambda: None, describe=lambda: "a machine",
            spec=SimpleNamespace(memory_mib=2048),
        )  # fmt: skip

    def ask(self, command, _arguments=None, *, timeout):
        self.asked.append((command, timeout))
        if self.broken is not None:
            raise self.broken
        if command == "inject-nmi":
            self.console.said += self.nmi
        return {"status": "running", "running": True}

    def execute(self, command, arguments=None, *, timeout=0.0):
        self.asked.append((command, arguments, timeout))
        if self.broken is not None:
            raise self.broken
        return {}


@pytest.fixture(autouse=True)
def no_symbols(monkeypatch):
    monkeypatch.setattr(Symbols, "known", classmethod(lambda *_: None))
    monkeypatch.setattr(
        evidence, "backtraces", lambda *_, **__: [SimpleNamespace(render=lambda: "vCPU 0: here")]
    )
    monkeypatch.setattr(evidence.KernelLog, "of", classmethod(lambda *_: None))


def test_a_kernel_that_takes_interrupts_is_asked_by_sysrq():
    keys = dict.fromkeys((b"8", b"w", b"t", b"5"), "[    2.000000] sysrq: answer\n") | {b"l": BACKTRACE}
    guest = Guest(keys)
    told = evidence.hang_report(guest)
    assert guest.console.sent == [b"8", b"l", b"w", b"t", b"5"]
    assert "running, running; a machine" in told
    assert "vCPU 0: here" in told
    assert "backtrace: NMI backtrace for cpu 0\n  on  CPU 0, loops[7]\n  at  spins+0x5/0x10\n" in told
    assert "      calls_it+0x9/0x20" in told
    assert "inject-nmi" not in [command for command, *_ in guest.asked]


def test_a_kernel_that_takes_none_is_asked_by_an_nmi_after_one_key():
    guest = Guest(nmi="[    3.000000] Uhhuh. NMI received for unknown reason 21 on CPU 0.\n")
    told = evidence.hang_report(guest)
    assert guest.console.sent == [b"8"]
    assert "Uhhuh. NMI received" in told


def test_a_kernel_that_answers_nothing_is_not_waited_for_long():
    since = time.monotonic()
    told = evidence.hang_report(Guest())
    assert "neither a SysRq key nor an NMI was answered on the console" in told
    assert time.monotonic() - since < evidence._SYSRQ_SECONDS + 20.0


@pytest.mark.parametrize(
    "broken",
    [QmpLost("QEMU is gone", command="x"), QmpSilent("QEMU is silent", command="x"), OSError(28, "full")],
)
def test_what_cannot_be_asked_says_why_and_the_rest_is_there(broken):
    told = evidence.hang_report(Guest(broken=broken))
    assert told.count("cannot be had: ") == 3
    assert "=== the kernel's log, out of its memory\n(where it is was never asked)" in told


def test_a_dump_has_time_for_the_memory_there_is(tmp_path):
    guest, file = Guest(), tmp_path / "core"
    file.write_bytes(b"x" * 10)
    assert evidence.dump_memory(guest, file) == 10
    ((command, arguments, timeout),) = guest.asked
    assert command == "dump-guest-memory"
    assert arguments == {"paging": False, "protocol": f"file:{file}"}
    assert timeout == 70.0


def test_gdb_gets_the_module_at_its_place(tmp_path):
    module = SimpleNamespace(ko_debug=tmp_path / "m.ko")
    guest = SimpleNamespace(image=SimpleNamespace(module=module))
    sections = {".text": 0xFFFFFFFFC0001000, ".data": 0xFFFFFFFFC0002000}
    words = gdb.command(guest, sections, Path("/run/gdb.sock"))
    assert f"'add-symbol-file {tmp_path}/m.ko 0xffffffffc0001000 -s .data 0xffffffffc0002000'" in words
    assert words.startswith("gdb -q ")
    assert words.endswith("-ex 'target remote /run/gdb.sock'")
    assert "add-symbol-file" not in gdb.command(guest, {}, Path("/run/gdb.sock"))
