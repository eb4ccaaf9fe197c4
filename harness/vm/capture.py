# SPDX-License-Identifier: MIT
"""The state of a machine's devices and CPUs, without its RAM: out of QEMU, and back into it.

Two forms. A *capture* is a migration stream: the only thing outside of the guest that tells each CPU's PAT
and MTRRs (target/i386/machine.c: vmstate_x86_cpu); neither the monitor nor the debug stub knows them. A
*saved state* is an internal snapshot in a qcow2 image: the only thing that a QEMU which has already run
takes back.

Both leave RAM out, because it is shared with a file (``x-ignore-shared``). That capability would keep RAM out
of every other migration and snapshot too, without a word: so it is switched here, for as long as one of these
functions runs, and nowhere else.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from harness.vm.errors import QmpRefused
from harness.vm.qemu import STATE_NODE, STATE_SET
from harness.vm.qmp import Qmp, Session
from harness.vm.stub import memory_file

#: A capture takes some 5 ms, a saved state 10; this is for hosts under heavy load.
CAPTURE_SECONDS: Final = 20.0
_FD_NAME: Final = "iobmd-state"
#: Between two looks at a migration or a job that is finishing; each look is a round trip of its own already.
_BREATH_SECONDS: Final = 0.001
#: A machine that was started from a state has that one open all its life, and can save another one.
_SAVING_NODE, _SAVING_FILE, _SAVING_SET = "saving", "saving-file", STATE_SET + 1
_TAG: Final = "clean"
_JOB: Final = "iobmd"
_HINT: Final = (
    "the model of the device that QEMU names cannot save its state (nvme's cannot): leave it out, or plug "
    "it in when the guest runs (Guest.plug)"
)


@dataclass(frozen=True)
class Capture:
    """What is known of a stopped machine's CPUs.

    Attributes:
        stream: a migration stream, without RAM.
        registers: ``""`` where the stream is of this moment; else the monitor's ``info registers -a`` of this
            moment: it has the control registers and EFER, and neither PAT nor MTRRs.
        why: why the stream is an earlier one, as a sentence.
    """

    stream: bytes
    registers: str = ""
    why: str = ""


class Captures:
    """The captures of one QEMU. Where it refuses one, the one before it and the monitor stand in.

    Args:
        qmp: its protocol.
    """

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._whole = b""

    def forget(self) -> None:
        """The machine was put back: what was captured is of another guest."""
        self._whole = b""

    def whole(self) -> bytes:
        """Capture a stopped machine; see `capture_device_state`."""
        self._whole = capture_device_state(self._qmp)
        return self._whole

    def now(self) -> Capture:
        """Tell what there is to be told of a stopped machine.

        Raises:
            QmpRefused: a device cannot be captured, and nothing was before it came.
            QmpSilent: QEMU did not finish in time.
        """
        try:
            return Capture(self.whole())
        except QmpRefused as refused:
            if not self._whole:
                raise
            told = self._qmp.execute("human-monitor-command", {"command-line": "info registers -a"})
            why = (
                "IA32_PAT and MTRRs are those of the last capture that QEMU made; CR0, CR3, CR4 and EFER are "
                f"of this moment. It makes none now: {refused.observed}"
            )
            return Capture(self._whole, str(told), why)


def capture_device_state(qmp: Qmp) -> bytes:
    """Lets a stopped machine write its state into a memfd.

    Afterwards the machine is in QEMU's ``postmigrate`` state: it can go on (``cont``), but not be captured
    again before that.

    Args:
        qmp: the machine's protocol.

    Returns:
        The migration stream, without RAM.

    Raises:
        QmpRefused: a device of this machine cannot be migrated, or the migration failed.
        QmpSilent: it did not finish in time.
    """
    with memory_file("iobmd-capture") as fd:

        async def transaction(session: Session) -> None:
            async with _without_ram(session):
                session.send_fd(fd)
                await session.execute("getfd", {"fdname": _FD_NAME})
                await _start(session)
                await _finished(session)

        qmp.transact("device state capture", transaction, CAPTURE_SECONDS * qmp.scale)
        return os.pread(fd, os.fstat(fd).st_size, 0)


def save_state(qmp: Qmp) -> bytes:
    """Let a stopped machine save its state; it can go on afterwards.

    Args:
        qmp: the machine's protocol.

    Returns:
        A qcow2 image for `load_state`, some 850 KiB.

    Raises:
        QmpRefused: a device of this machine cannot save its state; QEMU names it.
        QmpSilent: it did not finish in time.
    """
    with memory_file("iobmd-saving") as fd:

        async def transaction(session: Session) -> None:
            async with _image(session, fd), _without_ram(session):
                await _run(session, "snapshot-save", _snapshot(_SAVING_NODE))

        qmp.transact("saving the state", transaction, CAPTURE_SECONDS * qmp.scale)
        return os.pread(fd, os.fstat(fd).st_size, 0)


def load_state(qmp: Qmp) -> None:
    """Put a stopped machine back to the state in the image it was started with.

    RAM has to be back already, as devices look into it. The machine stays stopped. Whatever TCG translated
    before is dropped (softmmu: cpu_common_post_load).

    Args:
        qmp: the machine's protocol; the machine has `harness.vm.qemu.Wires.state`.

    Raises:
        QmpRefused: the state does not fit this machine.
        QmpSilent: it did not finish in time.
    """

    async def transaction(session: Session) -> None:
        async with _without_ram(session):
            await _run(session, "snapshot-load", _snapshot(STATE_NODE))

    qmp.transact("loading the state", transaction, CAPTURE_SECONDS * qmp.scale)


def _snapshot(node: str) -> dict[str, object]:
    return {"job-id": _JOB, "tag": _TAG, "vmstate": node, "devices": [node]}


@asynccontextmanager
async def _without_ram(session: Session) -> AsyncIterator[None]:
    await _capability(session, on=True)
    try:
        yield
    finally:
        await _capability(session, on=False)


async def _capability(session: Session, *, on: bool) -> None:
    wanted = [{"capability": "x-ignore-shared", "state": on}]
    await session.execute("migrate-set-capabilities", {"capabilities": wanted})


@asynccontextmanager
async def _image(session: Session, fd: int) -> AsyncIterator[None]:
    """An empty image in the memfd, for as long as the block runs; no device of the guest is behind it."""
    session.send_fd(fd)
    await session.execute("add-fd", {"fdset-id": _SAVING_SET})
    file = {
        "driver": "file",
        "node-name": _SAVING_FILE,
        "filename": f"/dev/fdset/{_SAVING_SET}",
        "locking": "off",
    }
    await session.execute("blockdev-add", file)
    # Its size is that of a disk for the guest: none.  States lie behind it.
    empty = {"driver": "qcow2", "file": _SAVING_FILE, "size": 0}
    await _run(session, "blockdev-create", {"job-id": _JOB, "options": empty})
    image = {"driver": "qcow2", "node-name": _SAVING_NODE, "file": _SAVING_FILE}
    await session.execute("blockdev-add", image)
    try:
        yield
    finally:
        for node in (_SAVING_NODE, _SAVING_FILE):
            await session.execute("blockdev-del", {"node-name": node})
        await session.execute("remove-fd", {"fdset-id": _SAVING_SET})


async def _run(session: Session, command: str, arguments: Mapping[str, object]) -> None:
    """A command that is a job: start it, wait for its end, take its error."""
    await session.execute(command, arguments)
    while True:
        jobs: list[dict[str, Any]] = await session.execute("query-jobs")
        mine = next(job for job in jobs if job["id"] == _JOB)
        if mine["status"] == "concluded":
            break
        await asyncio.sleep(_BREATH_SECONDS)
    await session.execute("job-dismiss", {"id": _JOB})
    if mine.get("error"):
        raise QmpRefused(
            f"QEMU could not carry out {command!r}", command=command, observed=str(mine["error"]), hint=_HINT
        )


async def _start(session: Session) -> None:
    try:
        await session.execute("migrate", {"uri": f"fd:{_FD_NAME}"})
    except QmpRefused as err:
        await session.execute("closefd", {"fdname": _FD_NAME})
        err.hint = _HINT
        raise


async def _finished(session: Session) -> None:
    while True:
        told: dict[str, Any] = await session.execute("query-migrate")
        status = told.get("status")
        if status in ("failed", "cancelled"):
            raise QmpRefused(
                "the machine's state cannot be captured",
                command="migrate",
                observed=str(told.get("error-desc", status)),
                hint="a device that blocks migration is the usual reason",
            )
        if status == "completed":
            break
        await asyncio.sleep(_BREATH_SECONDS)
    # "completed" is announced by the migration thread just before it sets the run state; a "cont" in between
    # would be undone by it.
    while (await session.execute("query-status"))["status"] != "postmigrate":
        await asyncio.sleep(_BREATH_SECONDS)
