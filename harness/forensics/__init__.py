# SPDX-License-Identifier: MIT
"""What is wrong with a guest: found out by asking, not by guessing."""

from harness.errors import (
    FailureKind,
    GuestFailure,
    HarnessBug,
    HarnessError,
    HostExhausted,
    Probe,
    Sign,
    exhaustion,
    named_exhaustion,
)
from harness.forensics.diagnose import diagnose, diagnosed
from harness.forensics.errors import KernelTainted
from harness.forensics.kernel_log import KernelLog
from harness.link import AgentDead, ChannelBroken, KernelHung, OperationTimedOut
from harness.vm import GuestPanicked, QemuDied, QemuStuck

__all__ = [
    "AgentDead",
    "ChannelBroken",
    "FailureKind",
    "GuestFailure",
    "GuestPanicked",
    "HarnessBug",
    "HarnessError",
    "HostExhausted",
    "KernelHung",
    "KernelLog",
    "KernelTainted",
    "OperationTimedOut",
    "Probe",
    "QemuDied",
    "QemuStuck",
    "Sign",
    "diagnose",
    "diagnosed",
    "exhaustion",
    "named_exhaustion",
]
