# SPDX-License-Identifier: MIT
"""Machines by name: each differs from the usual one in what decides how memory is mapped, typed or reached.

A name stands for the same machine in every door: ``--machine`` of ``iobmd`` and of pytest takes one, several
with commas between, or ``all``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from harness.errors import BadInput
from harness.images import Kernel
from harness.images.modules import ModuleTree
from harness.link import GuestOptions

ALL: Final = "all"
"""In place of a name: every machine that the kernel at hand can run on."""


@dataclass(frozen=True)
class NamedMachine:
    """A machine that can be asked for by name.

    Attributes:
        name: letters, digits and dashes; part of tests' ids.
        about: what it shows that the usual machine does not, in one line.
        memory_mib: guest RAM in MiB.
        cpus: virtual CPUs.
        chipset: QEMU machine type.
        cpu: QEMU CPU model with its flags.
        cmdline: further words for the kernel's command line.
        devices: QEMU ``-device`` values, before those somebody adds: an IOMMU comes before what is behind it.
        drivers: modules without which the kernel can make nothing of this machine.
    """

    name: str
    about: str
    memory_mib: int = 512
    cpus: int = 1
    chipset: str = "q35"
    cpu: str = "max"
    cmdline: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()

    def lacks(self, kernel: Kernel) -> str:
        """Return what a kernel would have to have for this machine, as a sentence; ``""`` for nothing."""
        tree = ModuleTree(kernel.modules)
        missing = [name for name in self.drivers if name not in tree.builtin and tree.find(name) is None]
        return f"Linux {kernel.release} has no {', '.join(missing)}" if missing else ""

    def guest(self) -> GuestOptions:
        """Return it as what a guest is booted with."""
        return GuestOptions(
            memory_mib=self.memory_mib,
            cpus=self.cpus,
            machine=self.chipset,
            cpu=self.cpu,
            cmdline=self.cmdline,
            devices=self.devices,
        )

    def describe(self) -> str:
        """Return what it is made of, in one line."""
        cpus = "1 CPU" if self.cpus == 1 else f"{self.cpus} CPUs"
        size = f"{self.memory_mib // 1024} GiB" if self.memory_mib % 1024 == 0 else f"{self.memory_mib} MiB"
        return ", ".join([self.chipset, self.cpu, cpus, size, *self.devices, *self.cmdline])


# QEMU's teaching device is behind either IOMMU and copies what it is told to: the proof that an I/O address
# leads where it should.  By itself it would cut addresses to 28 bits (hw/misc/edu.c).
_COPIER: Final = "edu,dma_mask=0xffffffffffffffff"

USUAL: Final = NamedMachine("usual", "what every test gets that asks for nothing; page tables of 5 levels")

MACHINES: Final = MappingProxyType(
    {
        one.name: one
        for one in (
            USUAL,
            NamedMachine("two-cpus", "each CPU has registers, a PAT and MTRRs of its own", cpus=2),
            NamedMachine("pc", "the older chipset: another memory map, no PCI Express", chipset="pc"),
            NamedMachine("four-levels", "page tables of 4 levels: a CPU without LA57", cpu="max,-la57"),
            NamedMachine(
                "no-write-through",
                "a PAT of four slots, without WT; page tables of 4 levels, a second root for users",
                # An Intel processor of family 15, model 6: Linux doubts the upper four slots of those and
                # programs the lower four twice (arch/x86/mm/pat/memtype.c: pat_bp_init). It would for family
                # 6 up to model 13 as well, but takes their PAT away altogether before that
                # (arch/x86/kernel/cpu/intel.c: early_init_intel). Meltdown is among this one's bugs, so
                # page-table isolation is on.
                cpu="kvm64",
            ),
            NamedMachine(
                "no-pat",
                "a kernel that leaves the PAT as it is after reset: WT, UC- and UC, but no WC",
                cmdline=("nopat",),
            ),
            NamedMachine("2-gib", "RAM on both sides of 1 GiB, none above 4 GiB", memory_mib=2048),
            # QEMU puts 2 GiB of them below 4 GiB and the rest above (hw/i386/pc_q35.c:pc_q35_init).
            NamedMachine("7-gib", "RAM on both sides of 4 and of 8 GiB", memory_mib=7168),
            NamedMachine(
                "intel-iommu",
                "VT-d: devices see I/O addresses, which its tables translate",
                # Interrupts stay out of it: the kernel would need a split irqchip for nothing.
                devices=("intel-iommu,intremap=off", _COPIER),
                cmdline=("intel_iommu=on",),  # Debian's kernels have the driver and leave it off
            ),
            NamedMachine(
                "virtio-iommu",
                "devices see I/O addresses, which the driver asks QEMU to map: no tables in RAM",
                devices=("virtio-iommu-pci", _COPIER),
                drivers=("virtio_iommu",),
            ),
        )
    }
)
"""Every machine, by its name."""


def find_machine(name: str) -> NamedMachine:
    """Return the machine of this name.

    Raises:
        BadInput: there is none; the error names the nearest.
    """
    if name in MACHINES:
        return MACHINES[name]
    near = get_close_matches(name, MACHINES, n=1)
    hint = f"did you mean {near[0]}?" if near else "iobmd machines says what each of them is"
    if name == ALL or "," in name:
        hint = "name one of them: only iobmd check and pytest take several"
    raise BadInput(f"there is no machine {name!r}", observed=f"known: {', '.join(MACHINES)}", hint=hint)


def machines_named(asked: str) -> tuple[NamedMachine, ...]:
    """Return the machines that were asked for: one, several with commas between, or ``all``.

    Raises:
        BadInput: there is no such machine, or no name at all.
    """
    if asked == ALL:
        return tuple(MACHINES.values())
    names = dict.fromkeys(name.strip() for name in asked.split(",") if name.strip())
    if not names:
        raise BadInput("--machine is empty", hint=f"--machine {USUAL.name}")
    return tuple(find_machine(name) for name in names)


def fitting(
    wanted: Iterable[NamedMachine], kernel: Kernel, *, asked: str
) -> tuple[tuple[NamedMachine, ...], tuple[str, ...]]:
    """Return those of some machines that a kernel can run on, and for each of the others why not.

    Args:
        wanted: which machines.
        kernel: which kernel.
        asked: as typed; with ``all`` a machine may be left out.

    Raises:
        BadInput: a machine that was asked for by its name cannot be.
    """
    able, left_out = [], []
    for machine in wanted:
        lack = machine.lacks(kernel)
        if lack and asked != ALL:
            raise BadInput(
                f"the machine {machine.name} cannot be had with this kernel",
                observed=lack,
                hint=f"choose another kernel, or --machine {ALL} for those it can have",
            )
        if lack:
            left_out.append(f"{machine.name}: {lack}")
        else:
            able.append(machine)
    return tuple(able), tuple(left_out)
