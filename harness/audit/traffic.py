# SPDX-License-Identifier: MIT
"""Work for drivers, with every byte checked: what goes through a disk or a network card of the machine.

Nothing is needed in the guest but its system calls, and nothing outside of the machine: the other end is the
host's view of the disk, QEMU's user network, or a socket.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.audit.disk_traffic import DiskTraffic, disk
from harness.audit.named import driver_of
from harness.audit.network_traffic import NetworkTraffic, network
from harness.errors import BadInput
from harness.link import Guest
from harness.vm import Disk, DiskModel, Network, NetworkModel
from harness.vm.attached import network_address

__all__ = ["DiskTraffic", "NetworkTraffic", "attachment", "disk", "exercise", "network"]


def attachment(name: str) -> Disk | Network | None:
    """Return the disk or network that a device's name asks for; None: it is some other device.

    Args:
        name: a model: ``nvme``, ``ahci``, ``virtio-blk``, ``e1000e``, ``e1000`` or ``virtio-net``; the name
            QEMU has for a virtio device, with ``-pci`` at its end, means the same.
    """
    plain = name.removesuffix("-pci")
    if plain in list(DiskModel):
        return Disk(DiskModel(plain))
    return Network(NetworkModel(plain)) if plain in list(NetworkModel) else None


def exercise(
    guest: Guest, *, seed: int = 0, meanwhile: Callable[[], object] | None = None
) -> list[DiskTraffic | NetworkTraffic]:
    """Use every disk and every network of the machine that has a driver now.

    Args:
        guest: it runs.
        seed: of the bytes, sizes and places.
        meanwhile: called for each while it is busy: a look at its buffers is only worth something then.

    Raises:
        BadInput: the machine has none, or none of them has a driver.
        TrafficDiffers: what arrived is not what was sent.
        GuestOSError: the kernel reported an error.
    """
    done: list[DiskTraffic | NetworkTraffic] = []
    for index in range(len(guest.options.disks)):
        if driver_of(guest, guest.disk_address(index)):
            done.append(disk(guest, index, seed=seed, meanwhile=meanwhile))
    for index in range(len(guest.options.networks)):
        if driver_of(guest, network_address(index)):
            done.append(network(guest, index, seed=seed, meanwhile=meanwhile))
    if not done:
        raise BadInput(
            "there is nothing to exercise: no disk and no network of this machine has a driver",
            hint="--device nvme, ahci, virtio-blk, e1000e, e1000 or virtio-net gives the machine one; "
            "anything else needs an exercise of its own",
        )
    return done
