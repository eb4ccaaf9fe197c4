# SPDX-License-Identifier: MIT
"""A report speaks of every clause, or there is no report."""

from collections import Counter

from harness.contract.catalogue import Catalogue
from harness.contract.model import Clause, ClauseResult, Judgement, Verdict
from harness.errors import FailureKind, HarnessError

DECIDED = (Verdict.HOLDS, Verdict.BROKEN)


class IncompleteJudgement(HarnessError):
    """A judgement and the catalogue do not have the same clauses; a fault of whoever judged."""

    kind = FailureKind.HARNESS_BUG


def require_complete(judgement: Judgement, catalogue: Catalogue) -> None:
    """Make sure that *judgement* has each clause of *catalogue* once, in its order.

    Raises:
        IncompleteJudgement: a clause is absent, repeated, foreign or out of place; the evidence names it.
    """
    found = [result.clause.id for result in judgement.results]
    absent = [name for name in catalogue if name not in set(found)]
    foreign = [name for name in found if name not in catalogue]
    repeated = [name for name, times in Counter(found).items() if times > 1]
    faults = [
        f"{fault}: {' '.join(names)}"
        for fault, names in (("absent", absent), ("repeated", repeated), ("not in the catalogue", foreign))
        if names
    ]
    if not faults and found != list(catalogue):
        faults = ["the clauses are out of order"]
    if faults:
        raise IncompleteJudgement(
            f"the judgement does not match the catalogue's {len(catalogue)} clauses",
            tried="writing a report in which no clause is silently absent",
            hint="an undecided clause belongs in the judgement as unproved, with its reason",
            evidence=faults,
        )


def by_group(judgement: Judgement, catalogue: Catalogue) -> dict[str, tuple[ClauseResult, ...]]:
    """Return the results of every group of *catalogue*, by its letter, in order."""
    return {
        letter: tuple(result for result in judgement.results if result.clause.group == letter)
        for letter in catalogue.groups
    }


def outside(judgement: Judgement) -> tuple[tuple[Clause, ...], tuple[Clause, ...]]:
    """Return the clauses decided (holds or broken), and those of them decided from outside the guest."""
    decided = [result for result in judgement.results if result.verdict in DECIDED]
    return (
        tuple(result.clause for result in decided),
        tuple(result.clause for result in decided if result.from_outside),
    )
