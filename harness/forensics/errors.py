# SPDX-License-Identifier: MIT
"""What only an investigation can say of a guest."""

from collections.abc import Sequence

from harness.errors import FailureKind, GuestFailure


class KernelTainted(GuestFailure):
    """The kernel complained while a test ran: an oops, a WARN, a hung task, or a checker's finding.

    Attributes:
        taints: the names of the taint bits that were not set before; may be empty.
        splats: the first line of each complaint, oldest first.
    """

    kind = FailureKind.KERNEL_TAINTED

    def __init__(
        self,
        summary: str,
        *,
        taints: Sequence[str] = (),
        splats: Sequence[str] = (),
        tried: str = "",
        observed: str = "",
        hint: str = "",
        evidence: Sequence[str] = (),
    ) -> None:
        super().__init__(summary, tried=tried, observed=observed, hint=hint, evidence=evidence)
        self.taints = tuple(taints)
        self.splats = tuple(splats)
