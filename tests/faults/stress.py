# SPDX-License-Identifier: MIT
"""Calls without end to one guest: a program of its own, so that it can have one processor to itself.

    taskset -c 0 python stress.py --calls 1000000 --kernel ... --cpus 2

Half of the calls are made one after the other, half with several in flight.  Every answer is compared with
what was asked, every call has a deadline of its own, and a batch counts as what it is, a call; what it makes
in the guest is counted apart.  The last line of the output is the result as JSON.
"""

import argparse
import json
import os
import random
import time
from collections import deque
from dataclasses import asdict, dataclass

from harness.images import SilentProgress
from harness.link import Guest, Nr
from harness.options import add_options, from_namespace, make_guest, prepare

DEADLINE = 5.0
"""Seconds for one call."""
_IN_FLIGHT = 12
_BATCH_EVERY = 1000
_BATCH_ROWS = 100


@dataclass
class Tally:
    """What was counted.

    Attributes:
        calls: that were made.
        answered: of those, with the right answer.
        alone: made with none beside them.
        in_flight: made with others under way.
        batches: of the calls, how many were batches.
        in_batches: system calls that batches made, beyond the calls.
        slowest: seconds of the slowest call.
        late: calls that took longer than their deadline.
        seconds: of everything.
    """

    calls: int = 0
    answered: int = 0
    alone: int = 0
    in_flight: int = 0
    batches: int = 0
    in_batches: int = 0
    slowest: float = 0.0
    late: int = 0
    seconds: float = 0.0

    def done(self, since: float, right: bool) -> None:
        """Count an answer to what was sent at *since*."""
        seconds = time.monotonic() - since
        self.answered += right
        self.slowest = max(self.slowest, seconds)
        self.late += seconds > DEADLINE


def stress(guest: Guest, calls: int, seed: int = 1) -> Tally:
    """Make *calls* calls; the first that fails ends it by its exception."""
    tally, since = Tally(), time.monotonic()
    _one_by_one(guest, calls - calls // 2, random.Random(seed), tally)
    _several(guest, calls // 2, random.Random(seed + 1), tally)
    tally.seconds = time.monotonic() - since
    return tally


def _one_by_one(guest: Guest, calls: int, choice: random.Random, tally: Tally) -> None:
    for number in range(calls):
        tally.calls += 1
        tally.alone += 1
        since = time.monotonic()
        if number % _BATCH_EVERY == 0:
            tally.batches += 1
            batch = guest.batch(_BATCH_ROWS)
            batch.call(Nr.GETPID)
            batch.run(timeout=DEADLINE)
            tally.in_batches += batch.rows
            tally.done(since, bool((batch.values == 1).all()))
        elif number % 2:
            payload = choice.randbytes(choice.choice((0, 8, 100, 5000)))
            tally.done(since, guest.link.ping(payload, timeout=DEADLINE) == payload)
        else:
            tally.done(since, guest.link.syscall(Nr.GETPID, timeout=DEADLINE).value == 1)


def _several(guest: Guest, calls: int, choice: random.Random, tally: Tally) -> None:
    """A window of calls; whichever is the oldest is waited for."""
    link = guest.link
    flying: deque[tuple[float, bytes, object]] = deque()

    def land() -> None:
        since, expected, pending = flying.popleft()
        left = DEADLINE - (time.monotonic() - since)
        answer = pending.wait(max(left, 0.0))  # type: ignore[attr-defined]
        tally.done(since, (answer.payload if expected else answer.value) == (expected or 1))

    for number in range(calls):
        tally.calls += 1
        tally.in_flight += 1
        since = time.monotonic()
        if number % 2:
            payload = choice.randbytes(choice.choice((8, 100, 5000)))
            flying.append((since, payload, link.submit(link.protocol.ping, payload)))
        else:
            flying.append((since, b"", link.start(Nr.GETPID)))
        if len(flying) >= _IN_FLIGHT:
            land()
    while flying:
        land()


def main() -> None:
    """Start the guest that was asked for, and print the tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser.add_argument)
    parser.add_argument("--calls", type=int, default=20_000)
    arguments = parser.parse_args()
    options = from_namespace(arguments)
    with make_guest(options, prepare(options, SilentProgress())) as guest:
        tally = stress(guest, arguments.calls)
        processors = sorted(os.sched_getaffinity(guest.machine.pid))
    print(json.dumps({**asdict(tally), "processors": processors, "deadline": DEADLINE}))


if __name__ == "__main__":
    main()
