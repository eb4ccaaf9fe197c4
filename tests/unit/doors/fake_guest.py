# SPDX-License-Identifier: MIT
"""A guest that is none, for the pytest door: it can get dirty, die, fall silent and refuse to be restored.

Loaded by the conftest of the sessions that tests run, in their own process or in workers of theirs.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import plugin
from harness.errors import GuestFailure
from harness.forensics import Taint
from harness.link import Start, StartKind
from harness.machines import NamedMachine
from harness.pytest_plugin import asked, watch, workers
from harness.vm.ram import MIB

_NUMBERS = itertools.count(1)
STARTED: list[FakeGuest] = []
RELEASES = {"debian-6.1-cloud": "6.1.0-cloud", "debian-6.12-cloud": "6.12.0-cloud"}


class Console:
    """What the kernel says."""

    def __init__(self) -> None:
        self.said, self.late = "booting\n", ""

        self.ended = False

    def raw(self, since: int = 0, limit: int | None = None) -> bytes:
        return self.said.encode()[since:][:limit]

    def text(self, since: int = 0) -> str:
        return self.raw(since).decode()

    def mark(self) -> int:
        return len(self.said)

    def wait_output(self, seconds: float, *, since: int) -> bool:  # noqa: ARG002
        """What was on its way arrives when somebody waits for it."""
        self.said, self.late = self.said + self.late, ""
        return len(self.said) > since

    def complain(self, where: str = "foo", message: str = "") -> None:
        """The kernel warns."""
        said = f"------------[ cut here ]------------\n{message}\n" if message else ""
        self.said += f"{said}WARNING: CPU: 0 PID: 1 at drivers/foo.c:12 {where}+0x1/0x20 [foo]\n"

    def panic(self, title: str = "Fatal exception") -> None:
        self.said += f"Kernel panic - not syncing: {title}\n"


class FakeGuest:
    """Dirt lies in ``files``; ``dead``, ``silent`` and ``broken_restores`` are for tests to set."""

    def __init__(self, options: Any, image: Any) -> None:
        self.options, self.image = options, image
        self.number = next(_NUMBERS)
        self.generation = 0
        self.starts: tuple[Start, ...] = ()
        self.files: set[str] = set()
        self.dead = self.silent = False
        self.taint = Taint.OOT_MODULE
        self.link = SimpleNamespace(answers=lambda _: not self.silent)
        self.deadlines = SimpleNamespace(scale=1.0)
        self.ssh = object()
        self.broken_restores = 0
        self.hello = SimpleNamespace(release=RELEASES[image.kernel.label])
        self.machine = SimpleNamespace(
            console=Console(), check=self._check, qemu_version="7.2",
            pid=1 << 22, workdir=Path(tempfile.mkdtemp()),
            command=lambda: f"qemu {self.number}", repro_command=lambda: "qemu by hand",
            accelerator=SimpleNamespace(name="tcg", reason="no /dev/kvm"),
        )  # fmt: skip

    def __enter__(self) -> FakeGuest:
        STARTED.append(self)
        (self.machine.workdir / "qemu.log").write_text(f"QEMU {self.number} says nothing\n")
        kind = StartKind.RESTORED if self.options.snapshot else StartKind.BOOTED
        self.starts += (Start(kind, 0.1, "so it was asked"),)
        return self

    def __exit__(self, *_: object) -> None:
        STARTED.remove(self)
        shutil.rmtree(self.machine.workdir)

    @property
    def start(self) -> Start:
        return self.starts[-1]

    def restore(self) -> Start:
        if self.broken_restores:
            self.broken_restores -= 1
            raise GuestFailure("QEMU would not start", hint="type this")
        if self.dead:
            self.machine.console = Console()
        kind = StartKind.RESTORED if self.dead else StartKind.REWOUND
        self.starts += (Start(kind, 0.02, ""),)
        self.generation += 1
        self.files, self.dead, self.silent = set(), False, False
        self.taint = Taint.OOT_MODULE
        return self.start

    def _check(self) -> None:
        if self.dead:
            raise GuestFailure("QEMU was killed", observed="by whom, nobody knows")


class FakeMarks:
    """Marks go onto the console as if the kernel had printed them."""

    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest

    def put(self, text: str, timeout: float) -> Taint:
        if self.guest.silent:
            raise GuestFailure(f"a mark: no reply within {timeout:g} s")
        self.guest.machine.console.said += f"{text}\n"
        return self.guest.taint


class FakeIOKit:
    """A session of the module that only knows whose it is."""

    def __init__(self, process: FakeGuest) -> None:
        process._check()
        self.process = process

    def close(self) -> None:
        self.process._check()


def install(memory_mib: int | None = None) -> Callable[[], None]:
    """Put the fakes in place; return how to take them away again."""

    def image(options: Any, _: Any) -> Any:
        nowhere = Path("/nowhere")
        kernel = SimpleNamespace(
            label=options.kernel, release=RELEASES[options.kernel], vmlinuz=Path(__file__), modules=nowhere,
            headers=nowhere,
        )  # fmt: skip
        module = SimpleNamespace(build_id="01", ko_debug=nowhere)
        return SimpleNamespace(kernel=kernel, module=module, ssh_payload=lambda _: b"")

    def kernel(selector: Any, _: Any) -> Any:
        return SimpleNamespace(release=RELEASES[selector.recipe])

    def lacks(machine: NamedMachine, kernel: Any) -> str:
        """6.1 has no driver, as in life."""
        missing = machine.drivers if kernel.release == RELEASES["debian-6.1-cloud"] else ()
        return f"Linux {kernel.release} has no {', '.join(missing)}" if missing else ""

    fakes: list[tuple[Any, str, Any]] = [
        (plugin, "make_guest", lambda options, image, _: FakeGuest(options, image)),
        (plugin, "prepare", image),
        (plugin, "IOKit", FakeIOKit),
        (watch, "Names", lambda _: SimpleNamespace(lines=None, renew=lambda: None)),
        (watch, "Marks", FakeMarks),
        (asked, "prepare_kernel", kernel),
        (NamedMachine, "lacks", lacks),
    ]
    if memory_mib is not None:
        fakes.append((workers, "available_memory", lambda: memory_mib * MIB))
    before = [(module, name, getattr(module, name)) for module, name, _ in fakes]
    for module, name, fake in fakes:
        setattr(module, name, fake)

    def undo() -> None:
        for module, name, real in before:
            setattr(module, name, real)

    return undo
