# SPDX-License-Identifier: MIT
"""The base of every error this project raises on purpose.

An error says four things: what was tried, what came back, what to type next, and which evidence was kept.
The class decides the exit code of ``iobmd``; the fields decide what a person reads.
"""

from collections.abc import Sequence
from typing import ClassVar


class HarnessError(Exception):
    """Something the harness can name.

    Attributes:
        exit_code: what ``iobmd`` exits with when this reaches the top.
        summary: one sentence, what went wrong.
        tried: what was being done, or ``""``.
        observed: what came back instead, or ``""``.
        hint: what to type or change next, or ``""``.
        evidence: lines worth reading (console tail, QEMU's stderr, compiler output); may be empty.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self,
        summary: str,
        *,
        tried: str = "",
        observed: str = "",
        hint: str = "",
        evidence: Sequence[str] = (),
    ) -> None:
        super().__init__(summary)
        self.summary = summary
        self.tried = tried
        self.observed = observed
        self.hint = hint
        self.evidence = tuple(evidence)

    def __str__(self) -> str:
        parts = [self.summary]
        parts += [f"  {label}: {text}" for label, text in self._labelled() if text]
        parts += [f"  | {line}" for line in self.evidence]
        return "\n".join(parts)

    def _labelled(self) -> tuple[tuple[str, str], ...]:
        return (("tried", self.tried), ("observed", self.observed), ("hint", self.hint))


class BadInput(HarnessError):
    """The caller asked for something that does not exist or makes no sense (exit code 2)."""


class HostLacks(HarnessError):
    """This host misses a program, a package, space or a permission (exit code 2)."""


class GuestFailure(HarnessError):
    """The guest or QEMU died, hung or stopped making sense (exit code 3)."""

    exit_code: ClassVar[int] = 3
