# SPDX-License-Identifier: MIT
"""One request, against the least that the same port can cost."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import bench_echo
import pytest
from bench_board import Board, Series, percentile

from harness.images import RichProgress
from harness.iokit import IOKit
from harness.link import Guest, Nr

pytestmark = pytest.mark.bench

# Short rounds: both sides then see the same host, whatever else runs there.
_ROUNDS = 40
_TIMINGS = 100
_BULK_TIMINGS = 10
_BULK = 64 << 10
_P50, _P99 = 0.50, 0.99

Measure = Callable[[], list[float]]


@dataclass(frozen=True)
class Rounds:
    """Two sides measured by turns, microseconds."""

    ours: list[list[float]]
    peer: list[list[float]]

    @classmethod
    def of(cls, ours: Measure, peer: Measure) -> "Rounds":
        """Measure; who goes first changes from round to round, so a drift of the host hits both."""
        rounds = cls([], [])
        for index in range(_ROUNDS):
            sides = [(rounds.ours, ours), (rounds.peer, peer)]
            for results, measure in reversed(sides) if index % 2 else sides:
                results.append(measure())
        return rounds

    def percentiles(self, share: float) -> tuple[Series, Series]:
        """One percentile of each round, of both sides."""
        ours, peer = (
            Series(tuple(percentile(timings, share) for timings in side), len(side[0]))
            for side in (self.ours, self.peer)
        )
        return ours, peer


@pytest.fixture(scope="module")
def echo(bench_guest: Guest) -> Iterator[bench_echo.Echo]:
    with bench_echo.booted(bench_guest.machine.spec, bench_guest.image, RichProgress()) as echo:
        yield echo


def test_empty_request_against_a_raw_echo(board: Board, bench_guest: Guest, echo: bench_echo.Echo) -> None:
    size = bench_guest.link.protocol.header.size
    rounds = Rounds.of(timings_of(bench_guest.link.ping, _TIMINGS), lambda: echo.timings(size, _TIMINGS))
    for name, share, goal in (("p50", _P50, 1.5), ("p99", _P99, None)):
        ours, peer = rounds.percentiles(share)
        against = f"raw echo of {size} bytes"
        board.row(f"empty request, {name}", "us", ours, peer=peer, against=against, goal=goal)


def test_bulk_against_a_raw_echo(board: Board, bench_guest: Guest, echo: bench_echo.Echo) -> None:
    message = bytes(_BULK)
    rounds = Rounds.of(
        timings_of(lambda: bench_guest.link.ping(message), _BULK_TIMINGS),
        lambda: echo.timings(_BULK, _BULK_TIMINGS),
    )
    ours, peer = (throughput(side) for side in rounds.percentiles(_P50))
    what = "64 KiB there and back, both ways summed"
    board.row(what, "MB/s", ours, peer=peer, against="raw echo", more_is_better=True)


def test_system_calls_against_the_empty_request(board: Board, bench_guest: Guest) -> None:
    link = bench_guest.link
    with IOKit(bench_guest) as iokit:
        calls: dict[str, Callable[[], object]] = {
            "getpid() in the guest": lambda: link.syscall(Nr.GETPID),
            "ioctl on /dev/iobmd": iokit.info,
        }
        for what, call in calls.items():
            rounds = Rounds.of(timings_of(call, _TIMINGS), timings_of(link.ping, _TIMINGS))
            ours, peer = rounds.percentiles(_P50)
            board.row(f"{what}, p50", "us", ours, peer=peer, against="empty request")


def timings_of(call: Callable[[], object], count: int) -> Measure:
    def measure() -> list[float]:
        now, timings = time.perf_counter, []
        for _ in range(count):
            started = now()
            call()
            timings.append((now() - started) * 1e6)
        return timings

    return measure


def throughput(series: Series) -> Series:
    """Bytes by microseconds are megabytes by seconds."""
    return Series(tuple(2 * _BULK / value for value in series.values), series.each)
