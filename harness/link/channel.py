# SPDX-License-Identifier: MIT
"""Frames in flight over one byte stream.

There is no thread of its own in here.  Whoever waits for a reply moves the bytes: one waiting thread at a
time pumps the socket and files the replies of the others, who sleep until theirs is there.  A request
therefore costs no hand-over between threads.
"""

import itertools
import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from harness.deadlines import stalled
from harness.link.errors import ChannelBroken
from harness.link.frames import Decoder, Frame, Protocol

# How often a waiting thread asks whether the guest is still alive.
_CHECK_SECONDS = 0.05
_RECEIVE_BYTES = 1 << 18


class Flight:
    """One request under way.

    Attributes:
        id: its number on the channel.
        what: what to call it in errors.
        size: bytes of its frame.
        unsent: what the socket has not taken yet.
        settled: a reply or a failure is there.
        reply: the reply.
        broken: why there will be none.
    """

    __slots__ = ("broken", "id", "reply", "settled", "size", "unsent", "what")

    def __init__(self, ident: int, what: str, frame: bytes) -> None:
        self.id = ident
        self.what = what
        self.size = len(frame)
        self.unsent = memoryview(frame)
        self.settled = False
        self.reply: Frame | None = None
        self.broken = ""


class Channel:
    """The host's end of the stream; safe for any number of threads.

    A request that is given up keeps its id reserved until its reply has come, so that a late reply is dropped
    and not mistaken.  Noise fails what is in flight, once, and the stream goes on at the next valid frame.

    Args:
        sock: connected; made non-blocking, stays the caller's.
        protocol: of the agent at the other end.
        check: raises when the guest is known to be dead; called about every 50 ms of waiting.
        ticket: if not 0, the id of the first request, a HELLO; what arrives before its answer is dropped.
    """

    def __init__(
        self, sock: socket.socket, protocol: Protocol, check: Callable[[], None], ticket: int = 0
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._protocol = protocol
        self._check = check
        self._checked = 0.0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll_writes = False
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._pumping = False
        self._sleeping = 0
        self._flights: dict[int, Flight] = {}
        self._abandoned: set[int] = set()
        self._out: deque[Flight] = deque()
        # Replies to another link of the same agent do not fit any of ours.
        fresh = itertools.count((int.from_bytes(os.urandom(4), "little") << 32) + 1)
        self._ids = itertools.chain((ticket,) if ticket else (), fresh)
        self._decoder = Decoder(protocol, protocol.hello_reply(ticket) if ticket else b"")
        # Allocated once: a new buffer of this size per call costs more than the call.
        self._room = memoryview(bytearray(_RECEIVE_BYTES))
        self._synchronised = True
        self._closed = ""

    @property
    def closed(self) -> str:
        """Why the stream has ended, or ``""``."""
        return self._closed

    @property
    def partial(self) -> int:
        """Bytes received of a frame that is not complete."""
        return self._decoder.partial

    @property
    def abandoned(self) -> int:
        """Requests that were given up and whose replies have not come."""
        return len(self._abandoned)

    def prepare(self, op: int, payload: bytes, what: str) -> Flight:
        """Make a request that is not sent yet."""
        ident = next(self._ids)
        return Flight(ident, what, self._protocol.encode(op, ident, payload))

    def launch(self, flight: Flight) -> None:
        """Queue a request and write what the socket takes at once; never blocks.

        Once more after an interruption it goes on where it was: no request is sent twice.
        """
        with self._lock:
            if flight.settled:
                return
            self._flights[flight.id] = flight
            if len(flight.unsent) == flight.size and flight not in self._out:
                self._out.append(flight)
            self._flush()

    def under_way(self, flight: Flight) -> bool:
        """Whether it was launched and nobody has given it up; its outcome may be known."""
        return flight.settled or flight.id in self._flights

    def realign(self, flight: Flight) -> bool:
        """Step over a frame that never ends, if the reply to a request in vain has come inside of it.

        Returns:
            Whether that was so; the request then says it in its ``broken``.
        """
        with self._lock:
            if flight.settled or not self._decoder.swallowed(flight.id):
                return False
            promised = self._decoder.partial
            self._decoder.disbelieve()
            self._file()
            flight.broken = (
                f"its reply came inside of a frame that does not end ({promised} bytes of it so far)"
            )
            flight.settled = True
            return True

    def flush(self, size: int) -> None:
        """Write *size* bytes that are no frame: whoever waits for bytes at the other end has enough then."""
        with self._lock:
            self._out.append(Flight(0, "flush", bytes(size)))
            self._flush()

    def retire(self, why: str) -> None:
        """End this use of the stream, which stays open: when this returns, nobody reads or writes here."""
        with self._lock:
            self._closed = self._closed or why
            self._out.clear()
            self._wake()
            self._sleeping += 1
            try:
                while self._pumping:  # it leaves within one look at the socket
                    self._turn.wait(_CHECK_SECONDS)
            finally:
                self._sleeping -= 1

    def wait(self, flight: Flight, timeout: float, pause: Callable[[], None] | None = None) -> None:
        """Move bytes until the flight is settled, the stream has ended or ``timeout`` seconds are over.

        Args:
            flight: a launched request.
            timeout: seconds.
            pause: called now and then, where it may raise.  With it the request is not given up when it has
                no reply by then: it will be waited for again.

        Raises:
            GuestFailure: whatever ``check`` raises; the request is given up.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            try:
                while not flight.settled and not self._closed:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return
                    if not self._pumping:
                        deadline = self._pump(flight, deadline, pause)
                    elif flight.unsent:
                        self._help_writing(left)
                    else:
                        deadline += self._sleep(min(left, _CHECK_SECONDS) if pause else left)
                        if pause:
                            pause()
            finally:
                if not flight.settled and pause is None:
                    self._forget(flight)

    def _sleep(self, seconds: float) -> float:
        """Wait for the thread that pumps; how long the host stood still meanwhile.  Lock held."""
        since = time.monotonic()
        self._sleeping += 1
        try:
            self._turn.wait(seconds)
        finally:
            self._sleeping -= 1
        return stalled(since, seconds)

    def _pump(self, flight: Flight, deadline: float, pause: Callable[[], None] | None) -> float:
        """Move bytes for everybody until ``flight`` is settled.  Lock held, but not while waiting.

        Returns:
            The deadline, later by as long as the host stood still.
        """
        self._pumping = True
        try:
            while not flight.settled and not self._closed:
                now = time.monotonic()
                if now >= deadline:
                    break
                self._lock.release()
                try:
                    if pause:
                        pause()
                    if now - self._checked >= _CHECK_SECONDS:
                        self._check()
                        self._checked = now
                    since, seconds = time.monotonic(), min(deadline - now, _CHECK_SECONDS)
                    data = self._receive(seconds)
                finally:
                    self._lock.acquire()
                self._flush()
                if data:
                    self._decoder.feed(data)
                    self._file()
                else:
                    deadline += stalled(since, seconds)
        finally:
            self._pumping = False
            self._wake()
        return deadline

    def _receive(self, seconds: float) -> memoryview | None:
        """Wait for something to read or for room to write; what was read, valid until the next call."""
        writes = bool(self._out)
        if writes != self._poll_writes:
            self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if writes else 0))
            self._poll_writes = writes
        for _, event in self._poll.poll(math.ceil(seconds * 1000)):
            if event & ~select.POLLOUT:
                try:
                    count = self._sock.recv_into(self._room)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._closed = f"reading failed: {error.strerror}"
                    continue
                if not count:
                    self._closed = "the other end closed"
                return self._room[:count]
        return None

    def _help_writing(self, left: float) -> None:
        """Write beside a pump that went to sleep before this was queued.  Lock held, not while waiting."""
        self._lock.release()
        try:
            room = select.poll()
            room.register(self._sock, select.POLLOUT)
            room.poll(math.ceil(min(left, _CHECK_SECONDS) * 1000))
        finally:
            self._lock.acquire()
        self._flush()

    def _flush(self) -> None:
        """Write what the socket takes now.  Lock held."""
        while self._out and not self._closed:
            first = self._out[0]
            try:
                sent = self._sock.send(first.unsent, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except BrokenPipeError:
                # Replies to earlier requests may still be there to be read; reading finds the end.
                self._out.clear()
                return
            except OSError as error:
                self._closed = f"writing failed: {error.strerror}"
                return
            first.unsent = first.unsent[sent:]
            if not first.unsent:
                self._out.popleft()

    def _file(self) -> None:
        """Hand every whole frame to its request.  Lock held."""
        while True:
            frame = self._decoder.next()
            noise = self._decoder.take_noise()
            if noise is not None:
                # One report per stretch: what follows until the next frame is the same trouble.
                if self._synchronised:
                    self._break(f"{noise.count} bytes arrived that are no frame", str(noise))
                self._synchronised = False
            elif frame is not None:
                self._synchronised = True
                self._file_frame(frame)
            else:
                break
        self._wake()

    def _wake(self) -> None:
        """Let the sleeping threads look again.  Lock held."""
        if self._sleeping:
            self._turn.notify_all()

    def _file_frame(self, frame: Frame) -> None:
        if frame.id in self._abandoned:
            self._abandoned.discard(frame.id)
        elif frame.op == self._protocol.noise and frame.flags & self._protocol.reply:
            skipped = self._protocol.noise_skipped(frame.payload)
            self._break(f"{skipped} bytes reached the agent that are no frame", "LINK_NOISE")
        elif frame.id in self._flights and frame.flags & self._protocol.reply:
            flight = self._flights.pop(frame.id)
            flight.reply, flight.settled = frame, True
        else:
            self._break("a frame arrived that nobody asked for", f"id {frame.id:#x}, op {frame.op}")

    def _break(self, summary: str, observed: str) -> None:
        """Fail every request in flight, once; the stream itself goes on.  Lock held."""
        for flight in list(self._flights.values()):
            self._forget(flight)
            flight.broken, flight.settled = f"{summary} ({observed})", True

    def _forget(self, flight: Flight) -> None:
        """Give a request up.  A frame that was begun has to be completed all the same.  Lock held."""
        if flight.id not in self._flights:
            return
        if len(flight.unsent) == flight.size and flight in self._out:
            self._out.remove(flight)
        else:
            self._abandoned.add(flight.id)
        del self._flights[flight.id]  # last: a signal may end this between any two steps


def broken(flight: Flight) -> ChannelBroken:
    """The error of a flight that noise ended."""
    return ChannelBroken(
        f"{flight.what}: the channel to the agent is disturbed",
        observed=flight.broken,
        hint="ask again: the link goes on at the next valid frame; something else wrote to the port",
    )
