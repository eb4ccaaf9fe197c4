# SPDX-License-Identifier: MIT
"""The state of a stopped machine's devices and CPUs, by way of QEMU's migration.

The stream is the only thing outside of the guest that tells each CPU's PAT and MTRRs (target/i386/machine.c:
vmstate_x86_cpu); neither the monitor nor the debug stub knows them.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from harness.vm.errors import QmpRefused
from harness.vm.qmp import Qmp, Session

#: A capture takes some 5 ms; this is for hosts under heavy load.
CAPTURE_SECONDS: Final = 20.0
_FD_NAME: Final = "iobmd-state"
#: Between two looks at a migration that is finishing; each look is a round trip of its own already.
_BREATH_SECONDS: Final = 0.001


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
    with _memfd() as fd:

        async def transaction(session: Session) -> None:
            # While this is on, RAM that is shared with a file stays out of the stream -- and out of every
            # other migration and snapshot too, without a word.  So it is on here, for this moment, and
            # nowhere else.
            await _capability(session, on=True)
            try:
                session.send_fd(fd)
                await session.execute("getfd", {"fdname": _FD_NAME})
                await _start(session)
                await _finished(session)
            finally:
                await _capability(session, on=False)

        qmp.transact("device state capture", transaction, CAPTURE_SECONDS)
        size = os.fstat(fd).st_size
        return os.pread(fd, size, 0)


async def _start(session: Session) -> None:
    try:
        await session.execute("migrate", {"uri": f"fd:{_FD_NAME}"})
    except QmpRefused as err:
        await session.execute("closefd", {"fdname": _FD_NAME})
        err.hint = "leave out the device that QEMU names: its model cannot save its state (nvme cannot)"
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


async def _capability(session: Session, *, on: bool) -> None:
    wanted = [{"capability": "x-ignore-shared", "state": on}]
    await session.execute("migrate-set-capabilities", {"capabilities": wanted})


@contextmanager
def _memfd() -> Iterator[int]:
    fd = os.memfd_create("iobmd-state", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
