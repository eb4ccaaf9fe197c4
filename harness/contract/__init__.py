# SPDX-License-Identifier: MIT
"""What is promised, what was found, and who decides."""

from harness.contract.catalogue import Catalogue, CatalogueDamaged, UnknownClause, catalogue
from harness.contract.engine import CheckFault, judge
from harness.contract.model import (
    Clause,
    ClauseResult,
    Evidence,
    Judgement,
    Kind,
    PageEvidence,
    Provenance,
    Verdict,
)

__all__ = [
    "Catalogue",
    "CatalogueDamaged",
    "CheckFault",
    "Clause",
    "ClauseResult",
    "Evidence",
    "Judgement",
    "Kind",
    "PageEvidence",
    "Provenance",
    "UnknownClause",
    "Verdict",
    "catalogue",
    "judge",
]
