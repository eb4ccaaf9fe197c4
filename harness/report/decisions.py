# SPDX-License-Identifier: MIT
"""Where documentation and implementation part, and which side was chosen."""

from harness.contract.catalogue import Catalogue
from harness.contract.catalogue import catalogue as shipped


def decisions_table(catalogue: Catalogue | None = None) -> str:
    """Return a Markdown table of the decided disagreements, one row per clause, ending in a newline.

    Args:
        catalogue: whose decisions; the default is the shipped catalogue.
    """
    clauses = shipped() if catalogue is None else catalogue
    head = ("clause", "promise", "what this project keeps", "what Apple's code does")
    rows = [
        (clause.id, clause.sentence, clause.decision, clause.implementation) for clause in clauses.decided()
    ]
    return "".join(_row(cells) for cells in (head, ("---",) * len(head), *rows))


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
