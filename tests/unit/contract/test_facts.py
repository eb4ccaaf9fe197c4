# SPDX-License-Identifier: MIT
"""What a machine's specification tells a check: an IOMMU counts where a kernel uses it for a device."""

from types import SimpleNamespace

import pytest

from harness.contract.facts import MachineFacts
from harness.machines import MACHINES

COPIER = "edu,dma_mask=0xffffffff"


def facts(devices: tuple[str, ...], cmdline: tuple[str, ...] = ()) -> MachineFacts:
    spec = SimpleNamespace(memory_mib=512, cpus=1, devices=devices, cmdline=cmdline)
    return MachineFacts.of(SimpleNamespace(spec=spec, ram=SimpleNamespace(ranges=((0, 512 << 20),))))


@pytest.mark.parametrize("name", MACHINES)
def test_the_named_machines_with_one(name: str) -> None:
    guest = MACHINES[name].guest()
    assert facts(guest.devices, guest.cmdline).iommu is name.endswith("-iommu")


@pytest.mark.parametrize(
    ("devices", "cmdline"),
    [
        ((COPIER,), ("intel_iommu=on",)),
        (("intel-iommu", COPIER), ()),
        (("intel-iommu",), ("intel_iommu=on",)),
        (("virtio-iommu-pci",), ()),
        (("intel-iommu-of-another-kind", COPIER), ("intel_iommu=on",)),
    ],
    ids=["no unit", "unused", "nothing behind it", "nothing behind the other", "another name"],
)
def test_a_machine_without_one(devices: tuple[str, ...], cmdline: tuple[str, ...]) -> None:
    assert not facts(devices, cmdline).iommu
