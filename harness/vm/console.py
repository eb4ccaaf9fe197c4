# SPDX-License-Identifier: MIT
"""The serial console: kept whole on disk, read line by line, never a brake for the guest."""

import contextlib
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

from pexpect import EOF
from pexpect.fdpexpect import fdspawn

from harness.deadlines import stalled
from harness.errors import HostExhausted
from harness.vm.complaints import Complaint, ConsoleEvent, classify
from harness.vm.errors import GuestPanicked, GuestSilent, MachineFailure, Scene
from harness.vm.terminal import Interaction

#: What the agent prints when it starts to serve: guest/link_abi.h:LINK_READY_LINE.
READY_LINE: Final = "iobmd-agent: ready"
#: What it prints after a restore, before the nonce: guest/link_abi.h:LINK_RESTORED_LINE.
RESTORED_LINE: Final = "iobmd-agent: restored"

#: Lines `Console.tail` gives unless told otherwise; also what errors quote.
TAIL_LINES: Final = 30
_CHUNK: Final = 1 << 16
_LINE_MAX: Final = 1 << 14
_COMPLAINTS_MAX: Final = 512
_AFTERGLOW_MAX: Final = 4 << 20
#: After a panic the kernel prints its trace and, with panic=-1, resets: time for someone who waits for that.
_PANIC_GRACE: Final = 2.0
_SEND_SECONDS: Final = 5.0
#: Nothing happens that often; a host that stands still shows by it.
_LOOK_SECONDS: Final = 0.1

#: Terminal control: CSI, OSC and two-character escapes (firmware sends them), and what moves the cursor.
_CONTROL: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\^_c78=>]|[\x00\r\x07\x08]"
)


class Console:
    """The guest's serial port.

    A thread reads whatever the guest prints into the log file and looks for trouble in it. Memory stays
    bounded whatever the guest does; the file has every byte.

    Attributes:
        scale: what the deadlines that a caller does not give are multiplied by.
    """

    def __init__(self, sock: socket.socket, log: Path) -> None:
        """Starts to read.

        Args:
            sock: connected to the guest's serial port; this object owns it from now on.
            log: the file to write; it is created.
        """
        self.scale = 1.0
        self._sock = sock
        self._path = log
        self._scene: Callable[[], Scene] | None = None
        self._on_end: Callable[[], None] | None = None
        self._lock = threading.Condition()
        self._log = log.open("w+b", buffering=0)
        self._lost = 0
        self._size = 0
        self._ended = False
        self._closed = False
        self._afterglow: bytes | None = None
        self._events: list[ConsoleEvent] = []
        self._panic: str | None = None
        self._followers: list[int] = []
        self._thread = threading.Thread(target=self._pump, name="iobmd-console", daemon=True)
        self._thread.start()

    def attach(self, scene: Callable[[], Scene], on_end: Callable[[], None]) -> None:
        """Names those who know more about the machine than its console does.

        Args:
            scene: gives the evidence for errors.
            on_end: called when someone waits on a console whose guest is gone, to raise what it knows.
        """
        self._scene = scene
        self._on_end = on_end

    @property
    def panic(self) -> str | None:
        """The first line of the first kernel panic, or None."""
        return self._panic

    @property
    def ended(self) -> bool:
        """Whether the other side has closed: nothing more will come."""
        return self._ended

    @property
    def complaints(self) -> tuple[ConsoleEvent, ...]:
        """Panics, oopses and warnings so far (the first 512)."""
        with self._lock:
            return tuple(self._events)

    @property
    def oopses(self) -> tuple[str, ...]:
        """The lines that report an oops, a checker's finding or a warning, oldest first."""
        return tuple(event.line for event in self.complaints if event.kind is not Complaint.PANIC)

    @property
    def lost(self) -> int:
        """Bytes that are missing in the log because the disk was full."""
        return self._lost

    def mark(self) -> int:
        """The number of bytes logged so far, to be used as a ``since``."""
        with self._lock:
            return self._size

    def text(self, since: int = 0) -> str:
        """The log without control characters.

        Args:
            since: start at this byte.
        """
        return _clean(self.raw(since))

    def raw(self, since: int = 0, limit: int | None = None) -> bytes:
        """The log as the guest sent it.

        Args:
            since: start at this byte.
            limit: give that many bytes at most; all if None.
        """
        length = self.mark() - since
        return self._read(since, length if limit is None else min(length, limit))

    def tail(self, count: int = TAIL_LINES) -> tuple[str, ...]:
        """The last lines that are not empty, without control characters."""
        size = self.mark()
        start = max(0, size - max(_CHUNK, count * 512))
        lines = _full_lines(self._read(start, size - start))
        return tuple(lines[-count:]) if count > 0 else ()

    def evidence(self, count: int = TAIL_LINES) -> tuple[str, ...]:
        """What to quote in an error: the panic with what led to it and its trace, else the last lines."""
        panics = [event for event in self.complaints if event.kind is Complaint.PANIC]
        if not panics:
            return self.tail(count)
        end = panics[0].offset
        before = _full_lines(self.raw(max(0, end - _CHUNK), min(_CHUNK, end)))
        return tuple((before[-5:] + _full_lines(self.raw(end, _CHUNK)))[:count])

    def wait_for(self, pattern: str | re.Pattern[str], timeout: float, *, since: int = 0) -> "re.Match[str]":
        """Waits until a line shows a pattern; the line may be unfinished, as a prompt is.

        Args:
            pattern: searched in every line, control characters removed.
            timeout: seconds.
            since: look only at what was logged after this byte; 0 is the whole log.

        Returns:
            The match.

        Raises:
            GuestSilent: nothing matched in time.
            GuestPanicked: the kernel panicked instead.
            HostExhausted: nothing matched, and some of the log is missing because the disk is full.
            MachineFailure: the machine ended; the class says how.
        """
        regex = re.compile(pattern)
        end = time.monotonic() + timeout
        scan = _Scan(self, regex, since)
        panic_seen = 0.0
        while True:
            with self._lock:
                size, ended = self._size, self._ended
            found = scan.advance(size)
            if found is not None:
                return found
            if ended:
                self._raise_ended(regex.pattern)
            now = time.monotonic()
            if self._panic is not None:
                panic_seen = panic_seen or now
                if now - panic_seen >= _PANIC_GRACE:
                    raise GuestPanicked(
                        self._panic, scene=self._evidence(), tried=f"wait for {regex.pattern!r}"
                    )
            if self._lost:
                self._raise_incomplete(regex.pattern)
            if now >= end:
                self._raise_silent(regex.pattern, timeout, size - since)
            with self._lock:
                if self._size == size and not self._ended:
                    limit = panic_seen + _PANIC_GRACE if panic_seen else end
                    seconds = max(0.0, min(end, limit, now + _LOOK_SECONDS) - now)
                    self._lock.wait(seconds)
                    end += stalled(now, seconds)

    def wait_output(self, timeout: float, *, since: int = 0) -> bool:
        """Whether at least one byte came after byte ``since``; waits at most ``timeout`` seconds for it."""
        with self._lock:
            self._lock.wait_for(lambda: self._size > since or self._ended, timeout)
            return self._size > since

    def wait_end(self, timeout: float) -> bool:
        """Whether the other side has closed and all is in the log; waits at most ``timeout`` seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: self._ended, timeout)

    def send(self, data: bytes, timeout: float | None = None) -> None:
        r"""Types at the guest.

        Args:
            data: bytes as a terminal would send them; a line ends with ``b"\r"``.
            timeout: seconds until the guest must have taken them; None: five, scaled.

        Raises:
            GuestSilent: it did not.
            MachineFailure: the machine has ended.
        """
        timeout = _SEND_SECONDS * self.scale if timeout is None else timeout
        view, end = memoryview(data), time.monotonic() + timeout
        while view:
            left = end - time.monotonic()
            if left <= 0 or not select.select([], [self._sock], [], left)[1]:
                raise GuestSilent(
                    f"the guest's serial port took no input for {timeout:g} s",
                    seconds=timeout,
                    scene=self._evidence(),
                )
            try:
                view = view[self._sock.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue
            except OSError:
                self._raise_ended("typed input to arrive")

    def interact(self, stdin: int | None = None, stdout: int | None = None) -> None:
        """Connects the user's terminal to the console until Ctrl-] or the end of the guest.

        What was logged before is shown first. The terminal's settings come back whatever happens.

        Args:
            stdin: descriptor to read keys from; 0 if None.
            stdout: descriptor to show the console on; 1 if None.
        """
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with self._lock:
            self._followers.append(wake)
        try:
            Interaction(
                sock=self._sock,
                log=self.raw,
                ended=lambda: self._ended,
                wake=wake,
                stdin=0 if stdin is None else stdin,
                stdout=1 if stdout is None else stdout,
            ).run()
        finally:
            with self._lock:
                self._followers.remove(wake)
            os.close(wake)

    def close(self) -> None:
        """Ends the reading and closes the log; idempotent. `text` and `tail` go on to work."""
        if self._closed:
            return
        self._closed = True
        # What QEMU wrote before it ended is still in the socket; shutting it down does not lose that.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()
        keep_from = max(0, self._size - _AFTERGLOW_MAX)
        afterglow = self._read(keep_from, self._size - keep_from)
        with self._lock:
            self._afterglow = afterglow
            self._log.close()

    def _pump(self) -> None:
        reader = fdspawn(self._sock.fileno(), timeout=None, maxread=_CHUNK, use_poll=True)
        reader.delayafterread = None  # its default sleeps 0.1 ms after every read
        reader.logfile_read = self
        # Whole lines first, then the unfinished rest, so that nothing piles up inside of pexpect.  The anchor
        # keeps the search linear: without it every byte of a long line is tried as a start.
        patterns = reader.compile_pattern_list([rb"(?s)\A.*\n", rb"(?s)\A.+", EOF])
        partial = b""
        try:
            while (index := reader.expect_list(patterns, timeout=None)) < 2:
                block = partial + reader.after
                *lines, partial = block.split(b"\n") if index == 0 else (block,)
                if len(partial) > _LINE_MAX:
                    lines, partial = [*lines, partial], b""
                self._inspect(lines, len(partial) + len(reader.buffer))  # logged, but not matched yet
        except OSError:
            pass  # ECONNRESET: QEMU ended with input unread; everything it wrote came before
        with self._lock:
            self._ended = True
            self._announce()

    def write(self, data: bytes) -> None:
        """Receives what the reader read; for pexpect's ``logfile_read``."""
        written = 0
        with contextlib.suppress(OSError):  # disk full: the guest must go on, and the loss is counted
            while written < len(data):
                written += self._log.write(data[written:]) or 0
        with self._lock:
            self._size += written
            self._lost += len(data) - written

    def flush(self) -> None:
        """For pexpect's ``logfile_read``; the log is not buffered."""

    def _inspect(self, lines: list[bytes], unfinished: int) -> None:
        with self._lock:
            offset = self._size - unfinished - sum(len(line) + 1 for line in lines)
            for line in lines:
                offset += len(line) + 1
                kind = classify(line)
                if kind is not None:
                    self._note(ConsoleEvent(kind, _clean(line).strip(), offset))
            self._announce()

    def _note(self, event: ConsoleEvent) -> None:
        if event.kind is Complaint.PANIC and self._panic is None:
            self._panic = event.line
        if len(self._events) < _COMPLAINTS_MAX:
            self._events.append(event)

    def _announce(self) -> None:
        self._lock.notify_all()
        for wake in self._followers:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(wake, 1)

    def _read(self, start: int, length: int) -> bytes:
        with self._lock:
            if self._afterglow is not None:
                first = self._size - len(self._afterglow)
                return self._afterglow[max(0, start - first) : max(0, start - first + length)]
            return os.pread(self._log.fileno(), max(0, length), max(0, start))

    def _evidence(self) -> Scene:
        return self._scene() if self._scene is not None else Scene(console=self.evidence())

    def _raise_ended(self, awaited: str) -> NoReturn:
        if self._on_end is not None:
            self._on_end()
        if self._panic is not None:
            raise GuestPanicked(self._panic, scene=self._evidence(), tried=f"wait for {awaited!r}")
        raise MachineFailure(
            "the console is closed: the machine has ended",
            scene=self._evidence(),
            tried=f"wait for {awaited!r}",
        )

    def _raise_incomplete(self, awaited: str) -> NoReturn:
        raise HostExhausted(
            "the disk with the console's log is full",
            tried=f"wait for {awaited!r}",
            observed=f"{self._lost} bytes of {self._path} are missing, and that may be among them",
            hint=f"free some space: df -h {self._path.parent}; $TMPDIR moves it elsewhere",
            evidence=self._evidence().evidence(),
        )

    def _raise_silent(self, awaited: str, timeout: float, fresh: int) -> NoReturn:
        observed = f"{fresh} bytes of other output" if fresh > 0 else "not one byte"
        raise GuestSilent(
            f"the console did not show {awaited!r} within {timeout:g} s",
            seconds=timeout,
            scene=self._evidence(),
            observed=observed,
            hint="the guest hangs, is slower than the deadline, or prints elsewhere (console=ttyS0?)",
        )


class _Scan:
    """Searches a growing log once, line by line, in bounded memory."""

    def __init__(self, console: Console, regex: re.Pattern[str], start: int) -> None:
        self._console = console
        self._regex = regex
        self._at = start
        self._partial = b""

    def advance(self, size: int) -> "re.Match[str] | None":
        for block in self._blocks(size):
            *lines, self._partial = (self._partial + block).split(b"\n")
            for line in (*lines, self._partial[-_LINE_MAX:]):
                found = self._regex.search(_clean(line))
                if found is not None:
                    return found
            self._partial = self._partial[-_LINE_MAX:]
        return None

    def _blocks(self, size: int) -> Iterator[bytes]:
        while self._at < size:
            block = self._console._read(self._at, min(_CHUNK, size - self._at))
            if not block:
                return
            self._at += len(block)
            yield block


def _full_lines(data: bytes) -> list[str]:
    return [line for line in _clean(data).split("\n") if line.strip()]


def _clean(data: bytes) -> str:
    return _CONTROL.sub("", data.decode("utf-8", errors="replace"))
