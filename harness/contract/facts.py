# SPDX-License-Identifier: MIT
"""What a check may need to know about the machine it runs on."""

from dataclasses import dataclass
from typing import Self

from harness.vm import Machine

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
"""Bytes of a page: x86-64's base page, the only size this harness' guests use."""


_IOMMU_ON = "intel_iommu=on"
# The unit, and QEMU's teaching device, which is behind it and copies what it is told to.
_BEHIND = ("intel-iommu", "edu")


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
            iommu=_IOMMU_ON in machine.spec.cmdline
            and all(any(device.startswith(name) for device in machine.spec.devices) for name in _BEHIND),
        )
