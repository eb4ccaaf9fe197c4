# SPDX-License-Identifier: MIT
"""Where a guest comes from: the kernel's first instruction, or a snapshot of a guest that came from there."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import GuestFailure, HarnessError
from harness.link import pci
from harness.link.start import REWIND_SECONDS_MAX, Start, StartKind, prove, remember
from harness.link.vitals import Vitals
from harness.vm import (
    AcceleratorVerdict,
    Machine,
    MachineSpec,
    QemuRefused,
    Slot,
    Snapshot,
    SnapshotStore,
    SnapshotUnusable,
    find_qemu,
    open_snapshot,
    process_stat,
)

if TYPE_CHECKING:
    from harness.link.guest import Guest

#: How a start from a snapshot can go wrong; a boot is the answer to each.
_FAILED: Final = (SnapshotUnusable, GuestFailure)


class Origin:
    """Starts one guest, the first time and again.

    Args:
        guest: whose machine and link are set up here.
        spec: of its machine.
        verdict: who executes it.
        snapshots: where to look for its snapshot, and to put it; None: it is booted every time.
    """

    def __init__(
        self,
        guest: "Guest",
        spec: MachineSpec,
        verdict: AcceleratorVerdict,
        snapshots: SnapshotStore | None,
    ) -> None:
        self._guest = guest
        self._spec = spec
        self._verdict = verdict
        self._slot: Slot | None = None
        if snapshots is not None:
            self._slot = snapshots.slot(spec, verdict.name, find_qemu())
        self._snapshot: Snapshot | None = None
        self._kept = False  # the snapshot is of a moment that no boot brings back
        self._machine: Machine | None = None
        self._boot_cpu = 0.0
        self._stack = ExitStack()
        self._born = 0.0  # host's monotonic time at which the QEMU was started from the snapshot

    def begin(self, stack: ExitStack) -> Start:
        """Start the guest for the first time.

        Args:
            stack: the machine is entered here.

        Raises:
            GuestFailure: it does not boot either.
        """
        self._stack = stack
        found = None if self._slot is None else self._slot.find()
        if found is not None:
            try:
                return self._from(found, self._enter)
            except _FAILED as error:
                self._give_up(error)
        return self._boot_and_save()

    def again(self) -> Start:
        """Bring the guest back to where it began, whatever state it is in.

        Raises:
            GuestFailure: it does not even boot any more.
        """
        if self._snapshot is not None and self._machine is not None:
            if time.monotonic() - self._born < REWIND_SECONDS_MAX:
                with suppress(*_FAILED):  # what is wrong with this QEMU need not be wrong with another
                    return self._from(self._snapshot, self._machine.restore)
            try:
                return self._from(self._snapshot, self._enter)
            except _FAILED as error:
                if self._kept:
                    raise
                self._give_up(error)
        return self._boot_and_save()

    def keep(self, folder: Path) -> None:
        """Make this moment the one that `again` brings back.

        Raises:
            QmpRefused: a device of this machine cannot save its state.
            OSError: the disk is full, or read-only.
        """
        facts = {"kept": folder.name}
        self._save(folder, facts, self._guest.boot_seconds)
        self._snapshot, self._kept = open_snapshot(folder, facts), True

    def _enter(self, snapshot: Snapshot | None) -> bool:
        """Start a QEMU; False: it is not the one from before."""
        if self._machine is not None:
            self._machine.restart(snapshot)
        else:
            machine = Machine(
                self._spec,
                accelerator=self._verdict,
                snapshot=snapshot,
                timeout_scale=self._guest.options.timeout_scale,
            )
            self._guest.machine = self._machine = self._stack.enter_context(machine)
        return False

    def _from(self, snapshot: Snapshot, put_back: Callable[[Snapshot], bool]) -> Start:
        """Restore by *put_back*, which tells whether it is the same QEMU as before; prove what came of it."""
        guest, memo = self._guest, dict(snapshot.memo)
        guest.vitals = Vitals.recall(memo)
        guest.wait_as(guest.deadlines.measured(float(memo["boot_cpu_seconds"])))
        since = time.monotonic()
        same = put_back(snapshot)
        if not same:
            self._born = since
        guest.attach(int(memo["ticket"]))
        guest.hello = prove(guest, memo, self._born)
        if self._spec.devices:
            pci.put_back(guest, memo["pci"])
        self._snapshot = snapshot
        seconds = time.monotonic() - since
        if same:
            return Start(StartKind.REWOUND, seconds)
        return Start(StartKind.RESTORED, seconds, f"made by a boot of {memo['boot_seconds']:.2f} s")

    def _give_up(self, error: Exception) -> None:
        self._snapshot = None
        if self._slot is not None:
            self._slot.reject(_told(error))

    def _boot_and_save(self) -> Start:
        slot = self._slot
        if slot is None:
            return self._boot()
        booted: list[Start] = []

        def build(folder: Path) -> None:
            booted.append(self._boot())
            self._save(folder, slot.facts, booted[0].seconds)

        try:
            snapshot = slot.make(build)
        except (HarnessError, OSError) as error:
            # That there is no snapshot is no reason to have no guest; that the guest died is.
            start = booted[0] if booted else self._boot()
            self._guest.machine.check()
            return replace(start, why=f"no snapshot: {_told(error)}")
        self._snapshot = snapshot
        return booted[0] if booted else self._from(snapshot, self._enter)  # another process was quicker

    def _boot(self) -> Start:
        since = time.monotonic()
        self._enter(None)
        self._guest.attach(0)
        self._guest.hello = self._guest.first_reply(since)
        start = Start(StartKind.BOOTED, time.monotonic() - since)
        self._boot_cpu = process_stat(self._guest.machine.pid)[1]
        self._guest.wait_as(self._guest.deadlines.measured(self._boot_cpu))
        self._guest.vitals = Vitals.take(self._guest)
        return start

    def _save(self, folder: Path, facts: Mapping[str, str], boot_seconds: float) -> None:
        guest = self._guest
        memo: dict[str, Any] = remember(guest, boot_seconds) | {"boot_cpu_seconds": self._boot_cpu}
        if self._spec.devices:
            memo["pci"] = pci.headers(guest)
        guest.link.hold(memo["ticket"])
        try:
            guest.machine.save(folder, facts=facts, memo=memo)
        finally:
            guest.attach(memo["ticket"])
            guest.hello = guest.link.hello()


def _told(error: Exception) -> str:
    """One line of an error."""
    if isinstance(error, HarnessError):
        said = error.scene.qemu[-1:] if isinstance(error, QemuRefused) else ()
        return ": ".join(part for part in (error.summary, error.observed, *said) if part)
    return str(error)
