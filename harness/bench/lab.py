# SPDX-License-Identifier: MIT
"""What every bench works with: a kernel, a machine, a board to write on."""

from collections.abc import Sequence
from functools import cached_property

from harness.bench.board import Board
from harness.bench.rounds import Side, interleave
from harness.images import GuestImage, Progress
from harness.link import GuestOptions
from harness.options import MachineOptions, prepare
from harness.vm import Accel, SnapshotStore

RECIPE = "debian-6.1"
"""The kernel the boot peer's users boot; the cloud kernels lack what that peer needs."""


def default_options() -> MachineOptions:
    """The machine of all published figures; its accelerator is one that every host has."""
    return MachineOptions(kernel=RECIPE, accel=Accel.TCG)


class Lab:
    """The bench's surroundings.

    Args:
        options: kernel and machine, the same for both sides of every row.
        board: where rows go.
        progress: hears of long steps.
        rounds: how often everything is measured; each bench's own number if None.

    Attributes:
        options: as given.
        board: as given.
        progress: as given.
    """

    def __init__(
        self, options: MachineOptions, board: Board, progress: Progress, rounds: int | None = None
    ) -> None:
        self.options = options
        self.board = board
        self.progress = progress
        self._rounds = rounds

    @cached_property
    def image(self) -> GuestImage:
        """What is booted."""
        return self._described(prepare(self.options, self.progress))

    @cached_property
    def shell_image(self) -> GuestImage:
        """The same with busybox."""
        return self._described(prepare(self.options, self.progress, with_shell=True))

    @cached_property
    def machine(self) -> GuestOptions:
        """The machine around the image."""
        return self.options.guest(with_shell=False)

    @cached_property
    def shell_machine(self) -> GuestOptions:
        """The machine around the image with busybox, whose console has a shell."""
        return self.options.guest(with_shell=True)

    @cached_property
    def snapshots(self) -> SnapshotStore:
        """Where guests that booted once are kept; those of the user, as a user's guests come from there."""
        return SnapshotStore.default(self.progress)

    def rounds(self, usual: int) -> int:
        """How many rounds: what the user asked for, else the bench's own number."""
        return self._rounds or usual

    def measure(self, title: str, sides: Sequence[Side], rounds: int) -> None:
        """Measure the sides by turns, with progress."""
        rounds = self.rounds(rounds)
        with self.progress.task(title, rounds * len(sides)) as task:
            interleave(sides, rounds, task)

    def _described(self, image: GuestImage) -> GuestImage:
        self.board.facts |= {
            "kernel": image.kernel.release,
            "memory_mib": self.machine.memory_mib,
            "cpus": self.machine.cpus,
            "accelerator": self.options.accel.value,
        }
        return image
