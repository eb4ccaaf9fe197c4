# SPDX-License-Identifier: MIT
"""What is left of a failure: the kernel's reports taken apart, addresses with names, tainted flags."""

from harness.forensics.backtraces import Vcpu, backtraces
from harness.forensics.lines import LineTable, SourceLine
from harness.forensics.parse import splats
from harness.forensics.splat import Frame, Splat, SplatKind, Stack, deduplicated
from harness.forensics.symbols import Symbols
from harness.forensics.taint import Taint, taint_diff

__all__ = [
    "Frame",
    "LineTable",
    "SourceLine",
    "Splat",
    "SplatKind",
    "Stack",
    "Symbols",
    "Taint",
    "Vcpu",
    "backtraces",
    "deduplicated",
    "splats",
    "taint_diff",
]
