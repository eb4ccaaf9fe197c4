# SPDX-License-Identifier: MIT
"""What both doors need to audit a driver: a machine with the devices asked for, and work for them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from harness.audit import AuditRun, Exercise, Subject, build_ledger, exercise_of, resolve
from harness.audit.exercises import TRAFFIC
from harness.audit.traffic import attachment
from harness.errors import BadInput, HarnessError, interruption
from harness.forensics import diagnose
from harness.forensics.evidence import SILENT, hang_report
from harness.images import GuestImage, ModuleBuild, Progress
from harness.link import Guest, GuestOptions
from harness.options import MachineOptions
from harness.vm import Disk, DiskModel, Network, SnapshotStore

_UNITS = ("intel-iommu", "virtio-iommu-pci", "amd-iommu")
"""Devices that have to come before those that are behind them."""


@dataclass(frozen=True)
class Equipment:
    """Devices for a machine, by the words for them.

    Attributes:
        words: as after ``--device``: ``nvme``, ``ahci``, ``virtio-blk``, ``e1000e``, ``e1000`` or
            ``virtio-net`` for a disk or a network with all that belongs to it; anything else is a QEMU
            ``-device`` value.
    """

    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what QEMU would refuse much later.

        Raises:
            BadInput: an empty word.
        """
        if any(not word.strip() for word in self.words):
            raise BadInput("--device is empty", hint="--device e1000e, or any -device value of QEMU's")

    def added_to(self, machine: GuestOptions) -> GuestOptions:
        """Return a machine with these devices."""
        disks, networks = list(machine.disks), list(machine.networks)
        plain = []
        for word in self.words:
            found = attachment(word)
            if isinstance(found, Disk):
                disks.append(found)
            elif isinstance(found, Network):
                networks.append(found)
            else:
                plain.append(word)
        devices = sorted((*machine.devices, *plain), key=lambda word: not word.startswith(_UNITS))
        cmdline = machine.cmdline
        if any(word.startswith("intel-iommu") for word in plain):
            cmdline = (*cmdline, "intel_iommu=on")  # Debian's kernels have the driver and leave it off
        return replace(
            machine, devices=tuple(devices), disks=tuple(disks), networks=tuple(networks), cmdline=cmdline
        )

    @property
    def companions(self) -> tuple[str, ...]:
        """Modules without which their drivers have nothing to do: a disk behind ahci is a SCSI one."""
        found = [attachment(word) for word in self.words]
        return (
            ("sd_mod",) if any(isinstance(one, Disk) and one.model is DiskModel.AHCI for one in found) else ()
        )

    @property
    def exercise(self) -> Exercise | None:
        """What can be done with them without being told: traffic for disks and networks."""
        return exercise_of(TRAFFIC) if any(attachment(word) for word in self.words) else None

    def __str__(self) -> str:
        return ", ".join(self.words)


def audit_guest(
    options: MachineOptions, image: GuestImage, equipment: Equipment, progress: Progress | None = None
) -> Guest:
    """Return a guest for audits, not started yet: `harness.options.make_guest` with devices."""
    snapshots = SnapshotStore.default(progress) if options.snapshot else None
    return Guest(image, equipment.added_to(options.guest(with_shell=False)), snapshots, diagnose)


def prepared(
    path: str,
    image: GuestImage,
    equipment: Equipment,
    progress: Progress,
    *,
    module: str = "",
    also: Sequence[str] = (),
) -> tuple[Subject, ModuleBuild]:
    """Build the driver and the ledger; for the arguments and errors see `harness.audit.resolve`."""
    companions = (*equipment.companions, *also)
    subject = resolve(path, image.kernel, progress, module=module, also=companions)
    return subject, build_ledger(image.kernel, progress)


@contextmanager
def failures_of(run: AuditRun) -> Iterator[None]:
    """Give a failure in the block its right name, and keep it with the run: what was found stays.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C; the run has what was found until then.
    """
    try:
        yield
    except Exception as error:
        stopped = interruption(error)
        if stopped is not None:
            raise stopped from None
        better = diagnose(run.guest, error)
        if not isinstance(better, HarnessError):
            raise
        run.failure = better


def keep_evidence(run: AuditRun, root: Path, report: str) -> str:
    """Keep what is known of a guest that died under a driver; it has not been closed yet.

    Args:
        run: its failure is known.
        root: the folder for results; a new one is made in it.
        report: the audit as JSON.

    Returns:
        What to say of it: where it is, or why it is nowhere.
    """
    folder = root / time.strftime(f"audit-{run.name}-%Y%m%d-%H%M%S-{os.getpid()}")
    machine = run.guest.machine
    silent = run.failure is not None and run.failure.kind in SILENT
    try:
        folder.mkdir(parents=True)
        (folder / "error.txt").write_text(f"{run.failure}\n", encoding="utf-8")
        (folder / "audit.json").write_text(report, encoding="ascii")
        (folder / "console.log").write_bytes(machine.console.raw())
        (folder / "kernel.log").write_text(run.observed.said(), encoding="utf-8")
        (folder / "qemu.sh").write_text(f"{machine.repro_command()}\n", encoding="utf-8")
        shutil.copyfile(machine.workdir / "qemu.log", folder / "qemu.log")
        if silent:
            (folder / "hang.txt").write_text(hang_report(run.guest), encoding="utf-8")
    except OSError as error:
        return f"evidence was not kept: {error}"
    return f"kept in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}"
