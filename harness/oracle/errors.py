# SPDX-License-Identifier: MIT
"""What can go wrong while looking at a guest from outside."""

from harness.errors import FailureKind, GuestFailure, HarnessError


class OracleError(GuestFailure):
    """What the machine shows makes no sense, or is a state the oracle cannot judge (exit code 3)."""


class TypesChanged(OracleError):
    """PAT or MTRRs have changed while QEMU could not tell them: earlier views went by the wrong ones."""


class StreamError(OracleError):
    """The device state is not a migration stream whose layout proves itself."""


class NotLongMode(OracleError):
    """A vCPU pages memory, but not in 64-bit mode: its tables have another format."""


class ReservedType(OracleError):
    """IA32_PAT or an MTRR holds a memory type encoding that real processors refuse."""


class Unmapped(OracleError):
    """An address that should be mapped is not.

    Attributes:
        va: the first address that has no translation.
        level: the table level whose entry ended the walk (5..1; 1 is the last one).
    """

    def __init__(self, va: int, level: int, entry: int, *, tried: str = "") -> None:
        super().__init__(
            f"virtual address {va:#018x} is not mapped: the walk ends at level {level}",
            tried=tried,
            observed=f"entry {entry:#x}",
            hint="check that the buffer is alive and its address a kernel one; user addresses need cr3=",
        )
        self.va = va
        self.level = level


class ViewExpired(HarnessError):
    """A view was used after its guest went on running (a mistake of the caller)."""

    kind = FailureKind.BAD_INPUT

    def __init__(self) -> None:
        super().__init__(
            "this view of the guest is no longer valid: the guest runs again",
            hint="use the view only inside `with oracle.frozen() as view:`",
        )
