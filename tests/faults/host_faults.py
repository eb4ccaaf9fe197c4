# SPDX-License-Identifier: MIT
"""Faults of the host: snapshots, disks, what a host can run out of, and who interrupts."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fault_table import DEADLINE, PANIC_SECONDS, waiting_aside
from stage import INJECTOR, Stage, ended, fault, until

from harness.errors import FailureKind
from harness.images import SilentProgress, build_module, cache_root
from harness.link import Guest, StartKind
from harness.options import make_guest

_EXHAUSTED = FailureKind.HOST_EXHAUSTED
_INTERRUPTED = FailureKind.INTERRUPTED
_START_SECONDS = 120.0
_DISK_KIB = 256
_CLAUSE = "A01"


@fault("snapshot", "it is cut off before a guest starts from it", None, 10.0)
def snapshot_truncated(stage: Stage) -> None:
    _damaged(stage, lambda ram: os.truncate(ram, ram.stat().st_size // 2))


@fault("snapshot", "one of its bits is flipped", None, 10.0)
def snapshot_flipped(stage: Stage) -> None:
    _damaged(stage, _flip)


@fault("snapshot", "it is gone when the guest has to be put back to it", None, 10.0)
def snapshot_gone(stage: Stage) -> None:
    cache = stage.private_cache()
    with stage.cache(cache), stage.guest() as guest:
        shutil.rmtree(_snapshot(cache).parent)
        with stage.injection():
            guest.restore()
            guest.link.ping(timeout=DEADLINE)
        _boot_aside(stage, guest)


@fault("snapshot", "two sessions share an empty cache at once", None, 30.0)
def shared_cache(stage: Stage) -> None:
    cache = stage.private_cache()
    argv = ["-c", _START, *stage.machine_words()]
    since = time.monotonic()
    sessions = [stage.start(argv, {"IOBMD_CACHE": str(cache)}, name=f"out{i}") for i in range(2)]
    told = [stage.finish(one, since=since, name=f"out{i}") for i, one in enumerate(sessions)]
    assert all("answers" in text for text in told), told
    assert len(list((cache / "snapshots").iterdir())) == 1


@fault("host", "the cache is read-only", None, 20.0)
def cache_read_only(stage: Stage) -> None:
    with small_disk(stage, read_only=True) as cache:
        _starts_nevertheless(stage, cache, "read-only")


@fault("host", "the disk under the cache is full", None, 20.0)
def cache_full(stage: Stage) -> None:
    with small_disk(stage) as cache:
        _starts_nevertheless(stage, cache, "full")


@fault("host", "the disk under the cache is full, and the injector has to be built", _EXHAUSTED, 20.0)
def cache_full_for_build(stage: Stage) -> None:
    source = stage.folder / "source"
    shutil.copytree(INJECTOR, source)
    code = source / "iobmd_faults.c"
    code.write_text(code.read_text() + "/* built for this test only */\n")
    with small_disk(stage, "modules") as cache, stage.cache(cache), stage.injection():
        build_module(stage.shop.image.kernel, source, SilentProgress(), name="iobmd_faults")


@fault("host", "the disk with the private folders is full", _EXHAUSTED, 10.0)
def folders_full(stage: Stage) -> None:
    with small_disk(stage) as disk:
        _fill(disk)
        environment = {"TMPDIR": str(disk), "XDG_RUNTIME_DIR": str(disk)}
        _command(stage, _EXHAUSTED, environment=environment)


@fault("host", "/dev/shm is full", None, 10.0)
def shared_memory_full(stage: Stage) -> None:
    """Nothing of a guest lies there: its memory has no name."""
    if shutil.which("unshare") is None or os.getuid() != 0:
        pytest.skip("only root can put a full disk over /dev/shm")
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && { head -c 1M /dev/zero > /dev/shm/x; exec "$@"; }'
    wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"]
    _command(stage, None, wrapper=wrapper)


@fault("host", "no descriptors are left", _EXHAUSTED, 10.0)
def no_descriptors(stage: Stage) -> None:
    _command(stage, _EXHAUSTED, wrapper=["prlimit", "--nofile=16"])


@fault("host", "no address space is left", _EXHAUSTED, 10.0)
def no_address_space(stage: Stage) -> None:
    _command(stage, _EXHAUSTED, wrapper=["prlimit", f"--as={700 << 20}"])


@fault("host", "a guest with more memory than the host has", _EXHAUSTED, 10.0)
def no_memory(stage: Stage) -> None:
    with stage.injection(), make_guest(replace(stage.shop.options, memory_mib=1 << 24), stage.shop.image):
        pass


@fault("host", "QEMU is not installed", FailureKind.HOST_LACKS, 10.0)
def no_qemu(stage: Stage) -> None:
    tools = stage.folder / "bin"
    tools.mkdir()
    for name in ("sh", "setpriv", "gcc", "make", "strip", "gcc-12"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    _command(stage, FailureKind.HOST_LACKS, environment={"PATH": str(tools)})


@fault("host", "a mistake in the harness itself", FailureKind.HARNESS_BUG, 10.0)
def harness_bug(stage: Stage) -> None:
    told = stage.finish(stage.start(["-c", _BUG, "check", *stage.machine_words()]))
    assert "mistake in iobmd itself" in told
    assert "Traceback" not in told, told


@fault("host", "Ctrl-C while clauses are judged", _INTERRUPTED, PANIC_SECONDS)
def interrupted(stage: Stage) -> None:
    _signalled(stage, ["-m", "harness", "check", *stage.machine_words()], signal.SIGINT)


@fault("host", "SIGTERM while clauses are judged", _INTERRUPTED, PANIC_SECONDS)
def terminated(stage: Stage) -> None:
    _signalled(stage, ["-m", "harness", "check", *stage.machine_words()], signal.SIGTERM)


@fault("host", "SIGHUP while clauses are judged", _INTERRUPTED, PANIC_SECONDS)
def hung_up(stage: Stage) -> None:
    _signalled(stage, ["-m", "harness", "check", *stage.machine_words()], signal.SIGHUP)


@fault("host", "Ctrl-C in a pytest session", _INTERRUPTED, PANIC_SECONDS)
def pytest_interrupted(stage: Stage) -> None:
    (stage.folder / "test_long.py").write_text(_LONG)
    argv = ["-m", "pytest", "-p", "no:cacheprovider", "test_long.py", *stage.machine_words()]
    _signalled(stage, argv, signal.SIGINT, ends_with=pytest.ExitCode.INTERRUPTED)


@fault("host", "SIGTERM in a pytest session", _INTERRUPTED, PANIC_SECONDS)
def pytest_terminated(stage: Stage) -> None:
    (stage.folder / "test_long.py").write_text(_LONG)
    argv = ["-m", "pytest", "-p", "no:cacheprovider", "test_long.py", *stage.machine_words()]
    _signalled(stage, argv, signal.SIGTERM, ends_with=-signal.SIGTERM)


@contextmanager
def small_disk(stage: Stage, *fresh: str, read_only: bool = False) -> Iterator[Path]:
    """A full, or a read-only, disk with the session's cache on it, and of that nothing in *fresh*."""
    disk = stage.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_KIB}k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only who may mount has a disk that can be full")
    try:
        for entry in cache_root().iterdir():
            if entry.name not in ("snapshots", "locks", "bugs", *fresh):
                (disk / entry.name).symlink_to(entry)
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        else:
            _fill(disk)
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _starts_nevertheless(stage: Stage, cache: Path, why: str) -> None:
    """Without a snapshot a guest boots, and says why."""
    with stage.cache(cache), stage.injection(), stage.guest() as guest:
        guest.link.ping(timeout=DEADLINE)
        assert why in guest.start.why.lower(), guest.start
    _boot_aside(stage, guest)


def _boot_aside(stage: Stage, guest: Guest) -> None:
    """What a boot takes is the guest's time; what is promised is what comes before it and after."""
    assert guest.start.how is StartKind.BOOTED, guest.start
    stage.seconds -= guest.start.seconds


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _command(
    stage: Stage,
    expected: FailureKind | None,
    *,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> str:
    """Judge one clause in a program of its own, under *wrapper*; call the failure by its exit code."""
    words = ["-m", "harness", "check", "--group", _CLAUSE, *stage.machine_words()]
    command = [*wrapper, sys.executable, *words] if wrapper else words
    told = stage.finish(stage.start(command, environment), expected)
    assert "Traceback" not in told, told
    return told


def _signalled(
    stage: Stage, argv: Sequence[str], number: signal.Signals, ends_with: int | None = None
) -> None:
    """Send a signal as soon as the program has a guest."""
    program = stage.start(argv)
    try:
        until(lambda: "qemu-system" in _words_of_children(program.pid), _START_SECONDS, "no QEMU was started")
        since = waiting_aside(program.pid)
        program.send_signal(number)
        if ends_with is None:
            told = stage.finish(program, since=since)
        else:
            took = ended(program, _START_SECONDS) - since
            told = (stage.folder / "out").read_text()
            kind = _INTERRUPTED if program.returncode == ends_with else FailureKind.NOT_DONE
            stage.call(kind, f"exit code {program.returncode}", took)
    finally:
        program.kill()
        program.wait()
    assert "Traceback" not in told, told


def _words_of_children(pid: int) -> str:
    """The command lines of a process's children, whichever of its threads they belong to."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found.append(Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace"))
    return "\n".join(found)


def _snapshot(cache: Path) -> Path:
    (folder,) = (cache / "snapshots").iterdir()
    return folder / "ram"


def _flip(ram: Path) -> None:
    with ram.open("r+b") as file:
        file.seek(ram.stat().st_size // 3)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((byte[0] ^ 1,)))


def _damaged(stage: Stage, damage: Callable[[Path], None]) -> None:
    """A guest whose snapshot is damaged is booted, and the snapshot is made anew."""
    cache = stage.private_cache()
    with stage.cache(cache):
        with stage.guest():
            pass
        damage(_snapshot(cache))
        with stage.injection(), stage.guest() as guest:
            guest.link.ping(timeout=DEADLINE)
        _boot_aside(stage, guest)
        with stage.guest() as guest:
            assert guest.start.how is StartKind.RESTORED, guest.start


_LONG = """
import time

def test_long(guest):
    while True:
        guest.link.ping()
"""

_START = """
import argparse, sys
from harness.images import SilentProgress
from harness.options import add_options, from_namespace, make_guest, prepare
parser = argparse.ArgumentParser()
add_options(parser.add_argument)
options = from_namespace(parser.parse_args())
with make_guest(options, prepare(options, SilentProgress())) as guest:
    guest.link.ping()
    print("answers", guest.start)
"""

_BUG = """
import sys
from harness import cli
def broken(*args, **kwargs):
    return {}["nothing"]
cli.judge = broken
from harness.entry import main
main()
"""
