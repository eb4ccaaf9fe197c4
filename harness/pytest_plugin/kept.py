# SPDX-License-Identifier: MIT
"""A guest that is kept after a failure, standing still, until somebody has seen enough of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from harness import attach
from harness.errors import HarnessError
from harness.forensics import gdb
from harness.link import Guest
from harness.pytest_plugin.asked import is_worker
from harness.vm import QmpRefused

UNWATCHED_SECONDS: Final = 600.0
"""How long a guest is kept where there is no terminal to press Enter at, if nobody says otherwise."""

_BACKLOG: Final = 8
_REQUEST_SECONDS: Final = 5.0
_GREETING: Final[dict[str, Any]] = {"QMP": {"version": {}, "capabilities": []}}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("iobmd")
    group.addoption(
        "--keep-vm", action="store_true",
        help="when a test fails, let its guest stand still and wait: prints how to attach gdb, a shell and "
        "QMP; Enter or Ctrl-C goes on",
    )  # fmt: skip
    group.addoption(
        "--keep-seconds", metavar="N", type=float, default=None,
        help=f"with --keep-vm: go on after so long; without a terminal {UNWATCHED_SECONDS:g} by default",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be: workers have no terminal, and their guests would be kept all at once."""
    workers = getattr(config.option, "numprocesses", None) or is_worker(config)
    if config.getoption("--keep-vm") and workers:
        raise pytest.UsageError("--keep-vm waits for you at every failure: run the tests without -n")


class Keeper:
    """The sockets of a kept guest, in its private folder.

    Args:
        guest: its QEMU answers.
        sections: of its module, for gdb.
    """

    def __init__(self, guest: Guest, sections: dict[str, int]) -> None:
        self._guest = guest
        self._sections = sections
        self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        folder = guest.machine.workdir
        self.control, self.qmp, self.gdb = (folder / f"{name}.sock" for name in ("control", "qmp", "gdb"))

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Stop the guest and answer on the sockets while the block runs.

        Raises:
            MachineFailure: QEMU is gone, or does not answer.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._done)
            self._guest.machine.qmp.execute("stop")
            stack.callback(self._let_go)
            gdb.serve(self._guest, self.gdb)
            stack.enter_context(_listening(self.control, self._answer))
            stack.enter_context(_listening(self.qmp, self._relay))
            yield

    def wait(self, seconds: float | None, keyboard: int | None) -> str:
        """Wait until somebody has seen enough.

        Args:
            seconds: at most; None: without end.
            keyboard: descriptor on which Enter is awaited; None: nobody types.

        Returns:
            What ended it.
        """
        readers = [self._done] + ([keyboard] if keyboard is not None else [])
        ready, _, _ = select.select(readers, [], [], seconds)
        if keyboard in ready and keyboard is not None:
            os.read(keyboard, 1 << 12)
            return "Enter"
        return "it was asked to end" if ready else f"{seconds:g} s are over"

    def commands(self) -> tuple[tuple[str, str], ...]:
        """What to type, each with what it does."""
        here = f"iobmd attach {shlex.quote(str(self.control))}"
        return (
            ("gdb", gdb.command(self._guest, self._sections, self.gdb)),
            ("a shell", f"{here} shell"),
            ("QMP", f"{here} qmp query-status"),
            ("QMP for tools", str(self.qmp)),
            ("let it run", f"{here} resume"),
            ("stop it again", f"{here} pause"),
            ("go on", f"{here} end"),
        )

    def _let_go(self) -> None:
        """Fixtures may still have something to do in the guest, where it can run."""
        for step in (lambda: gdb.leave(self._guest), lambda: self._guest.machine.qmp.execute("cont")):
            with contextlib.suppress(HarnessError):
                step()

    def _answer(self, line: socket.socket) -> None:
        """One request of ``iobmd attach``."""
        line.settimeout(_REQUEST_SECONDS)
        data, streams, _, _ = socket.recv_fds(line, attach.REQUEST_MAX, attach.STREAMS)
        try:
            if not data.endswith(b"\n"):
                data += attach.read_line(line)
            line.settimeout(None)
            status, said = self._do(json.loads(data), streams)
            line.sendall(json.dumps({"status": status, "said": said}).encode() + b"\n")
        finally:
            for stream in streams:
                os.close(stream)

    def _do(self, request: dict[str, Any], streams: list[int]) -> tuple[int, str]:
        """Carry a request out: an exit status, and what to print."""
        execute = self._guest.machine.qmp.execute
        ways: dict[str, Callable[[], tuple[int, str]]] = {
            attach.SHELL: lambda: self._shell(streams),
            attach.QMP: lambda: (0, json.dumps(execute(request["execute"], request["arguments"]), indent=2)),
            attach.RESUME: lambda: (0, f"the guest runs{execute('cont') or ''}"),
            attach.PAUSE: lambda: (0, f"the guest stands still{execute('stop') or ''}"),
            attach.END: self._end,
        }
        try:
            return ways[request["do"]]()
        except HarnessError as error:
            return 1, str(error)

    def _end(self) -> tuple[int, str]:
        os.eventfd_write(self._done, 1)
        return 0, "pytest goes on"

    def _shell(self, streams: list[int]) -> tuple[int, str]:
        if len(streams) != attach.STREAMS:
            return 2, "a shell needs three streams"
        self._guest.machine.qmp.execute("cont")  # nobody answers in a guest that stands still
        stdin, stdout, stderr = streams
        return self._guest.ssh.interact(stdin=stdin, stdout=stdout, stderr=stderr), ""

    def _relay(self, line: socket.socket) -> None:
        """QEMU's protocol for one client: commands go through, events do not."""
        line.sendall(json.dumps(_GREETING).encode() + b"\r\n")
        for command in _objects(line):
            line.sendall(json.dumps(self._execute(command)).encode() + b"\r\n")

    def _execute(self, command: dict[str, Any]) -> dict[str, Any]:
        name = {"id": command["id"]} if "id" in command else {}
        if command.get("execute") == "qmp_capabilities":
            return {"return": {}, **name}
        try:
            qmp = self._guest.machine.qmp
            answer = qmp.execute(str(command.get("execute", "")), command.get("arguments"))
        except QmpRefused as error:
            return {"error": {"class": "GenericError", "desc": error.observed or error.summary}, **name}
        except HarnessError as error:
            return {"error": {"class": "GenericError", "desc": error.summary}, **name}
        return {"return": answer, **name}


def keep(config: pytest.Config, guest: Guest, sections: dict[str, int], test: str) -> None:
    """Keep the guest of a failed test until somebody has seen enough; say how to look at it.

    Args:
        config: of the session.
        guest: it is not to be used afterwards without a restore.
        sections: of its module, for gdb.
        test: its id.
    """
    with _terminal(config):
        try:
            _keep(config, guest, sections, test)
        except KeyboardInterrupt:
            _say("iobmd: Ctrl-C; pytest goes on")
        except (HarnessError, OSError) as error:
            _say(f"iobmd: the guest of {test} cannot be kept: {error}")


def _keep(config: pytest.Config, guest: Guest, sections: dict[str, int], test: str) -> None:
    keyboard = 0
    watched = os.isatty(keyboard)
    limit = config.getoption("--keep-seconds")
    seconds: float | None = limit if limit is not None or watched else UNWATCHED_SECONDS
    keeper = Keeper(guest, sections)
    with keeper.serving():
        _say(f"iobmd: the guest of {test} stands still")
        for what, command in keeper.commands():
            _say(f"  {what + ':':<15} {command}")
        until = ["Enter or Ctrl-C"] if watched else []
        until += [f"{seconds:g} s are over"] if seconds is not None else []
        _say(f"iobmd: pytest waits until {', '.join(until)}, or `end`")
        why = keeper.wait(seconds, keyboard if watched else None)
    _say(f"iobmd: {why}; pytest goes on")


def _say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def _terminal(config: pytest.Config) -> Iterator[None]:
    """The terminal as pytest found it, its keyboard included; to be used between a test's phases."""
    manager = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield
        return
    manager.suspend_global_capture(in_=True)
    try:
        _say("")
        yield
    finally:
        manager.resume_global_capture()
        manager.suspend_global_capture()  # as it is between phases: the keyboard stays taken


@contextlib.contextmanager
def _listening(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve whoever connects, each in a thread of its own; when the block ends, hang up on all of them."""
    open_lines: set[socket.socket] = set()
    threads: list[threading.Thread] = []

    def one(line: socket.socket) -> None:
        with line, contextlib.suppress(OSError, ValueError, KeyError):  # it hung up, or speaks no JSON
            serve(line)
        open_lines.discard(line)

    def accept() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            open_lines.add(line)
            threads.append(threading.Thread(target=one, args=(line,), daemon=True, name="iobmd-kept"))
            threads[-1].start()

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(_BACKLOG)
        server = threading.Thread(target=accept, daemon=True, name=f"iobmd-kept-{path.stem}")
        server.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            server.join()
            for line in tuple(open_lines):
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(_REQUEST_SECONDS)
            path.unlink(missing_ok=True)


def _objects(line: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON objects one after the other, with or without line breaks between."""
    decoder, text = json.JSONDecoder(), ""
    while piece := line.recv(1 << 12):
        text = (text + piece.decode()).lstrip()
        while text:
            try:
                found, end = decoder.raw_decode(text)
            except ValueError:
                break  # the rest is on its way
            text = text[end:].lstrip()
            yield found
