# SPDX-License-Identifier: MIT
"""Virtual machines: specification, accelerator, QEMU process, protocol, console, memory."""

from harness.vm.accel import AcceleratorVerdict, choose_accelerator
from harness.vm.attached import Attached, Disk, DiskFile, DiskModel, Network, NetworkModel
from harness.vm.capture import Capture
from harness.vm.complaints import Complaint, ConsoleEvent
from harness.vm.console import READY_LINE, RESTORED_LINE, Console
from harness.vm.errors import (
    ConsoleLost,
    GuestPanicked,
    GuestSilent,
    MachineFailure,
    QemuDied,
    QemuRefused,
    QemuStuck,
    QmpFailure,
    QmpLost,
    QmpRefused,
    QmpSilent,
    Scene,
)
from harness.vm.machine import Machine, MachineState
from harness.vm.process import process_stat
from harness.vm.qemu import Qemu, find_qemu
from harness.vm.qmp import Qmp, QmpEvent
from harness.vm.qtest import QTest
from harness.vm.ram import GuestRam, ram_ranges
from harness.vm.services import RemoteShell, Services
from harness.vm.snapshot import Snapshot, SnapshotUnusable, open_snapshot
from harness.vm.snapshots import Slot, SnapshotStore
from harness.vm.spec import Accel, MachineSpec

__all__ = [
    "READY_LINE",
    "RESTORED_LINE",
    "Accel",
    "AcceleratorVerdict",
    "Attached",
    "Capture",
    "Complaint",
    "Console",
    "ConsoleEvent",
    "ConsoleLost",
    "Disk",
    "DiskFile",
    "DiskModel",
    "GuestPanicked",
    "GuestRam",
    "GuestSilent",
    "Machine",
    "MachineFailure",
    "MachineSpec",
    "MachineState",
    "Network",
    "NetworkModel",
    "QTest",
    "Qemu",
    "QemuDied",
    "QemuRefused",
    "QemuStuck",
    "Qmp",
    "QmpEvent",
    "QmpFailure",
    "QmpLost",
    "QmpRefused",
    "QmpSilent",
    "RemoteShell",
    "Scene",
    "Services",
    "Slot",
    "Snapshot",
    "SnapshotStore",
    "SnapshotUnusable",
    "choose_accelerator",
    "find_qemu",
    "open_snapshot",
    "process_stat",
    "ram_ranges",
]
