# SPDX-License-Identifier: MIT
"""Thousands of system calls in a few frames: rows of the same calls, arguments and answers as arrays.

A batch has rows.  Every row makes the same calls in the same order, and what differs from row to row lies in
columns: an argument may be an array with one number per row, a structure is a NumPy record per row.  A call
can use a descriptor that an earlier call of its row left in a column (`Column.loaded`), so that creating a
thing and asking it something is one trip.

Nothing here is done per row in Python.  Rows are cut into frames, some of which are in flight at once; the
rows of one frame are executed in order, those of two frames may overlap.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from harness.errors import BadInput
from harness.link.columns import ALIGN, Arena, Column, Loaded, Records, Way
from harness.link.errors import ChannelBroken, GuestOSError, RequestRejected
from harness.link.interrupts import Deferred
from harness.link.link import rejection
from harness.link.syscalls import Nr

if TYPE_CHECKING:
    from harness.link.frames import Protocol
    from harness.link.link import Link, Pending

# Frames in flight: the guest works while the host packs the next and unpacks the last.
_AHEAD: Final = 4
# Calls in one frame: enough to make the trip cheap, few enough that a frame is done well within a deadline.
_CALLS: Final = 256
_ARGUMENTS: Final = 6
_MAX_ERRNO: Final = 4095
_WORD: Final = 0xFFFF_FFFF_FFFF_FFFF

Numbers = NDArray[np.int64]


Argument = int | Sequence[int] | NDArray[Any] | Column | Loaded
"""What a call takes: one number for all rows, one per row, a column, or what lies in one."""


@dataclass(frozen=True, eq=False)
class _Call:
    number: int
    args: tuple[int | NDArray[np.uint64] | Column | Loaded, ...]
    what: str


@dataclass(eq=False)
class _Frame:
    pending: Pending
    start: int
    stop: int
    landed: bool = False


class Batch:
    """Rows of system calls; made by `harness.link.Process.batch`.

    First the columns and the calls, then `run`.  An interrupted `run` can be called again: it goes on where
    it was, nothing is made twice.  `halt` keeps it from starting more.

    Args:
        link: to the process that makes the calls.
        rows: how many.
        timeout: seconds for one frame, which is at most a few hundred calls, counted from the answer before.

    Attributes:
        rows: as given.
        values: raw results, ``values[row, call]``; -4095..-1 is a negated errno, and -ECANCELED stands for a
            call that was not made.
        answered: rows whose frame was answered; of the others nothing is known.

    Raises:
        BadInput: fewer rows than one.
    """

    def __init__(self, link: Link, rows: int, timeout: float) -> None:
        if rows <= 0:
            raise BadInput(f"a batch of {rows} rows", hint="ask for one at least")
        self.rows = rows
        self.values: Numbers = np.empty((rows, 0), np.int64)
        self.answered: NDArray[np.bool_] = np.zeros(rows, np.bool_)
        self._link = link
        self._protocol: Protocol = link.protocol
        self._timeout = timeout
        self._calls: list[_Call] = []
        self._columns: list[Column] = []
        self._frames: list[_Frame] = []
        self._per_frame = 0
        self._flags = 0
        self._halted = False

    # -- what to do -----------------------------------------------------------------------------------------

    def inputs(self, records: Records) -> Column:
        """A column the guest's kernel reads; it is not copied before it is sent."""
        return self._column(records, Way.IN)

    def exchange(self, records: Records) -> Column:
        """A column the guest's kernel reads and changes; its records are overwritten with what comes back."""
        return self._column(records, Way.IN_OUT)

    def outputs(self, dtype: DTypeLike) -> Column:
        """A column the guest's kernel fills; starts as zeros."""
        return self._column(np.zeros(self.rows, dtype), Way.OUT)

    def call(self, number: int, *args: Argument, what: str = "") -> int:
        """Add a system call to every row.

        Args:
            number: x86-64 number, see `harness.link.Nr`.
            args: up to six.
            what: what to call it in errors.

        Returns:
            Its place in `values`.

        Raises:
            BadInput: too many arguments, an array that has not one number per row, a column of another batch.
        """
        if len(args) > _ARGUMENTS:
            raise BadInput(f"a system call takes at most {_ARGUMENTS} arguments, not {len(args)}")
        self._calls.append(_Call(number, tuple(map(self._argument, args)), what or f"system call {number}"))
        return len(self._calls) - 1

    def ioctl(self, fd: Argument, cmd: int, arg: Column, what: str = "") -> int:
        """Add an ioctl with a structure to every row; as `call`."""
        return self.call(Nr.IOCTL, fd, cmd, arg, what=what or f"ioctl {cmd:#x}")

    # -- doing it -------------------------------------------------------------------------------------------

    def run(self, *, stop: bool = False, timeout: float | None = None) -> None:
        """Make the calls of every row, and fill `values`, `answered` and the columns.

        Args:
            stop: make no more calls once one has failed with an errno; only one frame is in flight then.
            timeout: seconds for one frame, where it is not to be the batch's.

        Raises:
            RequestTimedOut: a frame was not answered in time; calling again waits once more.
            ChannelBroken: as for a single call.
            RequestRejected: a frame, or a call in it, was not to the agent's liking; the subclass says why.
                Rows of other frames may have been made.
            GuestFailure: the guest died.
            BadInput: a single row exceeds a frame.
        """
        self._begin(stop)
        seconds = self._timeout if timeout is None else timeout
        with Deferred() as interrupts:
            while flying := self._keep_flying(1 if stop else _AHEAD):
                interrupts.check()
                self._land(flying[0], seconds, interrupts.check)

    def settle(self, timeout: float | None = None) -> None:
        """Start no more rows, and wait for those under way; frames the agent says no to count as answered.

        Raises:
            GuestFailure: as for `run`; whatever is still under way can be waited for again.
        """
        self.halt()
        while left := [frame for frame in self._frames if frame.pending.sent and not frame.landed]:
            try:
                self.run(timeout=timeout)
            except (ChannelBroken, RequestRejected):
                if not any(frame.landed for frame in left):
                    raise

    def halt(self) -> None:
        """Start no more rows: `run` waits for those under way, and then it is done."""
        self._halted = True

    def failed(self, call: int = 0) -> NDArray[np.intp]:
        """The rows whose call number *call* ended with an errno."""
        values = self.values[:, call]
        rows: NDArray[np.intp] = np.flatnonzero((values < 0) & (values >= -_MAX_ERRNO))
        return rows

    def check(self, call: int = 0) -> None:
        """Raise GuestOSError for the first row whose call number *call* failed."""
        failed = self.failed(call)
        if failed.size:
            row = int(failed[0])
            more = f" ({failed.size} of {self.rows} rows failed)" if failed.size > 1 else ""
            raise GuestOSError(
                int(-self.values[row, call]), f"row {row} of {self.rows}: {self._calls[call].what}{more}"
            )

    # -- building -------------------------------------------------------------------------------------------

    def _column(self, records: Records, way: Way) -> Column:
        if records.shape != (self.rows,):
            raise BadInput(
                "a column has one element per row", observed=f"shape {records.shape} for {self.rows} rows"
            )
        column = Column(records, way)
        self._columns.append(column)
        return column

    def _argument(self, arg: Argument) -> int | NDArray[np.uint64] | Column | Loaded:
        if isinstance(arg, (Column, Loaded)):
            if not any(
                column is (arg.column if isinstance(arg, Loaded) else arg) for column in self._columns
            ):
                raise BadInput("an argument is a column of another batch")
            return arg
        if isinstance(arg, int):
            return arg & _WORD
        numbers = np.asarray(arg)
        if numbers.shape != (self.rows,) or numbers.dtype.kind not in "iu":
            raise BadInput(
                "an argument is one integer, or one per row",
                observed=f"{numbers.dtype} of shape {numbers.shape} for {self.rows} rows",
            )
        wide = numbers.astype(np.uint64 if numbers.dtype.kind == "u" else np.int64)
        return wide.view(np.uint64)

    def _begin(self, stop: bool) -> None:
        if self._frames:
            return
        if not self._calls:
            raise BadInput("a batch without calls", hint="add some before run()")
        self._flags = self._protocol.batch_stop if stop else 0
        self.values = np.full((self.rows, len(self._calls)), -errno.ECANCELED, np.int64)
        self._per_frame = self._rows_per_frame()
        order = list(Way)
        self._columns.sort(key=lambda column: order.index(column.way))

    def _rows_per_frame(self) -> int:
        """As many as payload, reply and arena have room for; each has a limit of one payload."""
        protocol, calls = self._protocol, len(self._calls)
        size = {way: sum(one.size for one in self._columns if one.way is way) for way in Way}
        relocs = sum(len(column.pointers) for column in self._columns)
        call_bytes = protocol.layouts.struct("link_batch_call").size
        there = calls * call_bytes + relocs * protocol.reloc_record.size + size[Way.IN] + size[Way.IN_OUT]
        back = calls * 8 + size[Way.IN_OUT] + size[Way.OUT]
        spare = protocol.batch_record.size + ALIGN * (len(self._columns) + 1)
        room = (protocol.payload_max - spare) // max(there, back, sum(size.values()))
        if room < 1:
            raise BadInput(
                "one row of this batch does not fit into a frame",
                observed=f"{there} bytes there, {back} bytes back, {sum(size.values())} bytes of arguments",
                hint=f"a frame has {protocol.payload_max} bytes",
            )
        return min(room, max(_CALLS // calls, 1))

    # -- frames ---------------------------------------------------------------------------------------------

    def _keep_flying(self, ahead: int) -> list[_Frame]:
        """Start as many frames as may be in flight; those that are, oldest first."""
        flying = [frame for frame in self._frames if not frame.landed]
        if self._halted:
            return [frame for frame in flying if frame.pending.sent]
        for frame in flying:
            frame.pending.send()
        while len(flying) < ahead and self._send_next():
            flying.append(self._frames[-1])
        return flying

    def _send_next(self) -> bool:
        start = self._frames[-1].stop if self._frames else 0
        if start == self.rows:
            return False
        stop = min(start + self._per_frame, self.rows)
        what = f"{self._calls[0].what} and so on, rows {start} to {stop - 1} of {self.rows}"
        payload = self._payload(start, stop)
        # Known before it is on its way: whoever is interrupted in between finds it here.
        self._frames.append(_Frame(self._link.prepare(self._protocol.batch, payload, what), start, stop))
        self._frames[-1].pending.send()
        return True

    def _payload(self, start: int, stop: int) -> bytes:
        rows = stop - start
        arena = Arena(self._columns, rows)
        relocs = arena.relocs(self._protocol)
        head = self._protocol.batch_record.pack(
            calls=rows * len(self._calls),
            relocs=relocs.size,
            filled=arena.filled,
            arena=arena.size,
            out_start=arena.window,
            out_length=arena.size - arena.window,
            flags=self._flags,
        )
        calls = self._call_records(start, stop, arena)
        return b"".join((head, calls.tobytes(), relocs.tobytes(), arena.contents(start, stop)))

    def _call_records(self, start: int, stop: int, arena: Arena) -> Records:
        """The calls of these rows, row by row."""
        records = np.zeros(
            (arena.rows, len(self._calls)), self._protocol.layouts.struct("link_batch_call").dtype
        )
        for index, call in enumerate(self._calls):
            one = records[:, index]
            one["number"] = call.number
            for place, arg in enumerate(call.args):
                column = arg.column if isinstance(arg, Loaded) else arg
                if isinstance(column, Column):
                    kind = "load_args" if isinstance(arg, Loaded) else "arena_args"
                    one[kind] |= 1 << place
                    one["args"][:, place] = arena.places(column, arg.offset if isinstance(arg, Loaded) else 0)
                else:
                    one["args"][:, place] = column[start:stop] if isinstance(column, np.ndarray) else column
        return records

    def _land(self, frame: _Frame, timeout: float, pause: Callable[[], None]) -> None:
        """Wait for a frame and take its answer in; the request is never given up, only its rows are late."""
        try:
            payload = frame.pending.wait(timeout, pause).payload
        except (ChannelBroken, RequestRejected):
            frame.landed = frame.pending.done  # after anything else the answer may still come
            raise
        self._unpack(frame, payload)

    def _unpack(self, frame: _Frame, payload: bytes) -> None:
        protocol, rows, calls = self._protocol, frame.stop - frame.start, len(self._calls)
        arena = Arena(self._columns, rows)
        head = protocol.batch_result_record.size
        due = head + 8 * rows * calls + arena.size - arena.window
        if len(payload) != due:
            frame.landed = True
            raise ChannelBroken(
                f"a batch of {rows} rows: a reply of {len(payload)} bytes where {due} were due"
            )
        answer = protocol.batch_result_record.unpack(payload)
        made = answer["made"]
        values = np.frombuffer(payload, "<i8", rows * calls, head).copy()
        values[made:] = -errno.ECANCELED
        base = head + 8 * rows * calls - arena.window
        for column in self._columns:
            if column.way is not Way.IN:
                at = base + arena.offset(column)
                column.records[frame.start : frame.stop] = np.frombuffer(
                    payload, column.records.dtype, rows, at
                )
        self.values[frame.start : frame.stop] = values.reshape(rows, calls)
        self.answered[frame.start : frame.stop] = True
        if made < rows * calls:
            self._halted = True
        frame.landed = True
        if answer["status"] != protocol.ok:
            row, call = divmod(made, calls)
            what = f"row {frame.start + row} of {self.rows}: {self._calls[call].what}"
            raise rejection(protocol, answer["status"], what)
