# SPDX-License-Identifier: MIT
"""The machine protocol against a server that follows a script."""

import array
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import BadInput
from harness.vm import GuestPanicked, MachineSpec, Qmp, QmpLost, QmpRefused, QmpSilent, Scene
from harness.vm.capture import Capture, Captures, capture_device_state
from harness.vm.plugs import Plugs

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}
}
Handler = Callable[["FakeQemu", dict[str, Any]], Any]


class Hangup(Exception):
    """A handler raises it to close the connection."""


class Refusal(Exception):
    """A handler raises it to answer with an error."""


class FakeQemu:
    """The QEMU end of a protocol connection."""

    def __init__(self, handler: Handler, greeting: dict[str, Any] | bytes | None = GREETING) -> None:
        self.ours, self.sock = socket.socketpair()
        self.handler = handler
        self.greeting = greeting
        self.received: list[dict[str, Any]] = []
        self.fds: list[int] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def send(self, message: dict[str, Any] | bytes) -> None:
        self.sock.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.send({"event": name, "data": data, "timestamp": {"seconds": 5, "microseconds": 500000}})

    def serve(self) -> None:
        with contextlib.suppress(Hangup, OSError):
            if self.greeting is not None:
                self.send(self.greeting)
            decoder, pending = json.JSONDecoder(), ""
            while True:
                data, control, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(4))
                for _, _, payload in control:
                    self.fds += array.array("i", payload).tolist()
                if not data:
                    break
                pending = (pending + data.decode()).lstrip()
                while pending:  # the client puts nothing between its messages
                    try:
                        message, end = decoder.raw_decode(pending)
                    except json.JSONDecodeError:
                        break
                    pending = pending[end:].lstrip()
                    self.answer(message)
        self.sock.close()

    def answer(self, message: dict[str, Any]) -> None:
        if message["execute"] == "qmp_capabilities":
            self.send({"return": {}})
            return
        self.received.append(message)
        try:
            value = self.handler(self, message)
        except Refusal as err:
            self.send({"error": {"class": "GenericError", "desc": str(err)}, "id": message["id"]})
        else:
            if value is not None:
                self.send({"return": value, "id": message["id"]})


@contextlib.contextmanager
def connected(handler: Handler, **options: Any) -> Iterator[tuple[Qmp, FakeQemu]]:
    fake = FakeQemu(handler)
    try:
        qmp = Qmp(fake.ours, **options)
        try:
            yield qmp, fake
        finally:
            qmp.close()
    finally:
        fake.thread.join(10)
        assert not fake.thread.is_alive()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def no_thread_left() -> bool:
    return not any(thread.name == "iobmd-qmp" for thread in threading.enumerate())


def test_commands_arguments_and_answers() -> None:
    with connected(lambda _, message: {"echo": message.get("arguments", {})}) as (qmp, fake):
        assert qmp.execute("a") == {"echo": {}}
        assert qmp.execute("b", x=1) == {"echo": {"x": 1}}
        assert qmp.execute("c", {"command-line": "info"}, y=2) == {"echo": {"command-line": "info", "y": 2}}
        assert [message["execute"] for message in fake.received] == ["a", "b", "c"]
    assert no_thread_left()


def test_many_threads_share_one_connection() -> None:
    results: list[int] = []

    def ask(number: int) -> None:
        for _ in range(20):
            assert qmp.execute("id", n=number) == {"n": number}
        results.append(number)

    with connected(lambda _, message: message["arguments"]) as (qmp, _):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == list(range(8))


def test_an_error_names_the_command_and_qemus_words() -> None:
    def refuse(_: FakeQemu, _message: dict[str, Any]) -> None:
        raise Refusal("State blocked by non-migratable device")

    with connected(refuse, scene=lambda: Scene(console=("last line",))) as (qmp, _):
        with pytest.raises(QmpRefused) as caught:
            qmp.execute("migrate", uri="fd:x")
        assert "migrate" in caught.value.command
        assert "fd:x" in str(caught.value)
        assert "non-migratable" in caught.value.observed
        assert caught.value.console_tail == ("last line",)


def test_silence_ends_at_the_deadline_and_the_connection_goes_on() -> None:
    def mostly(_: FakeQemu, message: dict[str, Any]) -> dict[str, Any] | None:
        return None if message["execute"] == "hang" else {}

    with connected(mostly) as (qmp, _):
        start = time.monotonic()
        with pytest.raises(QmpSilent, match="'hang' within"):
            qmp.execute("hang", timeout=0.2)
        assert time.monotonic() - start < 2
        assert qmp.execute("fine") == {}


def test_a_scale_multiplies_what_is_not_given() -> None:
    with connected(lambda *_: None, scale=0.02) as (qmp, _):
        for ask in (lambda: qmp.execute("hang"), lambda: qmp.hmp("hang")):
            with pytest.raises(QmpSilent, match=r"within 0\.2 s"):
                ask()
        with pytest.raises(QmpSilent, match=r"within 0\.1 s"):
            qmp.execute("hang", timeout=0.1)


def test_who_examines_is_told_at_once_and_without_evidence() -> None:
    def hang_up(_: FakeQemu, _message: dict[str, Any]) -> None:
        raise Hangup

    def wait() -> None:
        pytest.fail("it waited for the death of QEMU")

    with connected(hang_up, check=wait, scene=lambda: Scene(console=("x",))) as (qmp, _):
        with pytest.raises(QmpLost) as caught:
            qmp.ask("query-status", timeout=1)
        assert caught.value.evidence == ()
    with pytest.raises(QmpLost, match="closed"):
        qmp.ask("query-status", timeout=1)
    with connected(lambda _, message: message.get("arguments", {})) as (qmp, _):
        assert qmp.ask("a", {"b": 1}, timeout=5) == {"b": 1}


def test_a_lost_connection_asks_who_knows_why() -> None:
    def hang_up(_: FakeQemu, _message: dict[str, Any]) -> None:
        raise Hangup

    with connected(hang_up) as (qmp, _):
        for _ in range(2):
            with pytest.raises(QmpLost):
                qmp.execute("stop")

    def knows() -> None:
        raise GuestPanicked("Kernel panic", scene=Scene())

    with connected(hang_up, check=knows) as (qmp, _), pytest.raises(GuestPanicked):
        qmp.execute("stop")
    assert no_thread_left()


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        pytest.param(None, QmpSilent, id="silence"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", QmpLost, id="another protocol"),
        pytest.param({"QMP": 7}, QmpLost, id="nonsense"),
    ],
)
def test_a_greeting_that_never_comes_or_makes_no_sense(greeting: Any, error: type[Exception]) -> None:
    fake = FakeQemu(lambda *_: {}, greeting)
    with pytest.raises(error):
        Qmp(fake.ours, deadline=0.3)
    fake.thread.join(5)
    assert no_thread_left()


def test_a_server_that_hangs_up_at_once() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(QmpLost):
        Qmp(ours)
    assert no_thread_left()


def test_events_are_kept_numbered_and_waited_for() -> None:
    def react(fake: FakeQemu, message: dict[str, Any]) -> dict[str, Any]:
        fake.event(message["execute"].upper(), reason="asked")
        return {}

    with connected(react) as (qmp, fake):
        qmp.execute("stop")
        event = qmp.wait_event("STOP", timeout=5)
        assert (event.number, event.data, event.seconds) == (1, {"reason": "asked"}, 5.5)
        qmp.execute("resume")
        assert qmp.wait_event("STOP", "RESUME", timeout=5, after=event.number).name == "RESUME"
        assert [event.name for event in qmp.events()] == ["STOP", "RESUME"]
        assert qmp.events("STOP", after=1) == ()
        mark = qmp.event_count
        threading.Timer(0.05, fake.event, ("SHUTDOWN",)).start()
        assert qmp.wait_event("SHUTDOWN", timeout=5, after=mark).number == mark + 1
        with pytest.raises(QmpSilent, match="RESET"):
            qmp.wait_event("RESET", timeout=0.1)


def test_a_closed_protocol_says_so_and_closes_twice() -> None:
    with connected(lambda *_: {}) as (qmp, _):
        qmp.close()
        with pytest.raises(QmpLost, match="closed"):
            qmp.execute("stop")


class Migration:
    """Answers as QEMU does while it migrates into a descriptor."""

    def __init__(self, stream: bytes = b"QEVM state", outcome: str = "completed") -> None:
        self.stream = stream
        self.outcome = outcome
        self.capability: list[bool] = []
        self.looks = 0

    def __call__(self, fake: FakeQemu, message: dict[str, Any]) -> dict[str, Any]:
        command, arguments = message["execute"], message.get("arguments", {})
        if command == "migrate-set-capabilities":
            self.capability.append(arguments["capabilities"][0]["state"])
        elif command == "migrate":
            if self.outcome == "refused":
                raise Refusal("State blocked by non-migratable device '0000:00:02.0/nvme'")
            os.write(fake.fds[-1], self.stream)
        elif command == "query-migrate":
            self.looks += 1
            return {"status": "active" if self.looks < 3 else self.outcome, "error-desc": "disk full"}
        elif command == "query-status":
            self.looks += 1
            return {"status": "finish-migrate" if self.looks < 6 else "postmigrate"}
        return {}


def test_a_capture_returns_the_stream_and_gives_the_capability_back() -> None:
    migration = Migration(b"x" * 300_000)
    with connected(migration) as (qmp, fake):
        before = open_descriptors()
        assert capture_device_state(qmp) == migration.stream
        assert open_descriptors() == before + len(fake.fds)
        for fd in fake.fds:
            os.close(fd)
    assert migration.capability == [True, False]
    assert migration.looks == 6


@pytest.mark.parametrize(("outcome", "words"), [("failed", "disk full"), ("refused", "nvme")])
def test_a_failed_capture_gives_the_capability_back_too(outcome: str, words: str) -> None:
    migration = Migration(outcome=outcome)
    with connected(migration) as (qmp, fake):
        with pytest.raises(QmpRefused, match=words):
            capture_device_state(qmp)
        for fd in fake.fds:
            os.close(fd)
    assert migration.capability == [True, False]


def test_where_a_capture_is_refused_the_one_before_stands_in_and_says_so() -> None:
    migration = Migration()

    def answer(fake: FakeQemu, message: dict[str, Any]) -> Any:
        if message["execute"] == "human-monitor-command":
            return "CPU#0 ..."
        return migration(fake, message)

    with connected(answer) as (qmp, fake):
        captures = Captures(qmp)
        assert captures.now() == Capture(migration.stream)
        migration.outcome, migration.looks = "refused", 0
        stand_in = captures.now()
        assert (stand_in.stream, stand_in.registers) == (migration.stream, "CPU#0 ...")
        assert "It makes none now: " in stand_in.why
        assert "nvme" in stand_in.why
        with pytest.raises(QmpRefused, match="nvme"):
            captures.whole()
        captures.forget()
        with pytest.raises(QmpRefused, match="nvme"):
            captures.now()
        for fd in fake.fds:
            os.close(fd)


def plugging(_: FakeQemu, message: dict[str, Any]) -> Any:
    """Answers as QEMU does when a device is plugged in that it does not know."""
    line = message.get("arguments", {}).get("command-line", "")
    return "Error: 'nonsense' is not a valid device model name\r\n" if "nonsense" in line else ""


def test_slots_are_given_out_and_come_back() -> None:
    spec = MachineSpec(kernel=Path("k"), initrd=Path("i"), slots=1)
    with connected(plugging) as (qmp, _):
        plugs = Plugs(qmp, spec)
        assert not plugs
        with pytest.raises(QmpRefused, match="not a valid device model"):
            plugs.add("nonsense")
        name = plugs.add("nvme,serial=one")
        assert plugs
        with pytest.raises(BadInput, match="no free slot for 'edu'"):
            plugs.add("edu")
        for other in ("", "plugged7"):
            with pytest.raises(BadInput, match="no device"):
                plugs.remove(other)
        assert name == "plugged2"


def test_errors_are_harness_errors_with_exit_codes() -> None:
    assert QmpRefused("x", command="y").exit_code == 3
    assert BadInput.exit_code == 2
