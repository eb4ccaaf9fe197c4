# SPDX-License-Identifier: MIT
"""Clauses as a card each: what is promised, who says so, and how it is decided."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from harness.contract.model import Clause, Kind
from harness.report.layout import Page

_KINDS = {
    Kind.DOCUMENTED: "documented by Apple",
    Kind.IMPLEMENTATION: "only the open-source implementation shows it",
    Kind.DOCUMENTED_AND_IMPLEMENTATION: "the rule is documented, what happens to an offender is not",
    Kind.CONTRADICTED: "documented, and the implementation does otherwise",
}


@dataclass(frozen=True)
class Proof:
    """How a clause is decided.

    Attributes:
        check: name of the function, ``""`` without one.
        how: what it does, in its own words.
        outside: the verdict rests on evidence from outside the guest.
        last: the last verdict with kernel and time, or ``""``.
    """

    check: str = ""
    how: str = ""
    outside: bool = False
    last: str = ""


def print_clauses(clauses: tuple[Clause, ...], proofs: Mapping[str, Proof], console: Console) -> None:
    """Print a card for each of *clauses*."""
    page = Page(console, min(console.width, 110))
    for clause in clauses:
        proof = proofs.get(clause.id, Proof())
        page.hang(Text(f"{clause.id}  "), clause.sentence, style="bold")
        rows = [
            ("kind", f"{clause.kind.value}: {_KINDS[clause.kind]}"),
            ("source", clause.source),
            ("seen as", clause.observable),
            ("decision", clause.decision),
            ("Apple's code", clause.implementation),
            ("check", f"{proof.check or 'none yet'}{', from outside the guest' if proof.outside else ''}"),
            ("how", inspect.cleandoc(proof.how).replace("\n", " ")),
            ("last verdict", proof.last or "never judged here: iobmd check"),
        ]
        for label, text in rows:
            if text:
                page.hang(Text(f"     {label:<13}", style="dim"), text)
        page.hang(Text(), "")
