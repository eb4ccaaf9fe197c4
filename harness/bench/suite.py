# SPDX-License-Identifier: MIT
"""The benches by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from harness.bench.audits import bench_audit
from harness.bench.boot import bench_boot
from harness.bench.buffers import bench_batches, bench_mass
from harness.bench.lab import Lab
from harness.bench.looks import bench_looks
from harness.bench.requests import bench_requests
from harness.bench.shells import bench_shells
from harness.bench.starts import bench_clean, bench_starts
from harness.bench.whole import bench_contract, bench_workers
from harness.errors import BadInput


@dataclass(frozen=True)
class Bench:
    """One bench.

    Attributes:
        name: what a user types.
        about: what it measures and against what, for ``--help``.
        run: fills the lab's board.
        usual: whether it runs when no name is given.
    """

    name: str
    about: str
    run: Callable[[Lab], None]
    usual: bool = True


_ALL = (
    Bench("start", "QEMU spawned to first reply: snapshot, cold boot, virtme-ng", bench_starts),
    Bench("clean", "a clean guest for the next test, against a cold boot", bench_clean),
    Bench("rpc", "one request, against a raw echo in C on the same port", bench_requests),
    Bench("ways", "one request, against SSH, a shell on the console and qemu-guest-agent", bench_shells),
    Bench("batch", "buffers made, asked and released in one trip, against one at a time", bench_batches),
    Bench("mass", "a thousand buffers verified from outside; a buffer beside 10 to 10 000", bench_mass),
    Bench("look", "a look at a buffer from outside, step by step", bench_looks),
    Bench("audit", "a driver's traffic with the ledger on, against off", bench_audit),
    Bench("contract", "the whole contract, from a snapshot and from a boot; a minute or two", bench_contract),
    Bench("workers", "the same tests with two xdist workers and with one process", bench_workers),
    Bench("boot", "where each millisecond of a start goes", bench_boot, usual=False),
)

BENCHES: Mapping[str, Bench] = {bench.name: bench for bench in _ALL}


def select(names: Iterable[str]) -> tuple[Bench, ...]:
    """Return the benches with these names, each once, in the order of `BENCHES`; the usual ones without any.

    Raises:
        BadInput: there is no such bench.
    """
    asked = list(dict.fromkeys(names))
    for name in asked:
        if name not in BENCHES:
            close = get_close_matches(name, BENCHES, n=1)
            raise BadInput(
                f"there is no bench {name!r}",
                observed=f"known: {', '.join(BENCHES)}",
                hint=f"did you mean {close[0]}?" if close else "see `iobmd bench --help`",
            )
    return tuple(bench for bench in _ALL if (bench.name in asked if asked else bench.usual))


def run(benches: Iterable[Bench], lab: Lab) -> None:
    """Run benches one after the other until they are done or the user has seen enough.

    Ctrl-C ends the run, is noted on the board and leaves there what was measured.
    """
    try:
        for bench in benches:
            bench.run(lab)
    except KeyboardInterrupt:
        lab.board.interrupted = True
    finally:
        lab.board.finish()
