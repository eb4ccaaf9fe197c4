# SPDX-License-Identifier: MIT
"""Where a guest shows from outside that it lives, asked of one that is made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness.link import GuestOSError
from harness.link.syscalls import Nr, SyscallResult
from harness.link.vitals import Vitals

MAPS = b"""00401000-00492000 r-xp 00001000 00:02 8                                  /init
7ffe6cc9a000-7ffe6cc9e000 r--p 00000000 00:00 0                          [vvar]
7ffe6cc9e000-7ffe6cca0000 r-xp 00000000 00:00 0                          [vdso]
"""
NOTE = b"0x0000000003fae000 1024\n"


class Healthy:
    """A guest of two processors; only the second has the agent's page tables."""

    def __init__(self, maps=MAPS, note=NOTE, told=("Unmapped\r\n", "gpa: 0x3019000\r\n"), ram=1 << 29):
        self.files = {"/proc/self/maps": maps, "/sys/kernel/vmcoreinfo": note}
        self.told = told
        self.touched = []
        self.closed = []
        self.machine = SimpleNamespace(
            spec=SimpleNamespace(cpus=len(told)),
            qmp=SimpleNamespace(execute=self._execute),
            ram=SimpleNamespace(contains=lambda gpa, length: gpa + length <= ram),
        )

    def read_file(self, path):
        if self.files[path] is None:
            raise GuestOSError(2, f"open {path}")
        return self.files[path]

    def syscall(self, number, *args, what):  # noqa: ARG002
        if number == Nr.WRITE:
            self.touched.append(args[1:])
        return SyscallResult(7, ())

    def close(self, fd):
        self.closed.append(fd)

    def _execute(self, command, arguments):
        assert command == "human-monitor-command"
        assert arguments["command-line"] == "gva2gpa 0x7ffe6cc9a000"
        return self.told[arguments["cpu-index"]]


def test_both_places_are_found():
    guest = Healthy()
    assert Vitals.take(guest) == Vitals(clock=0x3019000, note=0x3FAE000)
    assert guest.touched == [(0x7FFE6CC9A000, 8)]
    assert guest.closed == [7]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"maps": MAPS.replace(b"vvar", b"other")}, Vitals(None, 0x3FAE000)),
        ({"maps": None}, Vitals(None, 0x3FAE000)),
        ({"told": ("Unmapped", "Unmapped")}, Vitals(None, 0x3FAE000)),
        ({"note": None}, Vitals(0x3019000, None)),
        ({"note": b""}, Vitals(0x3019000, None)),
        ({"note": b"junk junk"}, Vitals(0x3019000, None)),
        ({"ram": 1 << 20}, Vitals(None, None)),
    ],
)
def test_a_kernel_may_lack_either(changes, found):
    assert Vitals.take(Healthy(**changes)) == found


def test_a_snapshot_remembers_them():
    vitals = Vitals(0x1000, None)
    assert Vitals.recall(vitals.memo()) == vitals
    assert Vitals.recall({}) == Vitals()
