# SPDX-License-Identifier: MIT
"""The console against a guest that is a socket."""

import os
import pty
import re
import signal
import socket
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.errors import HostExhausted
from harness.vm import Complaint, Console, GuestPanicked, GuestSilent, MachineFailure, Scene
from harness.vm.complaints import classify
from harness.vm.console import _Scan

#: What kernels with checkers said when a module did wrong.
RECORDED = Path(__file__).parents[1] / "forensics" / "recorded"
PANIC = b"[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"


@dataclass
class Guest:
    """The far end of a serial line."""

    sock: socket.socket
    console: Console
    log: Path

    def says(self, data: bytes) -> None:
        self.sock.sendall(data)

    def dies(self) -> None:
        self.sock.close()
        assert self.console.wait_end(5)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    console = Console(ours, tmp_path / "console.log")
    yield Guest(theirs, console, tmp_path / "console.log")
    theirs.close()
    console.close()


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (PANIC, Complaint.PANIC),
        (b"Kernel panic - not syncing: early", Complaint.PANIC),
        (b"# [    9.000001][  T12] Kernel panic - not syncing: x", Complaint.PANIC),
        (b"[    2.0] Kernel panic - not syncing: no kernel stamp", None),
        (b"my test looks for 'Kernel panic - not syncing' in logs", None),
        (b"[    3.141592] BUG: kernel NULL pointer dereference, address: 0", Complaint.OOPS),
        # In the words of kernel/locking/lockdep.c and kernel/panic.c.
        (b"[    3.141592] [ BUG: Invalid wait context ]", Complaint.WARNING),
        (b"[    3.141592] WARNING: bad unlock balance detected!", Complaint.WARNING),
        (b"[    3.141592] WARNING: held lock freed!", Complaint.WARNING),
        (b"[    3.141592] WARNING: lock held when returning to user space!", Complaint.WARNING),
        (b"[    3.141592] WARNING: my tool/97 still has locks held!", Complaint.WARNING),
        (b"[    3.141592] WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected", Complaint.WARNING),
        (b"[    3.141592] INFO: trying to register non-static key.", Complaint.WARNING),
        (b"[    3.141592] WARNING: x.c:123 at inner+0x10/0x40 [iobmd], CPU#1: my tool/97", Complaint.WARNING),
        (b"[    3.141592] WARNING: Flushing system-wide workqueues will be prohibited", None),
        (b"[    3.141592] INFO: lockdep is turned off.", None),
        (b"[    3.141592] BUG kmalloc-64 (Tainted: G): Poison overwritten", Complaint.OOPS),
        (b"[    3.141592] Oops: 0002 [#1] PREEMPT SMP NOPTI", Complaint.OOPS),
        (b"[    3.141592] invalid opcode: 0000 [#1] PREEMPT SMP", Complaint.OOPS),
        (b"[    3.141592] general protection fault, probably for non-canonical", Complaint.OOPS),
        (b"[    3.141592] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!", Complaint.OOPS),
        (b"[    3.141592] INFO: task kworker/0:1:12 blocked for more than 120 seconds.", Complaint.OOPS),
        (b"[    3.141592] rcu: INFO: rcu_sched self-detected stall on CPU", Complaint.OOPS),
        (b"[    3.141592] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", Complaint.OOPS),
        (b"[    3.141592] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:5530", Complaint.WARNING),
        (b"[    3.141592] WARNING: possible recursive locking detected", Complaint.WARNING),
        (b"[    0.000000] Linux version 6.1.0 (BUG reports to nobody)", None),
        (b"[    0.000000] Debug: nothing wrong, Oops counters at 0", None),
    ],
)
def test_trouble_is_told_from_talk(line: bytes, kind: Complaint | None) -> None:
    assert classify(line.rstrip()) is kind


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("use-after-free", Complaint.OOPS),
        ("out-of-bounds", Complaint.OOPS),
        ("shift", Complaint.OOPS),
        ("index", Complaint.OOPS),
        ("sleep-locked", Complaint.OOPS),
        ("lock-order", Complaint.WARNING),
        ("lock-interrupt", Complaint.WARNING),
        ("unmap-half", Complaint.WARNING),
    ],
)
def test_one_line_of_what_a_checker_says_is_the_trouble(kernel: str, word: str, kind: Complaint) -> None:
    lines = (RECORDED / f"{kernel}-debug.{word}.txt").read_bytes().splitlines()
    assert [found for line in lines if (found := classify(line)) is not None] == [kind]


def test_the_whole_log_is_kept_from_the_first_byte(guest: Guest) -> None:
    sent = b"\x1bc\x1b[?7l\x1b[2JSeaBIOS\r\n" + bytes(range(256)) + b"\nlast, unfinished"
    guest.says(sent)
    guest.console.wait_for("unfinished", 5)
    assert guest.log.read_bytes() == guest.console.raw() == sent
    assert guest.console.text().startswith("SeaBIOS\n")
    assert guest.console.tail(1) == ("last, unfinished",)


def test_a_pattern_is_found_in_the_past_in_the_future_and_across_writes(guest: Guest) -> None:
    guest.says(b"early bird\r\n")
    assert guest.console.wait_for(r"early (\w+)", 5)[1] == "bird"
    thread = threading.Thread(
        target=lambda: [guest.says(part) for part in (b"iobmd-", b"agent", b": ready\n")]
    )
    thread.start()
    guest.console.wait_for("^iobmd-agent: ready$", 5)
    thread.join()
    mark = guest.console.mark()
    with pytest.raises(GuestSilent):
        guest.console.wait_for("early", 0.05, since=mark)
    guest.says(b"login: ")
    assert guest.console.wait_for("login: $", 5, since=mark)


def test_waking_up_takes_less_than_ten_milliseconds(guest: Guest) -> None:
    delays, spoken = [], [0.0]

    def speak(number: int) -> None:
        spoken[0] = time.monotonic()
        guest.says(b"tick %d\n" % number)

    for number in range(21):
        timer = threading.Timer(0.01, speak, (number,))
        timer.start()
        guest.console.wait_for(f"tick {number}$", 5)
        delays.append(time.monotonic() - spoken[0])
        timer.join()
    assert sorted(delays)[10] < 0.01  # the median: the host may be busy


def test_silence_has_a_deadline_and_evidence(guest: Guest) -> None:
    guest.says(b"something else\n")
    start = time.monotonic()
    with pytest.raises(GuestSilent) as caught:
        guest.console.wait_for("never", 0.2)
    assert 0.15 < time.monotonic() - start < 2
    assert caught.value.seconds == 0.2
    assert "something else" in caught.value.console_tail
    assert "15 bytes of other output" in str(caught.value)


def test_a_host_that_stands_still_is_no_silent_guest(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if neither this process nor the guest had been given a processor for half a second."""
    wait, moments = guest.console._lock.wait, iter((0.5,))

    def held(seconds: float) -> bool:
        for moment in moments:
            wait(moment)
            threading.Timer(0.05, guest.says, [b"here I am\n"]).start()
            return False
        return wait(seconds)

    monkeypatch.setattr(guest.console._lock, "wait", held)
    assert guest.console.wait_for("here I am", 0.2)


def test_a_panic_is_remembered_and_ends_waiting_early(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.vm.console._PANIC_GRACE", 0.1)  # the trace after it is not what is tested
    guest.says(b"[    1.000000] BUG: unable to handle page fault\r\n" + PANIC)
    start = time.monotonic()
    with pytest.raises(GuestPanicked) as caught:
        guest.console.wait_for("ready", 60)
    assert time.monotonic() - start < 10
    assert "Unable to mount root" in caught.value.panic
    assert guest.console.panic == PANIC.decode().strip()
    assert len(guest.console.oopses) == 1
    assert guest.console.complaints[-1].offset == guest.console.mark()


def test_an_error_quotes_the_panic_rather_than_the_end_of_its_trace(guest: Guest) -> None:
    guest.says(b"lead\n" * 9 + PANIC + b"".join(b"[    2.000000] trace %d\n" % line for line in range(90)))
    guest.console.wait_for("trace 89", 5)
    quoted = guest.console.evidence(30)
    assert len(quoted) == 30
    assert quoted[3:6] == ("lead", PANIC.decode().strip(), "[    2.000000] trace 0")


def test_the_place_of_a_line_does_not_depend_on_what_was_read_with_it(guest: Guest) -> None:
    panic = b"[    3.090854] Kernel panic - not syncing: no root\r\n"
    guest.says(b"before\r\n" + panic + b"[    3.09")
    guest.console.wait_for("no root", 5)
    guest.says(b"9374] CPU: 0\r\n")
    guest.console.wait_for("CPU: 0", 5)
    (event,) = guest.console.complaints
    assert event.offset == len(b"before\r\n" + panic)
    assert "[    3.099374] CPU: 0" in guest.console.evidence()


def test_what_follows_a_panic_can_be_waited_for(guest: Guest) -> None:
    guest.says(PANIC + b"[    1.240000] ---[ end Kernel panic ]---\n")
    assert guest.console.wait_for("end Kernel panic", 5)


def test_the_end_of_the_guest_ends_waiting_and_asks_who_knows(guest: Guest) -> None:
    class KnowsWhyError(MachineFailure):
        pass

    def explain() -> None:
        raise KnowsWhyError("the cause")

    guest.says(b"last line")
    guest.dies()
    assert guest.console.wait_for("last line", 5)
    with pytest.raises(MachineFailure, match="has ended"):
        guest.console.wait_for("more", 60)
    guest.console.attach(Scene, explain)
    with pytest.raises(KnowsWhyError):
        guest.console.wait_for("more", 60)


def test_a_flood_is_kept_whole_in_bounded_memory(guest: Guest) -> None:
    line = b"[    4.000000] flood " + b"x" * 80 + b"\r\n"
    count = 100_000
    done = threading.Thread(target=guest.says, args=(line * count + b"\nthe end\n",))
    done.start()
    guest.console.wait_for("^the end$", 60)
    done.join()
    assert guest.log.stat().st_size == len(line) * count + 9
    held = sum(len(value) for value in vars(guest.console).values() if isinstance(value, bytes | list))
    assert held < 1 << 20


def test_a_flood_of_trouble_and_a_line_without_end_stay_bounded(guest: Guest) -> None:
    guest.says(b"[    4.000000] WARNING: CPU: 0 PID: 1 at x\n" * 2000)
    guest.says(b"y" * (1 << 20))
    guest.says(b"\nthe end\n")
    guest.console.wait_for("the end", 30)
    assert len(guest.console.complaints) == 512
    assert guest.console.mark() == 2000 * 43 + (1 << 20) + 9


def test_a_search_keeps_no_more_than_one_line(guest: Guest) -> None:
    guest.says(b"y" * (1 << 20) + b"needle")
    guest.console.wait_for("needle$", 30)
    scan = _Scan(guest.console, re.compile("no such thing"), 0)
    assert scan.advance(guest.console.mark()) is None
    assert len(scan._partial) <= 1 << 14


def test_the_log_is_readable_after_closing_and_removal(guest: Guest) -> None:
    guest.says(b"remember me\n")
    guest.console.wait_for("remember", 5)
    guest.console.close()
    guest.console.close()
    guest.log.unlink()
    assert guest.console.text() == "remember me\n"
    assert guest.console.tail() == ("remember me",)
    assert guest.console.text(since=9) == "me\n"


def test_who_waits_for_what_the_disk_had_no_room_for_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "console.log").symlink_to("/dev/full")
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "console.log")
    theirs.sendall(b"here it comes\n")
    before = time.monotonic()
    with pytest.raises(HostExhausted, match="log is full") as caught:
        console.wait_for("here it comes", 30)
    assert time.monotonic() - before < 5
    assert "14 bytes of" in caught.value.observed
    theirs.close()
    console.close()


def test_unread_output_is_not_lost_when_the_guest_dies(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(PANIC)
    theirs.close()
    console = Console(ours, tmp_path / "log")
    console.close()
    assert console.panic is not None


def test_typing_reaches_the_guest_and_a_deaf_guest_is_named(guest: Guest) -> None:
    guest.console.send(b"ls\r")
    assert guest.sock.recv(10) == b"ls\r"
    with pytest.raises(GuestSilent, match="took no input"):
        guest.console.send(b"z" * (8 << 20), timeout=0.2)
    guest.dies()
    with pytest.raises(MachineFailure):
        guest.console.send(b"z")


class Person:
    """Somebody at a terminal who runs `interact` in a thread of this test."""

    def __init__(self, console: Console) -> None:
        self.keys, self.terminal = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.thread = threading.Thread(target=console.interact, args=(self.terminal, self.terminal))
        self.thread.start()
        self.screen = b""

    def sees(self, what: bytes) -> None:
        while what not in self.screen:
            self.screen += os.read(self.keys, 4096)

    def leave(self) -> None:
        self.thread.join(5)
        assert not self.thread.is_alive()
        assert termios.tcgetattr(self.terminal) == self.before
        os.close(self.keys)
        os.close(self.terminal)


def test_a_person_types_sees_and_leaves(guest: Guest) -> None:
    guest.says(b"said before\r\n")
    guest.console.wait_for("before", 5)
    person = Person(guest.console)
    person.sees(b"Ctrl-] leaves")
    person.sees(b"said before")
    assert termios.tcgetattr(person.terminal) != person.before
    os.write(person.keys, b"\x03whoami\r")
    assert guest.sock.recv(100) == b"\x03whoami\r"
    guest.says(b"root\r\n")
    person.sees(b"root\r\n")
    os.write(person.keys, b"x\x1dnot sent")
    person.leave()
    assert guest.sock.recv(100) == b"x"


def test_the_end_of_the_guest_ends_the_interaction(guest: Guest) -> None:
    person = Person(guest.console)
    person.sees(b"Ctrl-]")
    guest.says(b"bye")
    guest.dies()
    person.sees(b"bye")
    person.leave()


def test_a_signal_restores_the_terminal(guest: Guest) -> None:
    keys, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)

    # Kill only once the terminal is raw: the banner is printed after that.
    def kill() -> None:
        os.read(keys, 100)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SystemExit):
        guest.console.interact(terminal, terminal)
    killer.join()
    assert termios.tcgetattr(terminal) == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    os.close(keys)
    os.close(terminal)


def test_a_terminal_that_hangs_up_is_no_error_of_its_own(guest: Guest) -> None:
    keys, terminal = pty.openpty()

    def hang_up() -> None:
        os.read(keys, 100)
        os.close(keys)
        os.kill(os.getpid(), signal.SIGHUP)

    closer = threading.Thread(target=hang_up)
    closer.start()
    with pytest.raises(SystemExit):
        guest.console.interact(terminal, terminal)
    closer.join()
    os.close(terminal)


def test_piped_input_needs_no_terminal(guest: Guest) -> None:
    read, write = os.pipe()
    out_read, out_write = os.pipe()
    os.write(write, b"uname\r")
    os.close(write)
    threading.Timer(0.1, guest.sock.close).start()
    guest.console.interact(read, out_write)
    os.close(read)
    os.close(out_write)
    assert b"Ctrl-]" in os.read(out_read, 1000)
    os.close(out_read)
