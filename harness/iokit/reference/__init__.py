# SPDX-License-Identifier: MIT
"""A descriptor without a guest: the contract as a Python model, to run beside the real thing.

`place` judges a factory call, `ReferenceBuffer` follows a descriptor through its life.  Both were written
from the contract and know nothing of the module; driver tests may use them to predict what a call does.
"""

from harness.iokit.reference.buffer import ReferenceBuffer, ReferenceMap
from harness.iokit.reference.placement import Call, Factory, Limits, Placement, Role, Verdict, place

__all__ = [
    "Call",
    "Factory",
    "Limits",
    "Placement",
    "ReferenceBuffer",
    "ReferenceMap",
    "Role",
    "Verdict",
    "place",
]
