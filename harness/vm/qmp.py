# SPDX-License-Identifier: MIT
"""QEMU's machine protocol for callers that are not asynchronous.

The ``qemu.qmp`` library speaks the protocol in an event loop of its own; this module keeps that loop in a
thread and gives every command a deadline.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError

from harness.errors import HarnessError
from harness.vm.errors import QmpFailure, QmpLost, QmpRefused, QmpSilent, Scene

#: Seconds a command may take unless the caller says otherwise; the usual answer takes half a millisecond.
DEADLINE: Final = 10.0
_EVENTS_KEPT: Final = 1024
#: The loop keeps the deadline; this is only for a loop that stopped turning.
_LOOP_SLACK: Final = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class QmpEvent:
    """Something QEMU reported by itself.

    Attributes:
        number: position in the stream of events, from 1.
        name: for example ``"STOP"``.
        data: its members.
        seconds: host wall-clock time at which QEMU sent it.
    """

    number: int
    name: str
    data: Mapping[str, Any]
    seconds: float


class Session:
    """What a transaction may use inside the event loop; see `Qmp.transact`."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """One command; errors as `Qmp.execute` names them."""
        try:
            return await self._client.execute(command, arguments or None)
        except ExecuteError as err:
            shown = f"{command} {dict(arguments)}" if arguments else command
            raise QmpRefused(f"QEMU refused {command!r}", command=shown, observed=str(err)) from err
        except (QMPError, OSError, EOFError) as err:
            raise _lost(command, err) from err

    def send_fd(self, fd: int) -> None:
        """Hands a descriptor to QEMU; the next ``getfd`` gives it a name there."""
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError) as err:
            raise _lost("getfd", err) from err


class Qmp:
    """A connected machine protocol. All methods may be called from any thread."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        check: Callable[[], None] | None = None,
        scene: Callable[[], Scene] | None = None,
        deadline: float = DEADLINE,
        scale: float = 1.0,
    ) -> None:
        """Waits for QEMU's greeting and agrees on capabilities.

        Args:
            sock: a connected Unix socket; this object owns it from now on.
            check: called when the connection is lost, to raise what it knows about the reason.
            scene: gives the evidence for errors.
            deadline: seconds for the greeting.
            scale: what the deadlines of this module are multiplied by; those a caller gives are exact.

        Raises:
            QmpSilent: no greeting in time.
            QmpLost: the other side hung up.
        """
        self.scale = scale
        self._check = check
        self._scene = scene
        self._lock = threading.Condition()
        self._events: deque[QmpEvent] = deque(maxlen=_EVENTS_KEPT)
        self._count = 0
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="iobmd-qmp", daemon=True)
        self._thread.start()
        self._sock = sock
        self._client: QMPClient | None = None
        try:
            self._session, self._listener = self._run("greeting", self._connect(), deadline)
        except BaseException as err:
            self.close()
            self._explain(err)
            raise

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        /,
        *,
        timeout: float | None = None,
        **members: object,
    ) -> Any:
        """Executes a command and returns what it returns.

        Args:
            command: for example ``"query-status"``.
            arguments: its arguments; needed for names that are no Python names, such as ``command-line``.
            timeout: seconds until QEMU must have answered; None: `DEADLINE`, scaled.
            members: further arguments.

        Raises:
            QmpRefused: QEMU answered with an error.
            QmpSilent: no answer before the deadline.
            QmpLost: the connection is closed and the machine knows no better reason.
        """
        return self.transact(
            command, lambda session: session.execute(command, {**(arguments or {}), **members}), timeout
        )

    def ask(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float) -> Any:
        """`execute` for who examines a machine in trouble: an error is told at once and without evidence.

        Raises:
            QmpFailure: as `execute`; the end of QEMU is a QmpLost here.
        """
        if self._closed:
            raise QmpLost("the machine protocol is closed", command=command)
        return self._run(command, self._session.execute(command, arguments), timeout)

    def hmp(self, line: str, *, timeout: float | None = None) -> str:
        """Executes a line of QEMU's human monitor, such as ``"info mtree"``, and returns what it prints."""
        return str(self.execute("human-monitor-command", {"command-line": line}, timeout=timeout))

    def transact(
        self, what: str, body: Callable[[Session], Coroutine[Any, Any, T]], timeout: float | None = None
    ) -> T:
        """Runs several commands without a thread switch between them.

        Args:
            what: name of the whole for error messages.
            body: a coroutine function that gets a `Session`.
            timeout: seconds for all of it; None: `DEADLINE`, scaled.
        """
        if self._closed:
            raise QmpLost(
                "the machine protocol is closed", command=what, hint="the machine was closed before"
            )
        try:
            return self._run(what, body(self._session), DEADLINE * self.scale if timeout is None else timeout)
        except QmpFailure as err:
            self._explain(err)
            raise

    def events(self, *names: str, after: int = 0) -> tuple[QmpEvent, ...]:
        """Events so far (the last 1024), oldest first.

        Args:
            names: only these; all when none is given.
            after: only those with a higher ``number``.
        """
        with self._lock:
            return tuple(self._matching(names, after))

    def wait_event(self, *names: str, timeout: float, after: int = 0) -> QmpEvent:
        """Waits for one of several events; one that is there already counts.

        Args:
            names: what to wait for.
            timeout: seconds.
            after: ignore events up to this ``number``.

        Raises:
            QmpSilent: none came.
        """
        end = time.monotonic() + timeout
        with self._lock:
            while True:
                for event in self._matching(names, after):
                    return event
                left = end - time.monotonic()
                if left <= 0 or self._closed:
                    break
                self._lock.wait(left)
        seen = ", ".join(event.name for event in self.events(after=after)) or "none"
        raise QmpSilent(
            f"QEMU did not report {' or '.join(names)} within {timeout:g} s",
            command=f"event {'/'.join(names)}",
            observed=f"events: {seen}",
        )

    @property
    def event_count(self) -> int:
        """Number of the latest event; the ``after`` for what comes from now on."""
        with self._lock:
            return self._count

    def close(self) -> None:
        """Disconnects and ends the loop and its thread; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
        with contextlib.suppress(HarnessError):
            self._run("disconnect", self._disconnect(), DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._sock.close()

    async def _connect(self) -> tuple[Session, "asyncio.Task[None]"]:
        client = QMPClient("machine")
        self._client = client
        try:
            await client.connect(self._sock)
        except (ConnectError, OSError) as err:
            raise _lost("greeting", err) from err
        return Session(client), asyncio.create_task(self._listen(client))

    async def _listen(self, client: QMPClient) -> None:
        async for message in client.events:
            stamp = message.get("timestamp")
            seconds = (
                stamp["seconds"] + stamp["microseconds"] / 1e6 if isinstance(stamp, dict) else time.time()
            )
            data = message.get("data")
            with self._lock:
                self._count += 1
                self._events.append(
                    QmpEvent(
                        self._count, str(message["event"]), data if isinstance(data, dict) else {}, seconds
                    )
                )
                self._lock.notify_all()

    async def _disconnect(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if self._client is not None:
            # The library re-raises here what ended the connection: by now that is expected.
            with contextlib.suppress(Exception):
                await self._client.disconnect()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()

    def _explain(self, err: BaseException) -> None:
        if isinstance(err, QmpLost) and self._check is not None:
            self._check()
        if isinstance(err, QmpFailure) and self._scene is not None:
            err.set_scene(self._scene())

    def _matching(self, names: Iterable[str], after: int) -> Iterable[QmpEvent]:
        wanted = frozenset(names)
        return (
            event for event in self._events if event.number > after and (not wanted or event.name in wanted)
        )

    def _run(self, what: str, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(timeout):
                return await coroutine

        future = asyncio.run_coroutine_threadsafe(bounded(), self._loop)
        try:
            return future.result(timeout + _LOOP_SLACK)
        except TimeoutError as err:
            future.cancel()
            raise QmpSilent(
                f"QEMU did not answer {what!r} within {timeout:g} s",
                command=what,
                observed="silence",
                hint="QEMU itself hangs, or the host is overloaded: look at its CPU time and at qemu.log",
            ) from err
        except BaseException:  # Ctrl-C while waiting
            future.cancel()
            raise


def _lost(command: str, err: BaseException) -> QmpLost:
    cause = getattr(err, "exc", err)
    return QmpLost(
        "the machine protocol's connection to QEMU is gone",
        command=command,
        observed=str(cause) or type(cause).__name__,
    )
