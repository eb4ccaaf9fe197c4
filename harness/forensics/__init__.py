# SPDX-License-Identifier: MIT
"""What is wrong with a guest, found out by asking; and what is left of a failure, taken apart and named."""

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
from harness.forensics.backtraces import Vcpu, backtraces
from harness.forensics.diagnose import diagnose, diagnosed
from harness.forensics.errors import KernelTainted
from harness.forensics.kernel_log import KernelLog
from harness.forensics.lines import LineTable, SourceLine
from harness.forensics.parse import splats
from harness.forensics.splat import Frame, Splat, SplatKind, Stack, deduplicated
from harness.forensics.symbols import Symbols
from harness.forensics.taint import Taint, taint_diff
from harness.link import AgentDead, ChannelBroken, KernelHung, OperationTimedOut
from harness.vm import GuestPanicked, QemuDied, QemuStuck

__all__ = [
    "AgentDead",
    "ChannelBroken",
    "FailureKind",
    "Frame",
    "GuestFailure",
    "GuestPanicked",
    "HarnessBug",
    "HarnessError",
    "HostExhausted",
    "KernelHung",
    "KernelLog",
    "KernelTainted",
    "LineTable",
    "OperationTimedOut",
    "Probe",
    "QemuDied",
    "QemuStuck",
    "Sign",
    "SourceLine",
    "Splat",
    "SplatKind",
    "Stack",
    "Symbols",
    "Taint",
    "Vcpu",
    "backtraces",
    "deduplicated",
    "diagnose",
    "diagnosed",
    "exhaustion",
    "named_exhaustion",
    "splats",
    "taint_diff",
]
