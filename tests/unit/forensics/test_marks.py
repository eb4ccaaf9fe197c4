# SPDX-License-Identifier: MIT
"""Marks in a kernel's log: what they look like, when they have arrived, what happens to their files."""

import errno
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from harness.forensics import Taint
from harness.forensics.marks import Marks, arrived, plain
from harness.link import GuestOSError, Nr


class Console:
    """A log that grows while somebody waits."""

    def __init__(self, *pieces):
        self.said, self.pieces, self.ended = b"", list(pieces), False

    def mark(self):
        return len(self.said)

    def raw(self, since):
        return self.said[since:]

    def wait_output(self, _seconds, *, since):
        if self.pieces:
            self.said += self.pieces.pop(0)
        else:
            time.sleep(0.01)
        return len(self.said) > since


def test_a_mark_is_printable_and_both_its_ends_are_kept():
    assert plain("tests/x.py::t[ä\n\x1b[0m]") == "tests/x.py::t[???[0m]"
    long = plain("begin " + "x" * 500 + " end")
    assert len(long) == 120
    assert long.startswith("begin x")
    assert long.endswith("x end")


def test_a_mark_has_arrived_where_its_line_begins():
    console = Console(b"[    1.0] before\n[    1.", b"1] a ma", b"rk\n")
    assert arrived(console, "a mark", 0, 5.0) == len(b"[    1.0] before\n")


def test_a_mark_that_does_not_come_is_not_waited_for_longer_than_asked():
    since = time.monotonic()
    assert arrived(Console(b"something else\n"), "a mark", 0, 0.05) is None
    assert time.monotonic() - since < 20.0
    ended = Console()
    ended.ended = True
    assert arrived(ended, "a mark", 0, 60.0) is None


class Trip:
    """One batch of a guest that counts its files."""

    def __init__(self, guest):
        self.guest, self.calls = guest, []

    def outputs(self, dtype):
        return SimpleNamespace(records=np.array([self.guest.tainted], dtype=dtype))

    def inputs(self, records):
        return records

    def call(self, number, fd, *args, what):
        self.calls.append((number, fd, args, what))
        return len(self.calls) - 1

    def run(self, *, timeout):
        self.guest.timeouts.append(timeout)

    def check(self, call):
        number, fd, args, what = self.calls[call]
        if fd not in self.guest.files:
            raise GuestOSError(errno.EBADF, what)
        if number == Nr.WRITE and self.guest.files[fd] == "/dev/kmsg":
            self.guest.log.append(bytes(args[0][0])[: args[1]])


class Guest:
    def __init__(self):
        self.generation, self.files, self.log, self.timeouts = 0, {}, [], []
        self.tainted = b"12288\n"

    def open(self, path, _flags):
        self.files[len(self.files) + 3] = path
        return len(self.files) + 2

    def batch(self, rows):
        assert rows == 1
        return Trip(self)


def test_a_mark_is_one_trip_and_its_files_stay_open():
    guest = Guest()
    marks = Marks(guest)
    for number in range(3):
        assert marks.put(f"mark {number}", 2.5) == Taint.OOT_MODULE | Taint.UNSIGNED_MODULE
    assert guest.log == [b"<4>mark 0\n", b"<4>mark 1\n", b"<4>mark 2\n"]
    assert guest.timeouts == [2.5] * 3
    assert list(guest.files.values()) == ["/dev/kmsg", "/proc/sys/kernel/tainted"]


@pytest.mark.parametrize("how", ["restored", "closed by a test"])
def test_files_that_are_gone_are_opened_again(how):
    guest = Guest()
    marks = Marks(guest)
    marks.put("before", 1.0)
    if how == "restored":
        guest.generation += 1
        guest.files = {3: "a test's own", 4: "another"}
    else:
        guest.files = {}
    marks.put("after", 1.0)
    assert guest.log == [b"<4>before\n", b"<4>after\n"]


def test_marks_of_threads_do_not_mix():
    console = Console()
    found = []
    waiter = threading.Thread(target=lambda: found.append(arrived(console, "mine", 0, 5.0)))
    waiter.start()
    console.said += b"[    1.0] theirs\n[    1.1] mine\n"
    waiter.join()
    assert found == [len(b"[    1.0] theirs\n")]
