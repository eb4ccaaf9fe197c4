# SPDX-License-Identifier: MIT
"""What a fault is given: guests made as the doors make them, the injector in them, programs to run."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fault_table import DEADLINE, Fault, Report, waiting_aside

from harness.errors import FailureKind
from harness.images import GuestImage, SilentProgress, build_module, cache_root
from harness.link import Guest, In, Nr
from harness.options import MachineOptions, make_guest

INJECTOR = Path(__file__).parent / "injector"
DEVICE = "/dev/iobmd-faults"
IOC_PANIC = 0x6601  # _IO('f', 1) of the injector
_PROGRAM_SECONDS = 240.0
"""For what is judged by its own limit, or by none: a program that has not ended by then never will."""
_LOOK_SECONDS = 0.002
_SIGNALLED = (128 + signal.SIGTERM, 128 + signal.SIGHUP)
_SAID = re.compile(r"^iobmd: (.*)$", re.MULTILINE)

FAULTS: list[Fault] = []


def fault(
    where: str, injected: str, expected: FailureKind | None, limit: float
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Put a function that injects something into the table."""

    def add(inject: Callable[[Stage], None]) -> Callable[[Stage], None]:
        FAULTS.append(Fault(inject.__name__, where, injected, expected, limit, inject))
        return inject

    return add


@dataclass(frozen=True)
class Shop:
    """What all stages of a session share.

    Attributes:
        image: what is booted.
        options: the machine that was asked for.
        injector: the module, as bytes.
    """

    image: GuestImage
    options: MachineOptions
    injector: bytes

    @classmethod
    def of(cls, image: GuestImage, options: MachineOptions) -> Shop:
        """Build the injector for the image's kernel, and make the snapshots that faults start from."""
        built = build_module(image.kernel, INJECTOR, SilentProgress(), name="iobmd_faults")
        for cpus in sorted({options.guest(with_shell=False).cpus, 2}):
            with make_guest(replace(options, cpus=cpus), image):
                pass
        return cls(image, options, built.ko.read_bytes())


class Stage(Report):
    """Where one fault takes place.

    Args:
        shop: of the session.
        folder: for what the fault needs; empty.
    """

    def __init__(self, shop: Shop, folder: Path) -> None:
        super().__init__()
        self.shop = shop
        self.folder = folder

    @contextlib.contextmanager
    def guest(self, image: GuestImage | None = None, **options: object) -> Iterator[Guest]:
        """Start a guest of the fault's own, with the injector in it."""
        chosen = replace(self.shop.options, **options)  # type: ignore[arg-type]
        with make_guest(chosen, image or self.shop.image) as guest:
            guest.load_module(self.shop.injector)
            yield guest

    def ask(self, guest: Guest, word: str, seconds: float = DEADLINE) -> int:
        """Have the injector do something; return what the write came back with."""
        fd = guest.open(DEVICE, os.O_RDWR)
        return guest.link.syscall(
            Nr.WRITE, fd, In(word.encode()), len(word), timeout=seconds, what=f"fault {word}"
        ).value

    def break_by(self, word: str, seconds: float = DEADLINE, says: str = "", **options: object) -> None:
        """The whole of a fault that one word to the injector makes; *says*: see `after`."""
        with self.guest(**options) as guest:
            fd = guest.open(DEVICE, os.O_RDWR)
            with self.after(guest, says) if says else contextlib.nullcontext(), self.injection():
                told = (Nr.WRITE, fd, In(word.encode()), len(word))
                guest.link.syscall(*told, timeout=seconds, what=f"fault {word}")
                guest.link.ping(timeout=seconds)

    @contextlib.contextmanager
    def after(self, guest: Guest, says: str) -> Iterator[None]:
        """Let the time of the injection in the block count from the moment the guest says something."""
        with Listener(guest, says) as listener:
            yield
            end = waiting_aside()
        assert listener.heard, f"the guest has not said {says!r}"
        self.seconds = max(0.0, end - listener.heard)

    def private_cache(self) -> Path:
        """Make a cache with this session's kernels and modules in it, and without its snapshots."""
        root = self.folder / "cache"
        root.mkdir()
        for entry in cache_root().iterdir():
            if entry.name not in ("snapshots", "locks", "bugs"):
                (root / entry.name).symlink_to(entry)
        return root

    @contextlib.contextmanager
    def cache(self, root: Path) -> Iterator[None]:
        """Use another cache in the block."""
        before = os.environ.get("IOBMD_CACHE")
        os.environ["IOBMD_CACHE"] = str(root)
        try:
            yield
        finally:
            del os.environ["IOBMD_CACHE"]
            if before is not None:
                os.environ["IOBMD_CACHE"] = before

    def machine_words(self) -> list[str]:
        """The options that ask a door for this session's machine."""
        options = self.shop.options
        memory = options.guest(with_shell=False).memory_mib
        # One word each: pytest would take the files of a kernel for tests.
        words = [f"--kernel={options.kernel}", "--machine", options.machine, "--memory", str(memory)]
        for name, folder in (("modules", options.modules), ("headers", options.headers)):
            words += [f"--{name}={folder}"] if folder else []
        return [*words, "--accel", options.accel.value]

    @staticmethod
    def python(*argv: str) -> list[str]:
        """Return the command line of a Python program."""
        return [sys.executable, *argv]

    def start(
        self, argv: Sequence[str], environment: Mapping[str, str] | None = None, *, name: str = "out"
    ) -> subprocess.Popen[bytes]:
        """Start a program of this interpreter's.

        Args:
            argv: its arguments; or a whole command line, when it does not begin with an option.
            environment: beyond this process's own.
            name: file in the folder that gets its output.
        """
        env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(environment or {})}
        env.pop("PYTEST_ADDOPTS", None)
        command = [sys.executable, *argv] if argv[0].startswith("-") else list(argv)
        with (self.folder / name).open("w") as out:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=env,
                cwd=self.folder,
                preexec_fn=_listen,  # noqa: PLW1509
            )

    def finish(
        self,
        program: subprocess.Popen[bytes],
        expected: FailureKind | None = None,
        *,
        since: float | None = None,
        seconds: float = _PROGRAM_SECONDS,
        name: str = "out",
    ) -> str:
        """Wait for its end; call the failure what its exit code says; return its output.

        Args:
            program: from `start`.
            expected: preferred where several kinds share an exit code.
            since: when the time began, by the program's `waiting_aside`; now if None.
            seconds: what it may take.
            name: as for `start`.
        """
        since = waiting_aside(program.pid) if since is None else since
        took = ended(program, seconds) - since
        code = program.returncode
        told = (self.folder / name).read_text(errors="replace")
        said = _SAID.findall(told) or told.strip().splitlines()[-1:] or [""]
        self.call(kind_of(code, expected), said[-1], took)
        return told


def _listen() -> None:
    """A session under nohup, or a background job of a shell's, would hand its deafness on."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Listener:
    """Looks at the console, beside the harness, for the moment the guest says something.

    Args:
        guest: it may have no machine yet.
        says: what to look for.

    Attributes:
        heard: when that was, by `waiting_aside`; 0 before.
    """

    def __init__(self, guest: Guest, says: str) -> None:
        self._guest = guest
        self._says = says
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self.heard = 0.0

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        over = False
        while not self.heard and not over:
            over = self._over.wait(_LOOK_SECONDS)  # and one more look
            machine = getattr(self._guest, "machine", None)
            if machine is not None and self._says in machine.console.text():
                self.heard = waiting_aside()


def ended(program: subprocess.Popen[bytes], seconds: float) -> float:
    """Wait for a program's end, or kill it; return when it ended, by its `waiting_aside`."""
    end = os.pidfd_open(program.pid)
    try:
        came, _, _ = select.select([end], [], [], seconds)
        now = waiting_aside(program.pid)
    finally:
        os.close(end)
        program.kill()
        program.wait()
    if not came:
        raise subprocess.TimeoutExpired(program.args, seconds)
    return now


def kind_of(code: int, expected: FailureKind | None = None) -> FailureKind | None:
    """Return the kind an exit code of ``iobmd`` means; where several share one, *expected* or the first."""
    if code == 0:
        return None
    if expected is not None and expected.exit_code == code:
        return expected
    if code in _SIGNALLED:
        return FailureKind.INTERRUPTED
    known = {kind.exit_code: kind for kind in reversed(tuple(FailureKind))}
    if code not in known:
        raise AssertionError(f"exit code {code} stands for no kind of failure")
    return known[code]


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something that tells nobody."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.005)  # sampling
