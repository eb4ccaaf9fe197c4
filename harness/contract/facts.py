# SPDX-License-Identifier: MIT
"""What a check may need to know about the machine it runs on."""

from dataclasses import dataclass
from typing import Self

from harness.vm import Machine, MachineSpec

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
"""Bytes of a page: x86-64's base page, the only size this harness' guests use."""


# A unit, and the word on the command line that a kernel needs to use it.
_IOMMUS = {"intel-iommu": "intel_iommu=on", "virtio-iommu-pci": ""}
# QEMU's teaching device, which is behind it and copies what it is told to.
_COPIER = "edu"


@dataclass(frozen=True)
class MachineFacts:
    """The machine under judgement.

    Attributes:
        memory_mib: guest RAM in MiB.
        top_of_ram: first guest physical address above all RAM.
        cpus: virtual CPUs.
        iommu: it has a DMA remapping unit that the kernel uses, and a device behind it.
    """

    memory_mib: int
    top_of_ram: int
    cpus: int
    iommu: bool

    @classmethod
    def of(cls, machine: Machine) -> Self:
        """Read them off a running machine."""
        return cls(
            memory_mib=machine.spec.memory_mib,
            top_of_ram=max(start + length for start, length in machine.ram.ranges),
            cpus=machine.spec.cpus,
            iommu=_translates(machine.spec),
        )


def _translates(spec: MachineSpec) -> bool:
    models = {device.partition(",")[0] for device in spec.devices}
    used = any(unit in models and word in ("", *spec.cmdline) for unit, word in _IOMMUS.items())
    return used and _COPIER in models
