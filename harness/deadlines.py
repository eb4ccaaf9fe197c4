# SPDX-License-Identifier: MIT
"""How long to wait for what: as long as this guest on this host needs, and not much longer.

A deadline that suits a quiet machine with KVM fails good tests on a busy one that emulates, and the other
way round a hang is told minutes late.  What a guest needs is measured by what every guest does: its boot.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from harness.errors import BadInput
from harness.kconfig import options_on

#: Seconds of processor time in which a Debian cloud kernel with one CPU boots under TCG on the host that the
#: constants of `Deadlines` were chosen on; with nothing beside it a clock on the wall shows the same.
REFERENCE_BOOT: Final = 1.3
#: A guest that boots quicker than the reference waits for the same busy host: less than half is never given.
_LEAST: Final = 0.5
#: A boot that took half a minute was held up by something; deadlines of an hour would help nobody.
_MOST: Final = 20.0
#: Others who wait for the same processors make everything longer, up to this much: beyond, it is thrashing.
_CROWD_MOST: Final = 3.0
SCALE_MAX: Final = 1000.0
#: A process that sleeps comes before those that compute: on a host that is merely busy it wakes up sooner.
_STALL_SECONDS: Final = 0.05

# How many times slower a checker makes a kernel, roughly and rather too much: Documentation/dev-tools of the
# kernel's tree gives three for KASAN and five for KCSAN; lockdep's share was seen at boots.
_CHECKERS: Final[Mapping[str, float]] = {
    "CONFIG_KASAN": 4.0,
    "CONFIG_KCSAN": 6.0,
    "CONFIG_KMSAN": 6.0,
    "CONFIG_PROVE_LOCKING": 2.0,
    "CONFIG_DEBUG_PAGEALLOC_ENABLE_DEFAULT": 2.0,
    "CONFIG_DEBUG_KMEMLEAK": 1.5,
    "CONFIG_GCOV_PROFILE_ALL": 2.0,
}
_ACCELERATORS: Final[Mapping[str, float]] = {"kvm": 0.5, "tcg": 1.0}


@dataclass(frozen=True)
class Deadlines:
    """Every wait of one guest, in seconds.

    Attributes:
        slowness: how many times slower than the reference the guest is; see `measured` and `expected`.
        scale: what the user multiplies all of them by (``--timeout-scale``).
        why: where the slowness comes from, for people.

    Raises:
        BadInput: a scale that is no positive number up to 1000.
    """

    slowness: float = 1.0
    scale: float = 1.0
    why: str = "not measured yet"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and 0 < self.scale <= SCALE_MAX):
            raise BadInput(
                f"{self.scale:g} cannot multiply a deadline",
                observed=f"a number above 0 and up to {SCALE_MAX:g} can",
                hint="--timeout-scale 2 waits twice as long for everything",
            )

    @classmethod
    def expected(cls, accelerator: str, config: Path | None = None, *, scale: float = 1.0) -> Self:
        """Return those for a guest that has not booted yet.

        Args:
            accelerator: ``"kvm"`` or ``"tcg"``.
            config: the kernel's configuration; its checkers count.
            scale: see the class.
        """
        checkers = checkers_of(config)
        slowness = _ACCELERATORS.get(accelerator, 1.0) * math.prod(_CHECKERS[name] for name in checkers)
        why = ", ".join((f"expected under {accelerator}", *checkers))
        return cls(slowness, scale, why)

    def measured(self, boot_seconds: float, crowd: float | None = None) -> Self:
        """Return those for a guest whose boot was measured.

        Args:
            boot_seconds: processor time that QEMU spent on it.  A clock on the wall would count what else the
                host did at that moment, and a snapshot would remember that for good.
            crowd: how many processes wait for each processor of this host; found out if None.
        """
        others = crowd_now() if crowd is None else crowd
        crowd = min(max(others, 1.0), _CROWD_MOST)
        slowness = min(max(boot_seconds / REFERENCE_BOOT, _LEAST), _MOST) * crowd
        return replace(
            self, slowness=slowness, why=f"it boots in {boot_seconds:.2f} s; host load {others:.1f}"
        )

    @property
    def boot(self) -> float:
        """From QEMU's start to the agent's first reply: fifty times what the reference needs."""
        return 60.0 * self._guest

    @property
    def operation(self) -> float:
        """One system call that is not known to take long."""
        return 20.0 * self._guest

    @property
    def reply(self) -> float:
        """What the agent answers by itself: ping, hello, hold."""
        return 5.0 * self._guest

    @property
    def proof(self) -> float:
        """Each answer of a guest that was just restored."""
        return 10.0 * self._guest

    @property
    def console(self) -> float:
        """Until the guest's serial port takes what is typed at it."""
        return 5.0 * self._guest

    @property
    def command(self) -> float:
        """One command of QEMU's protocol; that waits for the host, and not for the guest."""
        return 10.0 * self.scale

    @property
    def diagnosis(self) -> float:
        """All probes together that find out what is wrong with a guest."""
        return 2.0 * self.scale

    def __str__(self) -> str:
        return f"boot {self.boot:.0f} s, operation {self.operation:.0f} s ({self.why}; scale {self.scale:g})"

    @property
    def _guest(self) -> float:
        return self.slowness * self.scale


def stalled(since: float, meant: float) -> float:
    """Return how long this host held everything still while this process waited; to be added to a deadline.

    A hypervisor that has no processor for us, or a control group that has used up its quota, holds QEMU still
    as well: that its guest has said nothing in the meantime means nothing.

    Args:
        since: `time.monotonic` before a wait in which nothing came.
        meant: seconds it was to take; short ones, so that a moment in the middle of it shows.

    Returns:
        Seconds beyond those; 0 where a scheduler alone may have been late by as much.
    """
    late = time.monotonic() - since - meant
    return late if late > _STALL_SECONDS else 0.0


def crowd_now() -> float:
    """Return how many processes ran or waited per processor within the last minute (getloadavg(3))."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


def checkers_of(config: Path | None) -> tuple[str, ...]:
    """Return the options of a kernel configuration that make a kernel slow; none when it cannot be read."""
    on = options_on(config) if config is not None else None
    return tuple(name for name in _CHECKERS if name in (on or ()))
