# SPDX-License-Identifier: MIT
"""A session that is killed at any moment leaves nothing, and the next one works."""

import os
import random
import shutil
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from left_over import SECONDS, Census, left_over
from stage import Shop, Stage

_SESSION = """
import pytest
from harness.iokit import kIODirectionInOut

@pytest.mark.parametrize("turn", range(6))
def test_shared(iobmd, oracle, guest, turn):
    buf = iobmd.withOptions(kIODirectionInOut, 65536)
    assert oracle.types_of(buf)
    assert guest.peer.link.ping(b"x") == b"x"

@pytest.mark.parametrize("turn", range(4))
def test_fresh(iobmd, fresh_guest, turn):
    fresh_guest.write_file("/tmp/file", b"gone with the next restore")

@pytest.mark.expect_oops("sysrq triggered crash")
def test_dies(fresh_guest):
    with pytest.raises(Exception):
        fresh_guest.write_file("/proc/sysrq-trigger", b"c")
"""
_DOORS = {
    "pytest": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_session.py"],
    "iobmd": ["-m", "harness", "check", "--group", "C"],
}
_END_SECONDS = 240.0
_ORDERLY_SECONDS = 10.0
"""For who is asked to end, and has guests to end first."""


_LENGTHS: dict[str, float] = {}
"""Seconds that a session takes which nobody interrupts, by its door; measured once."""


@dataclass
class Session:
    """A user's session, over and over, in a cache of its own.

    Attributes:
        stage: where it takes place.
        cache: of its own.
        door: what is run: ``"pytest"``, or ``"iobmd"``.
    """

    stage: Stage
    cache: Path
    door: str = "pytest"

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it; it boots, or starts from the snapshot of the one before."""
        words = _DOORS[self.door]
        return self.stage.start([*words, *self.stage.machine_words()], {"IOBMD_CACHE": str(self.cache)})

    def forget_snapshots(self) -> None:
        """Let the next one boot, and make a snapshot."""
        shutil.rmtree(self.cache / "snapshots", ignore_errors=True)

    def whole(self) -> None:
        """Let one run to its end; it has to succeed."""
        code = self.start().wait(_END_SECONDS)
        assert code == 0, (self.stage.folder / "out").read_text()

    @property
    def seconds(self) -> float:
        """How long it takes."""
        if self.door not in _LENGTHS:
            since = time.monotonic()
            self.whole()
            _LENGTHS[self.door] = time.monotonic() - since
        return _LENGTHS[self.door]


@pytest.fixture
def session(shop: Shop, tmp_path: Path) -> Session:
    stage = Stage(shop, tmp_path)
    (tmp_path / "test_session.py").write_text(_SESSION)
    return Session(stage, stage.private_cache())


def test_killed_at_random_moments(
    session: Session, world: Path, pytestconfig: pytest.Config, record_property
):
    kills, choice = pytestconfig.getoption("--kills"), random.Random(4)
    length, gone, ended, found = session.seconds, [], 0, []
    before = Census.take(world, session.cache)
    while len(gone) < kills:
        if choice.random() < 0.5:
            session.forget_snapshots()
        moment = choice.uniform(0, length)
        program = session.start()
        try:
            program.wait(moment)
            ended += 1  # it was quicker this time, which counts for nothing
            continue
        except subprocess.TimeoutExpired:
            program.kill()
        killed = time.monotonic()
        program.wait()
        left = left_over(before, world, session.cache)
        gone.append(time.monotonic() - killed)
        found += [f"kill {len(gone)} after {moment:.2f} s: {line}" for line in left]
    record_property(
        "note",
        f"pytest was killed at {kills} random moments of its {length:.1f} s: {len(found)} left over "
        f"{SECONDS:g} s later; everything was gone after {statistics.median(gone):.2f} s in the middle and "
        f"{max(gone):.2f} s at most ({ended} more sessions had ended before their moment)",
    )
    assert found == []
    session.whole()
    assert left_over(before, world, session.cache) == ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("door", ["pytest", "iobmd"])
def test_asked_to_end_at_random_moments(
    session: Session, door: str, number: signal.Signals, world: Path, pytestconfig: pytest.Config
):
    choice = random.Random(f"{door}{number}")
    session.door = door
    length = session.seconds
    before = Census.take(world, session.cache)
    for turn in range(max(2, pytestconfig.getoption("--kills") // 5)):
        if turn % 2:
            session.forget_snapshots()
        moment = choice.uniform(0, length)
        program = session.start()
        try:
            program.wait(moment)
        except subprocess.TimeoutExpired:
            os.kill(program.pid, number)
        program.wait(_ORDERLY_SECONDS)
        assert left_over(before, world, session.cache) == (), f"{number.name} after {moment:.2f} s"
