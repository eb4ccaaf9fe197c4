# SPDX-License-Identifier: MIT
"""How a machine can fail, each way with its own name.

Whoever catches one of these has the scene at hand: the last console lines, QEMU's own words, the command line
and the folder in which the whole logs are kept.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import FailureKind, GuestFailure


@dataclass(frozen=True)
class Scene:
    """What was left behind when something went wrong.

    Attributes:
        console: the last lines of the serial console.
        qemu: the last lines QEMU wrote to its standard output and error.
        argv: QEMU's command line as it ran, inherited descriptors included.
        repro: a shell line that starts the same machine by hand, without inherited descriptors; ``""`` if
            unknown.
        workdir: the folder that holds ``console.log`` and ``qemu.log``, or None.
    """

    console: tuple[str, ...] = ()
    qemu: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    repro: str = ""
    workdir: Path | None = None

    def evidence(self) -> tuple[str, ...]:
        """The scene as lines for ``HarnessError.evidence``."""
        lines = [f"qemu: {line}" for line in self.qemu]
        lines += [f"console: {line}" for line in self.console]
        if self.repro:
            lines.append(f"by hand: {self.repro}")
        if self.workdir is not None:
            lines.append(f"logs: {self.workdir}")
        return tuple(lines)


class MachineFailure(GuestFailure):
    """Base of everything that goes wrong with a machine after its specification was accepted.

    Attributes:
        scene: the evidence in a structured form; ``console_tail``, ``argv`` and ``workdir`` are its parts.
    """

    def __init__(
        self,
        summary: str,
        *,
        scene: Scene | None = None,
        tried: str = "",
        observed: str = "",
        hint: str = "",
        evidence: Sequence[str] = (),
    ) -> None:
        super().__init__(summary, tried=tried, observed=observed, hint=hint, evidence=evidence)
        self.scene = Scene()
        if scene is not None:
            self.set_scene(scene)

    def set_scene(self, scene: Scene) -> None:
        """Adds the evidence; for layers that know the machine when the one that failed does not."""
        self.scene = scene
        self.evidence = (*self.evidence, *scene.evidence())

    @property
    def console_tail(self) -> tuple[str, ...]:
        """The last lines of the serial console."""
        return self.scene.console

    @property
    def argv(self) -> tuple[str, ...]:
        """QEMU's command line."""
        return self.scene.argv

    @property
    def workdir(self) -> Path | None:
        """Where the logs are."""
        return self.scene.workdir


class QemuDied(MachineFailure):
    """QEMU is gone although nobody asked it to leave.

    Attributes:
        status: what ``waitpid`` said: an exit code, or the negated signal number.
        signal_name: ``"SIGKILL"`` and the like, or None when QEMU left by itself.
    """

    kind = FailureKind.QEMU_DIED

    def __init__(
        self, summary: str, *, status: int, scene: Scene, tried: str = "", hint: str = "", why: str = ""
    ) -> None:
        self.status = status
        self.signal_name = signal_name(status)
        observed = describe_status(status) + (f" ({why})" if why else "")
        super().__init__(summary, scene=scene, tried=tried, observed=observed, hint=hint)


class QemuRefused(QemuDied):
    """QEMU left before it answered at all: an option, a device or an image it does not take (exit code 2)."""

    kind = FailureKind.BAD_INPUT


class QemuStuck(MachineFailure):
    """QEMU lives and does not run the guest: it was stopped, hangs, or even survives SIGKILL."""

    kind = FailureKind.QEMU_STUCK


class GuestPanicked(MachineFailure):
    """The guest's kernel panicked.

    Attributes:
        panic: the console line that says so.
    """

    kind = FailureKind.KERNEL_PANICKED

    def __init__(self, panic: str, *, scene: Scene, tried: str = "") -> None:
        self.panic = panic
        super().__init__(f"the guest kernel panicked: {panic}", scene=scene, tried=tried)


class ConsoleLost(MachineFailure):
    """QEMU lives, but what its guest prints does not arrive any more: a panic would go unnoticed."""

    kind = FailureKind.CHANNEL_BROKEN


class GuestSilent(MachineFailure):
    """The console did not show what was waited for in time.

    Attributes:
        seconds: the deadline that passed.
    """

    def __init__(
        self, summary: str, *, seconds: float, scene: Scene, observed: str = "", hint: str = ""
    ) -> None:
        self.seconds = seconds
        super().__init__(summary, scene=scene, observed=observed, hint=hint)


class QmpFailure(MachineFailure):
    """Base of what can go wrong on QEMU's machine protocol.

    Attributes:
        command: the command as it was sent, for example ``"stop"``.
    """

    def __init__(self, summary: str, *, command: str, observed: str = "", hint: str = "") -> None:
        self.command = command
        super().__init__(summary, tried=f"QMP {command}", observed=observed, hint=hint)


class QmpRefused(QmpFailure):
    """QEMU answered the command with an error; ``observed`` is its text."""


class QmpSilent(QmpFailure):
    """QEMU did not answer the command before its deadline."""

    kind = FailureKind.QEMU_STUCK


class QmpLost(QmpFailure):
    """The protocol connection is closed: QEMU is gone, or the machine was closed."""

    kind = FailureKind.CHANNEL_BROKEN


def signal_name(status: int) -> str | None:
    """``"SIGSEGV"`` for -11, None for an exit code."""
    if status >= 0:
        return None
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def describe_status(status: int) -> str:
    """A wait status in words: ``"exit code 1"`` or ``"killed by SIGKILL"``."""
    name = signal_name(status)
    return f"exit code {status}" if name is None else f"killed by {name}"
