# SPDX-License-Identifier: MIT
"""What machine is wanted, as a value that refuses nonsense."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from harness.errors import BadInput
from harness.vm.attached import DISKS_MAX, NETWORKS_MAX, Disk, Network

#: A Debian cloud kernel with a 1 MiB initramfs dies of "deadlocked on memory" at 64 MiB and boots at 96 MiB;
#: the rest is room for an initramfs with modules and for the buffers under test.
MEMORY_MIB_MIN: Final = 128
#: More needs a guest BIOS with interrupt remapping; QEMU 7.2's pc machine stops here as well.
CPUS_MAX: Final = 255
#: arch/x86 COMMAND_LINE_SIZE, with the final NUL; the kernel cuts what is longer without a word.
CMDLINE_MAX: Final = 2047
#: One virtio-serial controller has 31 ports and keeps port 0 for consoles.
PORTS_MAX: Final = 30

#: Each is a bridge with a bus of its own; QEMU's PCI Express root bus has 32 places, some taken.
SLOTS_MAX: Final = 16

_MACHINES: Final = ("q35", "pc")
_PORT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CPU_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]*")


class Accel(Enum):
    """Who executes the guest's instructions."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class MachineSpec:
    """A machine as it should be.

    Attributes:
        kernel: an uncompressed x86-64 ELF with a PVH entry, or a bzImage.
        initrd: the initramfs.
        cmdline: kernel parameters; joined by blanks. ``panic=-1`` makes a panic end QEMU at once.
        memory_mib: guest RAM in MiB.
        cpus: number of virtual CPUs.
        machine: ``"q35"`` or ``"pc"``.
        cpu: QEMU CPU model with its flags, for example ``"max"`` or ``"kvm64"``.
        accel: forced or automatic.
        ports: names of virtio-serial ports; each becomes a socket on the host side.
        devices: further ``-device`` values, for example ``"edu,dma_mask=0xffffffff"``.
        slots: how many devices can be plugged in while the guest runs; see `harness.vm.Machine.plug`.
        disks: each an empty one of its own.
        networks: each a separate one that leads nowhere.

    Raises:
        BadInput: a value is outside of what a machine can have.
    """

    kernel: Path
    initrd: Path
    cmdline: tuple[str, ...] = ()
    memory_mib: int = 512
    cpus: int = 1
    machine: str = "q35"
    cpu: str = "max"
    accel: Accel = Accel.AUTO
    ports: tuple[str, ...] = ("org.iobmd.link",)
    devices: tuple[str, ...] = ()
    slots: int = 0
    disks: tuple[Disk, ...] = ()
    networks: tuple[Network, ...] = ()

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_names()
        self._check_cmdline()
        self._check_ports()
        for device in self.devices:
            if not device or device.startswith("-") or "\n" in device:
                raise BadInput(
                    f"{device!r} is no -device value",
                    hint="give what follows -device on QEMU's command line, for example 'edu'",
                )

    @property
    def translates(self) -> bool:
        """Whether an IOMMU is between devices and RAM; what it has translated QEMU keeps beside any state."""
        return any("iommu" in device.partition(",")[0] for device in self.devices)

    @property
    def places(self) -> tuple[str, ...]:
        """Where devices can be plugged in: buses of root ports, or slots of the older chipset's one bus."""
        if self.machine == "pc":
            return tuple(f"pci.0 slot {number}" for number in range(self.slots))
        return tuple(f"slot{number}" for number in range(self.slots))

    def check_files(self) -> None:
        """Looks at the kernel and the initramfs.

        Raises:
            BadInput: a file is missing, empty, or the kernel is neither an ELF nor a bzImage.
        """
        for role, path in (("kernel", self.kernel), ("initramfs", self.initrd)):
            try:
                size = path.stat().st_size if path.is_file() else -1
            except OSError as err:
                raise BadInput(f"cannot look at the {role} {path}", observed=str(err)) from err
            if size <= 0:
                state = "is empty" if size == 0 else "is not a file"
                raise BadInput(f"the {role} {path} {state}", hint=f"name an existing {role}")
        if not _is_kernel(self.kernel):
            raise BadInput(
                f"{self.kernel} is no x86 kernel",
                observed="neither an ELF file nor a bzImage (no 'HdrS' at byte 0x202)",
                hint="give a vmlinuz, or the uncompressed vmlinux with a PVH entry",
            )

    def _check_sizes(self) -> None:
        if self.memory_mib < MEMORY_MIB_MIN:
            raise BadInput(
                f"{self.memory_mib} MiB of guest RAM are too few",
                observed=f"the least is {MEMORY_MIB_MIN} MiB: with less, a kernel dies while it starts",
                hint=f"ask for {MEMORY_MIB_MIN} MiB or more; 512 is usual",
            )
        if not 1 <= self.cpus <= CPUS_MAX:
            raise BadInput(
                f"a machine cannot have {self.cpus} virtual CPUs",
                observed=f"between 1 and {CPUS_MAX} are possible",
                hint="1 is quickest; 2 or 4 show races",
            )
        if not 0 <= self.slots <= SLOTS_MAX:
            raise BadInput(f"a machine cannot have {self.slots} slots", observed=f"at most {SLOTS_MAX}")
        for what, number, most in (
            ("disks", len(self.disks), DISKS_MAX),
            ("networks", len(self.networks), NETWORKS_MAX),
        ):
            if number > most:
                raise BadInput(f"{number} {what}", observed=f"there are places for {most}")

    def _check_names(self) -> None:
        if self.machine not in _MACHINES:
            extra = " (microvm reports a PAT it does not have)" if self.machine.startswith("microvm") else ""
            raise BadInput(
                f"unknown machine {self.machine!r}{extra}",
                observed="known: " + ", ".join(_MACHINES),
                hint="use q35, or pc for the older chipset",
            )
        if not _CPU_MODEL.fullmatch(self.cpu):
            raise BadInput(
                f"{self.cpu!r} is no CPU model",
                hint="'max' is everything the accelerator offers; see qemu-system-x86_64 -cpu help",
            )

    def _check_cmdline(self) -> None:
        text = " ".join(self.cmdline)
        if any(ord(char) < 0x20 for char in text):
            raise BadInput("a kernel parameter holds a control character", observed=repr(text))
        if len(text.encode()) > CMDLINE_MAX:
            raise BadInput(
                f"the kernel command line has {len(text.encode())} bytes",
                observed=f"the kernel silently cuts it after {CMDLINE_MAX}",
                hint="drop parameters, or set them as module parameters instead",
            )

    def _check_ports(self) -> None:
        if len(self.ports) > PORTS_MAX:
            raise BadInput(
                f"{len(self.ports)} virtio-serial ports", observed=f"one controller has {PORTS_MAX}"
            )
        if len(set(self.ports)) != len(self.ports):
            raise BadInput("two virtio-serial ports share a name", observed=", ".join(self.ports))
        for name in self.ports:
            if not _PORT_NAME.fullmatch(name):
                raise BadInput(
                    f"{name!r} cannot name a virtio-serial port",
                    hint="letters, digits, '.', '_' and '-', 63 at most, for example org.iobmd.link",
                )


def _is_kernel(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(0x206)
    # Documentation/arch/x86/boot.rst: the setup header's magic is at 0x202.
    return head.startswith(b"\x7fELF") or head[0x202:0x206] == b"HdrS"
