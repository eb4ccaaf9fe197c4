# SPDX-License-Identifier: MIT
"""What can go wrong with SSH into a guest that is alive; a dead one is the machine's own failure."""

from harness.errors import GuestFailure, HarnessError

_TAIL = 20


class SshFailure(GuestFailure):
    """No session could be made, or it broke although the guest lives."""


class HostKeyMismatch(SshFailure):
    """Whoever answers on the port lacks the key that was put into the guest; nothing was said to it."""


class ClientKeyRefused(SshFailure):
    """The guest does not accept this side's key."""


class CommandFailed(HarnessError):
    """A command that was to succeed did not.

    Attributes:
        status: its exit status; 128 and more: the signal that ended it, above 128.
        stdout: what it wrote, bytes.
        stderr: what it complained about, bytes.
    """

    def __init__(self, command: str, status: int, stdout: bytes, stderr: bytes) -> None:
        super().__init__(
            f"the command failed in the guest with status {status}",
            tried=command,
            evidence=(stderr or stdout).decode(errors="replace").splitlines()[-_TAIL:],
        )
        self.status, self.stdout, self.stderr = status, stdout, stderr


class CommandTimedOut(GuestFailure):
    """A command had not ended at its deadline; its shell was sent SIGKILL.

    Attributes:
        stdout: what it had written until then, bytes.
        stderr: what it had complained about until then, bytes.
    """

    def __init__(self, command: str, timeout: float, stdout: bytes, stderr: bytes) -> None:
        super().__init__(
            f"the command did not end within {timeout:g} s",
            tried=command,
            observed=f"{len(stdout)} bytes of output and {len(stderr)} of complaints until then",
            hint="give it a longer timeout; what it started in the background may still run",
            evidence=(stderr or stdout).decode(errors="replace").splitlines()[-_TAIL:],
        )
        self.stdout, self.stderr = stdout, stderr
