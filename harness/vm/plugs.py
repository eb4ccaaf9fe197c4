# SPDX-License-Identifier: MIT
"""Devices that come and go while the guest runs."""

from typing import Any, Final

from harness.errors import BadInput
from harness.vm.errors import QmpRefused, QmpSilent
from harness.vm.qmp import Qmp
from harness.vm.spec import MachineSpec

#: The guest's kernel has to let go of a device first (ACPI's eject method); its driver may be at work.
UNPLUG_SECONDS: Final = 30.0


class Plugs:
    """What was plugged into one QEMU, and the places for it.

    Args:
        qmp: its protocol.
        spec: its machine.
    """

    def __init__(self, qmp: Qmp, spec: MachineSpec) -> None:
        self._qmp = qmp
        self._places: dict[str, str] = dict.fromkeys(spec.places, "")
        self._count = 0

    def __bool__(self) -> bool:
        return any(self._places.values())

    def add(self, device: str) -> str:
        """Plug a device in; that the guest has seen it is not waited for.

        Args:
            device: what follows ``-device``, without ``id`` and ``bus``.

        Returns:
            Its id.

        Raises:
            BadInput: there is no free place for it.
            QmpRefused: QEMU says what is wrong with it.
        """
        place = next((name for name, taken in self._places.items() if not taken), None)
        if place is None:
            raise BadInput(
                f"there is no free slot for {device!r}",
                observed=f"{len(self._places)} slots, all taken" if self._places else "the machine has none",
                hint="ask for one when the machine is made: GuestOptions(slots=1), MachineSpec(slots=1)",
            )
        self._count += 1
        name = f"plugged{self._count}"
        # The monitor's command takes what -device takes; QMP's wants the type of every property known.
        line = f"device_add {device},id={name},bus={_bus(place)}"
        answer = str(self._qmp.execute("human-monitor-command", {"command-line": line})).strip()
        if answer:
            raise QmpRefused(
                f"QEMU did not plug {device!r} in",
                command=line,
                observed=answer.removeprefix("Error: "),
                hint="device takes what follows -device; qemu-system-x86_64 -device help lists models",
            )
        self._places[place] = name
        return name

    def remove(self, name: str) -> None:
        """Have the guest let go of a device, and take it away.

        Raises:
            BadInput: no such device is plugged in.
            QmpRefused: QEMU cannot take it away.
            QmpSilent: the guest did not let go of it in time.
        """
        place = next((place for place, taken in self._places.items() if taken == name), None)
        if place is None or not name:
            known = ", ".join(filter(None, self._places.values())) or "none"
            raise BadInput(f"no device {name!r} is plugged in", observed=f"plugged in: {known}")
        before = self._qmp.event_count
        self._qmp.execute("device_del", id=name)
        while True:
            event = self._wait(name, before)
            if event.data.get("device") == name:
                break
            before = event.number
        self._places[place] = ""

    def _wait(self, name: str, after: int) -> Any:
        try:
            return self._qmp.wait_event(
                "DEVICE_DELETED", timeout=UNPLUG_SECONDS * self._qmp.scale, after=after
            )
        except QmpSilent as silent:
            silent.hint = f"the guest's kernel keeps {name}: unbind or unload its driver first"
            raise


def _bus(place: str) -> str:
    """Place names are buses; on the older chipset all of them are the one bus, whose slots are many."""
    return place.partition(" ")[0]
