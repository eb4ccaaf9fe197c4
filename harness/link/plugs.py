# SPDX-License-Identifier: MIT
"""Devices plugged into a running guest, until its kernel has seen them come, and go."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.errors import GuestFailure
from harness.link.pci import addresses

if TYPE_CHECKING:
    from harness.link.guest import Guest

#: Between two looks at the guest's list of PCI functions; the kernel takes some 20 ms for a new one.
_BREATH_SECONDS: Final = 0.005


class NotPlugged(GuestFailure):
    """QEMU has changed the machine, and the guest's kernel has not followed."""


@dataclass(frozen=True)
class Plugged:
    """A device that was plugged in.

    Attributes:
        name: its id in QEMU.
        device: as it was asked for, ``"nvme,serial=one"``.
        address: where the guest's kernel has it, as sysfs writes it: ``"0000:01:00.0"``.
    """

    name: str
    device: str
    address: str


def plug(guest: "Guest", device: str) -> Plugged:
    """Plug a PCI device in and wait until the guest's kernel lists it; its driver may not be there yet.

    Args:
        guest: it has a free slot (``GuestOptions.slots``).
        device: what follows QEMU's ``-device``, without ``id`` and ``bus``.

    Raises:
        BadInput: the guest has no free slot.
        QmpRefused: QEMU does not take the device.
        NotPlugged: the kernel did not list it in time.
    """
    before = addresses(guest)
    name = guest.machine.plug(device)
    new = _until(guest, lambda: addresses(guest) - before, f"list {device!r}, which was plugged in")
    return Plugged(name, device, min(new))  # function 0 is the one that was waited for


def unplug(guest: "Guest", plugged: Plugged) -> None:
    """Take a device away and wait until the guest's kernel lists it no more.

    Raises:
        BadInput: it is not plugged in.
        QmpSilent: the kernel does not let go of it.
        NotPlugged: the kernel lists it still.
    """
    guest.machine.unplug(plugged.name)
    _until(guest, lambda: plugged.address not in addresses(guest), f"forget {plugged.device!r}")


def _until(guest: "Guest", found: Callable[[], set[str] | bool], what: str) -> set[str]:
    end = time.monotonic() + guest.operation_timeout
    while not (answer := found()):
        if time.monotonic() > end:
            raise NotPlugged(
                f"the guest's kernel did not {what}",
                tried=f"waiting {guest.operation_timeout:g} s",
                observed=f"it lists {', '.join(sorted(addresses(guest)))}",
                evidence=guest.machine.console.tail(20),
            )
        time.sleep(_BREATH_SECONDS)
    return answer if isinstance(answer, set) else set()
