# SPDX-License-Identifier: MIT
"""One request to the agent, against the least that the same port can cost."""

from collections.abc import Callable
from contextlib import ExitStack

from harness.bench import echo
from harness.bench.lab import Lab
from harness.bench.rounds import Measure, Side, p50_p99, timings_of
from harness.iokit import IOKit
from harness.link import Guest, Nr

# Short rounds: both sides then see the same host, whatever else runs there.
_ROUNDS = 40
_TIMINGS = 100
_BULK_TIMINGS = 10
_BULK = 64 << 10


def bench_requests(lab: Lab) -> None:
    """Measure an empty request, a large one and system calls beside a raw echo."""
    board, image = lab.board, lab.image
    with Guest(image, lab.machine) as guest, IOKit(guest) as iokit, ExitStack() as stack:
        link = guest.link
        size = link.protocol.header.size
        bulk = bytes(_BULK)
        started: list[echo.Echo] = []

        def raw(measure: Callable[[echo.Echo], dict[str, float]]) -> Callable[[ExitStack], Measure]:
            def prepare(_: ExitStack) -> Measure:
                if not started:
                    spec = guest.machine.spec
                    started.append(stack.enter_context(echo.booted(spec, image, lab.progress)))
                return lambda: measure(started[0])

            return prepare

        def own(call: Callable[[], object]) -> Callable[[ExitStack], Measure]:
            return lambda _: lambda: p50_p99(timings_of(call, _TIMINGS))

        ping = Side("ping", own(link.ping), _TIMINGS)
        floor = Side("echo", raw(lambda peer: p50_p99(peer.timings(size, _TIMINGS))), _TIMINGS)
        large = Side(
            "large ping",
            lambda _: lambda: _rate(timings_of(lambda: link.ping(bulk), _BULK_TIMINGS)),
            _BULK_TIMINGS,
        )
        large_floor = Side(
            "large echo", raw(lambda peer: _rate(peer.timings(_BULK, _BULK_TIMINGS))), _BULK_TIMINGS
        )
        getpid = Side("getpid", own(lambda: link.syscall(Nr.GETPID)), _TIMINGS)
        ioctl = Side("ioctl", own(iokit.info), _TIMINGS)
        against = f"raw echo of {size} bytes on the same port"
        for figure, goal in (("p50", 1.2), ("p99", 2.0)):
            what = f"empty request, {figure}"
            board.row(what, "us", ping.series(figure), peer=floor.series(figure), against=against, goal=goal)
        what = "64 KiB there and back, both ways summed"
        ours, peer = large.series("rate"), large_floor.series("rate")
        board.row(what, "MB/s", ours, peer=peer, against="raw echo", more_is_better=True)
        for what, side in (("getpid() in the guest", getpid), ("ioctl on /dev/iobmd", ioctl)):
            ours, peer = side.series("p50"), ping.series("p50")
            board.row(f"{what}, p50", "us", ours, peer=peer, against="empty request")
        lab.measure("Requests", (ping, floor, large, large_floor, getpid, ioctl), _ROUNDS)


def _rate(timings: list[float]) -> dict[str, float]:
    """Bytes by microseconds are megabytes by seconds."""
    return {"rate": 2 * _BULK / p50_p99(timings)["p50"]}
