# SPDX-License-Identifier: MIT
"""Requests to the agent, and what their failures mean."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.deadlines import Deadlines
from harness.errors import BadInput
from harness.images.layouts import Layouts
from harness.link import errors
from harness.link.channel import Channel, Flight, broken
from harness.link.frames import Frame, Protocol
from harness.link.syscalls import Argument, Call, SyscallResult

# How long the agent gets to answer the ping that tells a stuck operation from a silent agent.
_PROBE_SECONDS = 0.4
# The socket closes a moment before the death of QEMU shows.
_DEATH_SECONDS = 1.0
_DEATH_LOOK_SECONDS = 0.005

_REJECTIONS: dict[str, tuple[type[errors.RequestRejected], str]] = {
    "LINK_UNKNOWN_OP": (errors.UnknownOperation, "no such operation in this agent"),
    "LINK_MALFORMED": (errors.RequestMalformed, "the request contradicts itself"),
    "LINK_TOO_BIG": (errors.RequestTooBig, "longer than the agent accepts"),
    "LINK_REFUSED": (errors.RequestRefused, "it would end, fork or confuse the agent"),
    "LINK_NO_MEMORY": (errors.GuestBusy, "the agent has no room for it now"),
}


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        payload: as it is.
    """

    payload: bytes


@dataclass(frozen=True)
class Hello:
    """Who answers (struct link_hello).

    Attributes:
        protocol: its protocol version.
        workers: operations it executes at once.
        payload_max: largest payload in bytes.
        pid: 1 in a guest.
        boot_nonce: 16 bytes drawn when the agent started; tells a boot from a restore.
        restore_nonce: 16 bytes of the latest restore; zeros since a boot.
        page_size: bytes.
        release: ``uname -r``.
    """

    protocol: int
    workers: int
    payload_max: int
    pid: int
    boot_nonce: bytes
    restore_nonce: bytes
    page_size: int
    release: str


@dataclass(frozen=True)
class Resumed:
    """What the agent says after a restore (struct link_resumed).

    Attributes:
        boot_nonce: as in `Hello`.
        restore_nonce: the request's.
        monotonic_ns: the guest's CLOCK_MONOTONIC in nanoseconds.
        realtime_ns: its CLOCK_REALTIME, just set.
        error: 0, or the errno of what could not be set.
    """

    boot_nonce: bytes
    restore_nonce: bytes
    monotonic_ns: int
    realtime_ns: int
    error: int


def rejection(protocol: Protocol, number: int, what: str) -> errors.RequestRejected:
    """The error for an ``enum link_status`` that is not LINK_OK."""
    status = protocol.statuses.get(number, f"status {number}")
    kind, meaning = _REJECTIONS.get(status, (errors.RequestRejected, "unknown to this harness"))
    return kind(what, status, meaning)


class Pending:
    """A request in flight."""

    def __init__(self, link: "Link", flight: Flight) -> None:
        self._link = link
        self._flight = flight
        self._error: Exception | None = None

    @property
    def id(self) -> int:
        """Its number on the channel."""
        return self._flight.id

    @property
    def done(self) -> bool:
        """Whether the outcome is known; it becomes known while somebody waits on the link."""
        return self._flight.settled

    @property
    def sent(self) -> bool:
        """Whether it is on its way, or has been."""
        return self._link._channel.under_way(self._flight)

    def send(self) -> None:
        """Start it; never blocks, and does nothing the second time."""
        self._link._channel.launch(self._flight)

    def wait(self, timeout: float, pause: Callable[[], None] | None = None) -> Reply:
        """The reply.

        Args:
            timeout: seconds from now.  Before a time-out is reported the guest is asked for signs of life,
                which may take two seconds more.
            pause: called now and then, where it may raise.  With it the request is not given up after a
                time-out or an interruption: a reply that comes later is there at the next `wait`.

        Raises:
            RequestTimedOut: no reply in time; one that comes later is dropped, unless there is a *pause*.
                The subclass says what hangs.
            ChannelBroken: noise on the channel while this was in flight, or the other end closed.
            RequestRejected: the agent said no; the subclass says why.
            GuestFailure: whatever the link's ``check`` raises, within about 50 ms of its cause.
        """
        if self._error is None:
            try:
                return self._link._outcome(self._flight, timeout, pause)
            except Exception as error:
                if pause and isinstance(error, errors.RequestTimedOut):
                    raise
                self._error = error
        raise self._error


class PendingCall:
    """A system call in flight."""

    def __init__(self, pending: Pending, call: Call) -> None:
        self._pending = pending
        self._call = call

    @property
    def done(self) -> bool:
        """As for :class:`Pending`."""
        return self._pending.done

    def wait(self, timeout: float) -> SyscallResult:
        """Its result; raises what :meth:`Pending.wait` raises."""
        return self._call.result(self._pending.wait(timeout).payload)


class Link:
    """The host's end.

    Any number of threads may use one link.  The socket stays the caller's.

    Args:
        sock: a connected stream socket; made non-blocking.
        layouts: of the agent at the other end.
        check: raises when the guest is known to be dead.
        evidence: lines to show beside a failure, usually the console's last.
        ticket: what the agent at the other end was started with, 0 for none.  :meth:`hello` has to come first
            then, and bytes on the stream from before are dropped.
        refine: looks into a time-out of a silent agent and returns what to raise.
        deadlines: for what is asked without one.

    Attributes:
        protocol: the numbers of guest/link_abi.h, as this agent was built.
        deadlines: as given; may be replaced.
        workers: operations the agent executes at once; None before :meth:`hello`.
    """

    def __init__(
        self,
        sock: socket.socket,
        layouts: Layouts,
        check: Callable[[], None],
        evidence: Callable[[], Sequence[str]] = tuple,
        *,
        ticket: int = 0,
        refine: Callable[[errors.RequestTimedOut], Exception] | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.protocol = Protocol(layouts)
        self.deadlines = deadlines or Deadlines()
        self.workers: int | None = None
        self._mourned: float | None = None
        self._check = check
        self._evidence = evidence
        self._refine = refine
        self._channel = Channel(sock, self.protocol, check, ticket)

    def submit(self, op: int, payload: bytes = b"", what: str = "") -> Pending:
        """Start a request; never blocks.  As :meth:`prepare`, and `Pending.send` at once."""
        pending = self.prepare(op, payload, what)
        pending.send()
        return pending

    def prepare(self, op: int, payload: bytes = b"", what: str = "") -> Pending:
        """Make a request that `Pending.send` starts.

        Args:
            op: a number of ``enum link_op``, see :attr:`protocol`.
            payload: at most ``protocol.payload_max`` bytes.
            what: what to call it in errors.

        Raises:
            BadInput: the payload is too long.
        """
        what = what or self.protocol.ops.get(op, f"operation {op}")
        if len(payload) > self.protocol.payload_max:
            raise BadInput(
                f"{what}: a payload of {len(payload)} bytes does not fit into a frame",
                hint=f"send at most {self.protocol.payload_max} bytes at a time",
            )
        return Pending(self, self._channel.prepare(op, payload, what))

    def ping(self, payload: bytes = b"", timeout: float | None = None) -> bytes:
        """An echo by the agent's reading thread; works while operations hang in the kernel.

        Args:
            payload: comes back.
            timeout: seconds; None: the deadlines' ``reply``.

        Raises:
            ChannelBroken: something else came back.
        """
        echo = self.submit(self.protocol.ping, payload).wait(self._reply_seconds(timeout)).payload
        if echo != payload:
            raise errors.ChannelBroken(
                "the agent's echo differs from what was sent",
                tried=f"PING with {len(payload)} bytes",
                observed=f"{len(echo)} bytes came back",
            )
        return echo

    def answers(self, timeout: float = _PROBE_SECONDS) -> bool:
        """Whether the agent echoes within *timeout* seconds; what is wrong if it does not is not looked into.

        Raises:
            GuestFailure: whatever the link's ``check`` raises.
        """
        what = self.protocol.ops[self.protocol.ping]
        flight = self._channel.prepare(self.protocol.ping, b"", what)
        self._channel.launch(flight)
        self._channel.wait(flight, timeout)
        return flight.reply is not None

    def answers_behind(self, timeout: float) -> bool:
        """As `answers`, behind as much as an agent that waits for the rest of a frame can be waiting for.

        For a guest in trouble: requests under way are lost by this.

        Raises:
            GuestFailure: whatever the link's ``check`` raises.
        """
        self._channel.flush(self.protocol.payload_max + self.protocol.header.size)
        end, heard = time.monotonic() + timeout, False
        while (left := end - time.monotonic()) > 0:
            flight = self._channel.prepare(self.protocol.ping, b"", self.protocol.ops[self.protocol.ping])
            self._channel.launch(flight)
            self._channel.wait(flight, left)
            if flight.reply is not None:
                return True
            heard = (
                heard or flight.settled
            )  # a report of noise: the agent lives, and has not come to this yet
        return heard

    def hello(self, timeout: float | None = None) -> Hello:
        """Ask the agent who it is.

        Args:
            timeout: seconds; None: the deadlines' ``reply``.

        Raises:
            ChannelBroken: the agent was built from another link_abi.h.
        """
        reply = self.submit(self.protocol.hello).wait(self._reply_seconds(timeout))
        record = self.protocol.hello_record
        fields = record.unpack(reply.payload) if len(reply.payload) == record.size else {}
        if fields.get("protocol") != self.protocol.version:
            raise errors.ChannelBroken(
                "the agent speaks another protocol",
                tried=f"HELLO, protocol {self.protocol.version}",
                observed=f"protocol {fields.get('protocol', '?')}, {len(reply.payload)} bytes",
                hint="rebuild the guest image: it was made from other sources than this harness",
            )
        fields["release"] = fields["release"].rstrip(b"\0").decode()
        hello = Hello(**fields)
        self.workers = hello.workers
        return hello

    def hold(self, ticket: int, timeout: float | None = None) -> None:
        """Announce a snapshot: from the reply on, the agent drops everything before request number *ticket*.

        Args:
            ticket: not 0; the `Link` that follows on this stream is made with it.
            timeout: seconds; None: the deadlines' ``reply``.
        """
        seconds = self._reply_seconds(timeout)
        self.submit(self.protocol.hold, self.protocol.hold_record.pack(ticket=ticket)).wait(seconds)

    def resume(self, nonce: bytes, realtime_ns: int, timeout: float | None = None) -> Resumed:
        """Tell a guest that it was restored: the time of day, and 16 bytes no other restore has had.

        Args:
            nonce: 16 random bytes; they also feed the guest's random numbers.
            realtime_ns: nanoseconds since 1970.
            timeout: seconds; None: the deadlines' ``reply``.
        """
        payload = self.protocol.resume_record.pack(nonce=nonce, realtime_ns=realtime_ns)
        reply = self.submit(self.protocol.resume, payload).wait(self._reply_seconds(timeout)).payload
        fields = self.protocol.resumed_record.unpack(reply)
        del fields["reserved"]
        return Resumed(**fields)

    def syscall(
        self, number: int, *args: Argument, timeout: float | None = None, what: str = ""
    ) -> SyscallResult:
        """One system call, executed by the agent.

        Args:
            number: x86-64 number, see :class:`~harness.link.syscalls.Nr`.
            args: up to six integers or buffers (``In``, ``Out``, ``InOut``).
            timeout: seconds; None: the deadlines' ``operation``.
            what: what to call it in errors.

        Returns:
            The raw result (a negative errno on failure) and the contents of ``Out`` and ``InOut`` buffers.
        """
        seconds = self.deadlines.operation if timeout is None else timeout
        return self.start(number, *args, what=what).wait(seconds)

    def start(self, number: int, *args: Argument, what: str = "") -> PendingCall:
        """Send a :meth:`syscall` and go on; several in flight may be executed in any order."""
        call = Call(self.protocol, number, args)
        return PendingCall(self.submit(self.protocol.syscall, call.payload, what or call.name), call)

    def retire(self, why: str) -> None:
        """Give the stream to another link: requests under way fail, and nobody reads here any more.

        Args:
            why: shown by the requests' ChannelBroken.
        """
        self._channel.retire(why)

    def _outcome(self, flight: Flight, timeout: float, pause: Callable[[], None] | None) -> Reply:
        self._channel.wait(flight, timeout, pause)
        if flight.reply is not None:
            return self._accept(flight.reply, flight.what)
        if flight.settled:
            raise broken(flight)
        if self._channel.closed:
            raise self._closed(flight)
        if self._channel.realign(flight):
            raise broken(flight)
        raise self._timed_out(flight, timeout)

    def _accept(self, frame: Frame, what: str) -> Reply:
        if frame.status != self.protocol.ok:
            raise rejection(self.protocol, frame.status, what)
        return Reply(frame.payload)

    def _closed(self, flight: Flight) -> errors.ChannelBroken:
        """The death of QEMU explains a closed socket better: give it a moment to show, in ``check``."""
        self._check()
        if self._mourned is None:
            self._mourned = time.monotonic() + _DEATH_SECONDS
        pause = threading.Event()
        while time.monotonic() < self._mourned:
            pause.wait(_DEATH_LOOK_SECONDS)
            self._check()
        half = f", {self._channel.partial} bytes into a frame" if self._channel.partial else ""
        return errors.ChannelBroken(
            f"{flight.what}: the channel to the agent is closed",
            observed=self._channel.closed + half,
            hint="the guest is gone; boot another",
            evidence=tuple(self._evidence()),
        )

    def _reply_seconds(self, given: float | None) -> float:
        return self.deadlines.reply if given is None else given

    def _timed_out(self, flight: Flight, timeout: float) -> Exception:
        alive: bool | None = None
        if flight.unsent:
            observed = (
                f"{len(flight.unsent)} of {flight.size} bytes could not be sent: nobody reads in the guest"
            )
        elif not self._probe():
            alive = False
            observed = "the agent is silent: it, the kernel under it, or QEMU hangs"
        else:
            alive = True
            observed = "the agent answers, the operation is stuck in the kernel"
            if flight.what == self.protocol.ops[self.protocol.ping]:
                observed = "the agent answers, but not in time"
            if self.workers is not None and self._channel.abandoned > self.workers:
                observed = (
                    f"the agent answers; its {self.workers} workers are stuck and this waits behind them"
                )
        kind = errors.OperationTimedOut if alive else errors.RequestTimedOut
        raw = kind(
            f"{flight.what}: no reply within {timeout:g} s",
            agent_answers=alive,
            observed=observed,
            hint="on a slow machine give it a longer deadline; otherwise the console may say more",
            evidence=tuple(self._evidence()),
        )
        return raw if alive or self._refine is None else self._refine(raw)

    def _probe(self) -> bool:
        return self.answers(_PROBE_SECONDS * self.deadlines.scale)
