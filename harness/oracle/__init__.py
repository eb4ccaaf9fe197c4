# SPDX-License-Identifier: MIT
"""Evidence from outside the guest: registers, page walks, aliases and memory types.

Nothing here talks to the guest. A machine is stopped, its vCPUs' registers are read from QEMU's own device
state and its page tables from RAM, and it goes on. What is shown are attributes: TCG has no caches, so how
memory *behaves* is not observed, only what the processor was told.
"""

from harness.oracle.aliases import PhysRange
from harness.oracle.cpu import CpuState
from harness.oracle.device import Edu
from harness.oracle.directmap import DirectMap
from harness.oracle.errors import (
    NotLongMode,
    OracleError,
    ReservedType,
    StreamError,
    TypesChanged,
    Unmapped,
    ViewExpired,
)
from harness.oracle.expect import Expectations, Mismatch, SurveyMismatch
from harness.oracle.leaf import Leaf
from harness.oracle.memtype import EFFECTIVE, MemoryType, MtrrMap, TypeRules, decode_pat
from harness.oracle.migration import parse_device_state
from harness.oracle.oracle import Oracle
from harness.oracle.pages import Buffer, Buffers
from harness.oracle.pagetypes import mask_of, types_in
from harness.oracle.survey import Survey
from harness.oracle.timing import Timing
from harness.oracle.translate import NOWHERE
from harness.oracle.view import View
from harness.oracle.vtd import (
    Domain,
    Mode,
    Reach,
    Remapping,
    StoppedTransfer,
    read_fault,
    read_root,
    requester,
)

__all__ = [
    "EFFECTIVE",
    "NOWHERE",
    "Buffer",
    "Buffers",
    "CpuState",
    "DirectMap",
    "Domain",
    "Edu",
    "Expectations",
    "Leaf",
    "MemoryType",
    "Mismatch",
    "Mode",
    "MtrrMap",
    "NotLongMode",
    "Oracle",
    "OracleError",
    "PhysRange",
    "Reach",
    "Remapping",
    "ReservedType",
    "StoppedTransfer",
    "StreamError",
    "Survey",
    "SurveyMismatch",
    "Timing",
    "TypeRules",
    "TypesChanged",
    "Unmapped",
    "View",
    "ViewExpired",
    "decode_pat",
    "mask_of",
    "parse_device_state",
    "read_fault",
    "read_root",
    "requester",
    "types_in",
]
