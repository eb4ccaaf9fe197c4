# SPDX-License-Identifier: MIT
"""SSH into the guest over a virtio-serial port: no network, no TCP port.

Not imported by `harness.link` itself: paramiko takes its time, and most runs never ask for it.
"""

from harness.link.ssh.command import Completed
from harness.link.ssh.errors import (
    ClientKeyRefused,
    CommandFailed,
    CommandTimedOut,
    HostKeyMismatch,
    SshFailure,
)
from harness.link.ssh.keys import Keys
from harness.link.ssh.session import Access
from harness.link.ssh.shell import Ssh, Transferred

__all__ = [
    "Access",
    "ClientKeyRefused",
    "CommandFailed",
    "CommandTimedOut",
    "Completed",
    "HostKeyMismatch",
    "Keys",
    "Ssh",
    "SshFailure",
    "Transferred",
]
