# SPDX-License-Identifier: MIT
"""How a guest came to be as it is, and the proof that a restored one is what it should be."""

import os
import time
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from harness.link.errors import NotRestored
from harness.link.syscalls import Nr, Out
from harness.vm import RESTORED_LINE

if TYPE_CHECKING:
    from harness.link.guest import Guest
    from harness.link.link import Hello

_CLOCK_MONOTONIC: Final = 1
#: How far the guest's time of day may be off: a busy host holds a reply back that long.
_CLOCK_SLACK_NS: Final = 5 * 10**9
#: How long one QEMU may go on being put back. TCG's time-stamp counter never runs backwards within a process
#: (softmmu/cpu-timers.c: cpu_get_ticks_locked, whose cpu_ticks_prev no saved state holds), so a guest's
#: monotonic clock is ahead of its snapshot by as long as the lives before lasted. A leap of 20 s would be a
#: lockup to the kernel's watchdog.
REWIND_SECONDS_MAX: Final = 8.0


class StartKind(Enum):
    """Where a guest's state came from."""

    #: From the kernel's first instruction.
    BOOTED = "booted"
    #: A new QEMU, from the snapshot.
    RESTORED = "restored from a snapshot"
    #: The QEMU that ran before, put back to the snapshot.
    REWOUND = "put back to the snapshot"


@dataclass(frozen=True)
class Start:
    """One start of a guest.

    Attributes:
        how: where its state came from.
        seconds: from QEMU's start (for REWOUND: from the request) until the agent had answered; after a
            snapshot also until it was proved.
        why: for a boot, why no snapshot was used, ``""`` when none was asked for; for a new QEMU, what the
            snapshot was made by.
    """

    how: StartKind
    seconds: float
    why: str = ""

    def __str__(self) -> str:
        figure = f"{self.seconds * 1000:.0f} ms" if self.seconds < 1 else f"{self.seconds:.2f} s"
        return f"{self.how.value} in {figure}" + (f" ({self.why})" if self.why else "")


def remember(guest: "Guest", boot_seconds: float) -> dict[str, Any]:
    """What a snapshot of this guest has to remember, for `prove`; and for people, how long it booted."""
    clock = guest.syscall(Nr.CLOCK_GETTIME, _CLOCK_MONOTONIC, Out(16), what="read the clock").outputs[0]
    seconds, nanoseconds = (int.from_bytes(clock[at : at + 8], "little") for at in (0, 8))
    return {
        "boot_nonce": guest.hello.boot_nonce.hex(),
        "monotonic_ns": seconds * 10**9 + nanoseconds,
        "ticket": int.from_bytes(os.urandom(8), "little") | 1,
        "boot_seconds": boot_seconds,
        **guest.vitals.memo(),
    }


def prove(guest: "Guest", memo: dict[str, Any], since: float) -> "Hello":
    """Make sure that the guest is the remembered one, alive on every channel, and in the present.

    Args:
        guest: its machine was just restored.
        memo: from `remember`.
        since: host's monotonic time in seconds at which its QEMU started the guest.

    Raises:
        NotRestored: it is another guest, or its clock is not the snapshot's.
        RequestTimedOut: the agent does not answer.
        GuestSilent: the console does not.
    """
    console, seconds = guest.machine.console, guest.deadlines.proof
    mark = console.mark()
    hello = guest.link.hello(seconds)
    nonce = os.urandom(16)
    resumed = guest.link.resume(nonce, time.time_ns(), seconds)
    passed = int((time.monotonic() - since) * 10**9)
    earliest = int(memo["monotonic_ns"])
    doubts = {
        "its boot nonce is not that of the snapshot": resumed.boot_nonce.hex() != memo["boot_nonce"],
        "it gave another restore nonce back": resumed.restore_nonce != nonce,
        f"it could not be set up: {os.strerror(resumed.error)}": resumed.error != 0,
        "its monotonic clock does not go on from the snapshot": not (
            earliest <= resumed.monotonic_ns <= earliest + passed + _CLOCK_SLACK_NS
        ),
        "its time of day is not the host's": abs(resumed.realtime_ns - time.time_ns()) > _CLOCK_SLACK_NS,
    }
    doubt = next((text for text, found in doubts.items() if found), "")
    if doubt:
        raise NotRestored("the guest is not the one the snapshot was made of", observed=doubt)
    console.wait_for(f"^{RESTORED_LINE} {nonce.hex()}", seconds, since=mark)
    return replace(hello, restore_nonce=nonce)
