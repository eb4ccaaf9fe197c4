# SPDX-License-Identifier: MIT
"""What can end an audit before its time, beside the guest's own failures."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import FailureKind, HarnessError
from harness.link import GuestOSError


class DriverNotLoaded(HarnessError):
    """The kernel refused a driver, or its init code returned an error.

    Attributes:
        errno: the positive errno value.
    """

    kind = FailureKind.REFUSED

    def __init__(self, name: str, error: GuestOSError, log: Sequence[str]) -> None:
        super().__init__(
            f"{name} could not be loaded",
            tried=f"insmod {name}",
            observed=str(error.observed),
            hint="the kernel's last words are below; ENODEV and ENOENT often mean: give the machine a device "
            "with --device",
            evidence=log,
        )
        self.errno = error.errno


class DriverNotUnloaded(HarnessError):
    """A driver was still in use at the end; what unloading it would show was not seen.

    Attributes:
        errno: the positive errno value.
    """

    kind = FailureKind.REFUSED

    def __init__(self, name: str, error: GuestOSError) -> None:
        super().__init__(
            f"{name} could not be unloaded",
            tried=f"rmmod {name}",
            observed=str(error.observed),
            hint="the exercise has to end what it began: unmount, close, stop what runs in the background; "
            "a module without module_exit() can never be unloaded",
        )
        self.errno = error.errno


class ExerciseFailed(HarnessError):
    """The exercise itself failed; the driver may or may not be to blame."""

    kind = FailureKind.NOT_DONE
