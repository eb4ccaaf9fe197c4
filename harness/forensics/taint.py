# SPDX-License-Identifier: MIT
"""What the kernel says has happened to it since it booted: its taint flags."""

from enum import IntFlag
from typing import Final


class Taint(IntFlag):
    """The value of /proc/sys/kernel/tainted (include/linux/panic.h, kernel/panic.c:taint_flags)."""

    PROPRIETARY_MODULE = 1 << 0
    FORCED_MODULE = 1 << 1
    CPU_OUT_OF_SPEC = 1 << 2
    FORCED_RMMOD = 1 << 3
    MACHINE_CHECK = 1 << 4
    BAD_PAGE = 1 << 5
    USER = 1 << 6
    DIE = 1 << 7
    OVERRIDDEN_ACPI_TABLE = 1 << 8
    WARN = 1 << 9
    CRAP = 1 << 10
    FIRMWARE_WORKAROUND = 1 << 11
    OOT_MODULE = 1 << 12
    UNSIGNED_MODULE = 1 << 13
    SOFTLOCKUP = 1 << 14
    LIVEPATCH = 1 << 15
    AUX = 1 << 16
    RANDSTRUCT = 1 << 17
    TEST = 1 << 18
    FWCTL = 1 << 19

    @classmethod
    def read(cls, text: bytes | str) -> "Taint":
        """The flags out of the contents of /proc/sys/kernel/tainted.

        Raises:
            ValueError: that is no decimal number.
        """
        return cls(int(text))

    @property
    def names(self) -> tuple[str, ...]:
        """What is set, lowest bit first: ``"WARN (the kernel issued a warning)"``, ``"bit 20"``."""
        return tuple(_name(bit) for bit in range(int(self).bit_length()) if self >> bit & 1)

    @property
    def faults(self) -> "Taint":
        """Only those that say the kernel or a module did wrong, not what was loaded into it."""
        return self & FAULTS


FAULTS: Final = Taint.BAD_PAGE | Taint.DIE | Taint.WARN | Taint.SOFTLOCKUP | Taint.MACHINE_CHECK
"""Flags that a test must not leave behind."""

_MEANING: Final = {
    Taint.PROPRIETARY_MODULE: "a proprietary module was loaded",
    Taint.FORCED_MODULE: "a module was loaded by force",
    Taint.CPU_OUT_OF_SPEC: "the processor is used out of its specification",
    Taint.FORCED_RMMOD: "a module was unloaded by force",
    Taint.MACHINE_CHECK: "the processor reported a machine check",
    Taint.BAD_PAGE: "a page or a slab was found in a bad state",
    Taint.USER: "user space asked for it",
    Taint.DIE: "the kernel died: an oops or a BUG",
    Taint.OVERRIDDEN_ACPI_TABLE: "an ACPI table was overridden",
    Taint.WARN: "the kernel issued a warning",
    Taint.CRAP: "a staging driver was loaded",
    Taint.FIRMWARE_WORKAROUND: "a bug of the firmware is worked around",
    Taint.OOT_MODULE: "a module from outside of the kernel's tree was loaded",
    Taint.UNSIGNED_MODULE: "an unsigned module was loaded",
    Taint.SOFTLOCKUP: "a soft lockup happened",
    Taint.LIVEPATCH: "the kernel was patched while running",
    Taint.AUX: "the distribution's own flag",
    Taint.RANDSTRUCT: "the kernel was built with randomised structures",
    Taint.TEST: "an in-kernel test was run",
    Taint.FWCTL: "a firmware's control interface was used",
}


def taint_diff(before: int, after: int) -> tuple[str, ...]:
    """Names of the flags that appeared between two values; what was set before is no news."""
    return Taint(after & ~before).names


def _name(bit: int) -> str:
    flag = Taint(1 << bit)
    meaning = _MEANING.get(flag)
    return f"{flag.name} ({meaning})" if meaning is not None else f"bit {bit}"
