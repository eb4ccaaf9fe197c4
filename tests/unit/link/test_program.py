# SPDX-License-Identifier: MIT
"""LINK_SPAWN by the real agent: programs, their ends, and what lies between a port and one of them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from harness.errors import BadInput, GuestFailure
from harness.link import Nr, Program, ProgramNotStarted, RequestMalformed, RequestRefused
from harness.link.link import Link
from harness.link.program import new_ticket

PATH = {"PATH": "/usr/bin:/bin"}
ECHO = ["/bin/cat"]
TELL_AND_WAIT = ["/bin/sh", "-c", 'read line; echo "got $line"; exec sleep 100']


@pytest.fixture
def parent(agent_build, link_layouts, on_host):
    ours, theirs = socket.socketpair()
    port, guest = socket.socketpair()
    with ours, theirs, port, guest:
        argv = [agent_build.binary, "--fd", str(theirs.fileno()), "--spawn-fd", str(guest.fileno())]
        process = subprocess.Popen(argv, pass_fds=[theirs.fileno(), guest.fileno()])
        theirs.close()
        try:
            parent = on_host(Link(ours, link_layouts, lambda: None))
            port.settimeout(10)
            parent.port = port
            parent.guest_end = guest
            yield parent
        finally:
            process.kill()
            process.wait()


def run(parent, *argv, **options):
    options.setdefault("log", os.devnull)
    return Program(parent, argv, environment=options.pop("environment", PATH), **options)


def on_port(parent, argv, log=os.devnull):
    """Start a program on the port and shake hands with its relay."""
    ticket = new_ticket()
    program = Program(parent, argv, environment=PATH, port="a.port", log=log, ticket=ticket)
    parent.port.sendall(ticket)
    seen = b""
    while ticket not in seen:
        seen += receive(parent.port, 1)
    return program


def receive(port, size):
    data = b""
    while len(data) < size:
        part = port.recv(size - len(data))
        assert part
        data += part
    return data


# -- without a port -----------------------------------------------------------------------------------------


def test_it_ends_with_its_status(parent):
    assert run(parent, "/bin/true").wait(10) == 0
    assert run(parent, "/bin/sh", "-c", "exit 42").wait(10) == 42
    assert run(parent, "/bin/sh", "-c", "kill -9 $$").wait(10) == 128 + 9


def test_an_end_between_reaping_and_remembering_is_waited_for(parent, monkeypatch):
    """The process id is free before the agent has written down how the program ended."""
    program = run(parent, "/bin/true")
    answers = iter(
        [{"error": 0, "ended": 0}, {"error": 0, "ended": 0}, {"error": 0, "ended": 1, "status": 7}]
    )
    monkeypatch.setattr(program, "_ask", lambda **_: next(answers))
    monkeypatch.setattr(program, "pid", 2**22)  # the kernel has none as high: pidfd_open says ESRCH
    assert program.wait(10) == 7


def test_words_environment_and_output(parent, tmp_path):
    log = tmp_path / "log"
    argv = ["/bin/sh", "-c", 'echo "$0|$1|$A"; env | wc -l; echo complaint >&2', "a b", ""]
    run(parent, *argv, environment={**PATH, "A": "x=y z"}, log=str(log)).wait(10)
    run(parent, "/bin/echo", "appended", log=str(log)).wait(10)
    lines = log.read_text().splitlines()
    assert lines[0] == "a b||x=y z"
    assert lines[2:] == ["complaint", "appended"]


def test_it_inherits_no_descriptor_and_no_signal_mask(parent, tmp_path):
    log = tmp_path / "log"
    fd = parent.open("/dev/null")
    parent.syscall(32, fd, what="dup")  # one without O_CLOEXEC
    assert run(parent, "/bin/ls", "/proc/self/fd", log=str(log)).wait(10) == 0
    assert log.read_text().split() == ["0", "1", "2", "3"]  # 3 is the folder
    assert run(parent, "/bin/grep", "SigBlk", "/proc/self/status", log=str(log)).wait(10) == 0
    assert log.read_text().split()[-1] == "0" * 16


def test_while_it_runs(parent):
    program = run(parent, "/bin/sleep", "100")
    assert program.status is None
    assert program.wait(0.05) is None
    program.kill()
    assert program.status == 128 + signal.SIGKILL
    program.kill()
    assert "ended with 137" in repr(program)


@pytest.mark.parametrize(("path", "code"), [("/no/such", errno.ENOENT), ("/etc/passwd", errno.EACCES)])
def test_no_such_program(parent, path, code):
    with pytest.raises(ProgramNotStarted) as caught:
        run(parent, path)
    assert caught.value.errno == code
    with pytest.raises(ProgramNotStarted):
        on_port(parent, [path])


def test_ends_are_remembered_until_their_place_is_needed(parent):
    first = run(parent, "/bin/true")
    for _ in range(63):
        run(parent, "/bin/true").wait(10)
    assert Program.status.fget(first) == 0
    second = run(parent, "/bin/true")
    second.wait(10)
    first._status = None
    with pytest.raises(GuestFailure, match="does not remember"):
        _ = first.status


def test_as_many_as_can_be_remembered_may_run(parent):
    programs = [run(parent, "/bin/sleep", "100") for _ in range(64)]
    try:
        with pytest.raises(ProgramNotStarted) as caught:
            run(parent, "/bin/true")
        assert caught.value.errno == errno.EAGAIN
        programs[7].kill()
        assert run(parent, "/bin/true").wait(10) == 0
    finally:
        for program in programs:
            program.kill()


# -- what is refused ----------------------------------------------------------------------------------------


def test_long_command_lines(parent, tmp_path):
    log = tmp_path / "log"
    argv = ["/bin/sh", "-c", "echo $#", *(["word"] * 4000)]
    assert run(parent, *argv, log=str(log)).wait(10) == 0
    assert log.read_text() == "3999\n"
    with pytest.raises(RequestMalformed):
        run(parent, *["/bin/true"] * 4097)
    with pytest.raises(ProgramNotStarted) as caught:
        run(parent, "/bin/true", "x" * (200 << 10))  # MAX_ARG_STRLEN is 128 KiB
    assert caught.value.errno == errno.E2BIG
    with pytest.raises(BadInput, match="does not fit"):
        run(parent, "/bin/true", "x" * (1 << 20))


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ([], {}),
        ([""], {}),
        (["/bin/true", "a\0b"], {}),
        (["/bin/true"], {"log": "x" * 128}),
        (["/bin/true"], {"port": "p" * 64, "ticket": b"12345678"}),
    ],
)
def test_words_that_cannot_be(parent, argv, options):
    with pytest.raises(BadInput):
        run(parent, *argv, **options)


GOOD = {"argc": 1, "envc": 0}


@pytest.mark.parametrize(
    ("fields", "strings"),
    [
        (GOOD, b""),
        (GOOD, b"/bin/true"),  # no NUL
        (GOOD, b"\0"),
        (GOOD, b"/bin/true\0more\0"),
        ({"argc": 2, "envc": 0}, b"/bin/true\0"),
        ({"argc": 0, "envc": 1}, b"A=b\0"),
        ({"argc": 1, "envc": 1 << 31}, b"/bin/true\0"),
        ({"argc": (1 << 32) - 1, "envc": 2}, b"/bin/true\0"),
        ({**GOOD, "reserved": 1}, b"/bin/true\0"),
        ({**GOOD, "ticket": 1}, b"/bin/true\0"),  # without a port
        ({**GOOD, "port": b"a.port"}, b"/bin/true\0"),  # without a ticket
        ({**GOOD, "port": b"a.port", "ticket": 0x100}, b"/bin/true\0"),
        ({**GOOD, "port": b"p" * 64, "ticket": 1}, b"/bin/true\0"),
        ({**GOOD, "log": b"l" * 128}, b"/bin/true\0"),
        ({"pid": 1, "argc": 1}, b"/bin/true\0"),
        ({"pid": 1}, b"x"),
    ],
)
def test_requests_that_contradict_themselves(parent, fields, strings):
    protocol = parent.link.protocol
    with pytest.raises(RequestMalformed):
        parent.link.submit(protocol.spawn, protocol.spawn_record.pack(**fields) + strings).wait(5)
    parent.link.ping()


def test_a_request_too_short_to_be_one(parent):
    with pytest.raises(RequestMalformed):
        parent.link.submit(parent.link.protocol.spawn, b"x").wait(5)


def test_nobody_elses_process_is_told_of(parent):
    protocol = parent.link.protocol
    reply = parent.link.submit(protocol.spawn, protocol.spawn_record.pack(pid=os.getpid())).wait(5)
    assert protocol.spawned_record.unpack(reply.payload)["error"] == errno.ESRCH


# -- on a port ----------------------------------------------------------------------------------------------


def test_both_ways_and_every_byte(parent):
    on_port(parent, ECHO)
    data = os.urandom(3_000_000)
    received = bytearray()
    parent.port.setblocking(False)
    sent = 0
    deadline = time.monotonic() + 20
    while len(received) < len(data):
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            sent += parent.port.send(data[sent : sent + 65536])
        with contextlib.suppress(BlockingIOError):
            received += parent.port.recv(1 << 16)
    assert received == data


def test_the_program_sees_a_socket(parent):
    on_port(parent, ["/bin/sh", "-c", "ls -l /proc/self/fd/0 | sed 's/.*-> //'"])
    assert receive(parent.port, 8).startswith(b"socket:[")


def test_what_it_writes_last_arrives_and_its_status_with_it(parent):
    program = on_port(parent, ["/bin/sh", "-c", "head -c 500000 /dev/zero; exit 9"])
    assert receive(parent.port, 500_000) == bytes(500_000)
    assert program.wait(10) == 9


def test_a_program_that_a_signal_ends(parent):
    program = on_port(parent, ["/bin/sh", "-c", "kill -15 $$"])
    assert program.wait(10) == 128 + 15


def test_what_lives_on_in_its_name_is_not_waited_for(parent):
    program = on_port(parent, ["/bin/sh", "-c", "sleep 30 & echo $!; exit 3"])
    assert program.wait(10) == 3
    os.kill(int(parent.port.recv(100)), signal.SIGKILL)


def test_the_next_one_meets_nothing_of_the_one_before(parent):
    """Input that nobody read, a cut ticket, and output that nobody fetched."""
    for round_ in range(10):
        program = on_port(parent, TELL_AND_WAIT)
        parent.port.sendall(b"%d\n" % round_)
        assert receive(parent.port, 6) == b"got %d\n" % round_
        parent.port.sendall(b"left behind" * round_ * 100 + new_ticket()[:round_])
        assert program.status is None
    noisy = on_port(parent, ["/bin/cat", "/dev/zero"])
    receive(parent.port, 10)
    assert noisy.status is None
    on_port(parent, ECHO)
    assert noisy.status == 128 + signal.SIGKILL
    parent.port.sendall(b"clean")
    assert receive(parent.port, 5) == b"clean"


def test_a_ticket_may_come_in_pieces_and_behind_its_own_beginning(parent):
    ticket = bytes([7, 7, 7, 1, 7, 7, 7, 2])
    Program(parent, ECHO, environment=PATH, port="a.port", log=os.devnull, ticket=ticket)
    for byte in b"\7\7\7\1\7\7\7\1" + ticket + b"x":
        parent.port.sendall(bytes([byte]))
    assert receive(parent.port, 9) == ticket + b"x"


def test_the_program_ends_with_its_relay(parent):
    program = on_port(parent, ["/bin/sh", "-c", "echo $$; exec sleep 100"])
    pid = int(parent.port.recv(100))
    program.kill()
    deadline = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_relay_does_not_spin(parent):
    """A program that has closed its ends, and one nobody speaks to, cost nothing."""
    for argv in (["/bin/sh", "-c", "exec sleep 100 <&- >&-"], ["/bin/sleep", "100"]):
        program = on_port(parent, argv)
        if program.wait(0.3) is not None:
            continue  # the first one's relay may end: there is nothing to pass on
        ticks = sum(map(int, Path(f"/proc/{program.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
        assert ticks < 10


def test_the_relay_keeps_no_descriptor_of_the_agents(parent):
    program = on_port(parent, ECHO)
    parent.port.sendall(b"x")
    assert receive(parent.port, 1) == b"x"  # everything is set up
    # standard streams, the port, the program's socket, its pidfd
    assert len(list(Path(f"/proc/{program.pid}/fd").iterdir())) == 6


def test_no_zombies(parent):
    for _ in range(5):
        run(parent, "/bin/true").wait(10)
    on_port(parent, ["/bin/true"]).wait(10)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert [pid for pid in children if not is_running(int(pid))] == []


def test_a_fork_by_system_call_is_still_refused(parent):
    with pytest.raises(RequestRefused):
        parent.link.syscall(57)
    assert parent.link.syscall(Nr.GETPID).value == parent.pid


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
