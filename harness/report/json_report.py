# SPDX-License-Identifier: MIT
"""Judgements as JSON, for machines.

Schema ``iobmd.judgement/1``. Keys come in a fixed order, so that two reports can be compared line by line.
Addresses and page-table entries are hexadecimal strings, since 64 bits do not survive every JSON reader as
numbers; lengths and sizes are numbers, in bytes. A key is only ever added; a change of meaning changes the
schema's number.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

from harness.contract.catalogue import Catalogue
from harness.contract.catalogue import catalogue as shipped
from harness.contract.model import ClauseResult, Evidence, Judgement, PageEvidence, Verdict
from harness.errors import HarnessError, exhaustion
from harness.report.complete import by_group, outside, require_complete

SCHEMA: Final = "iobmd.judgement/1"


class ReportNotWritten(HarnessError):
    """The report's file cannot be written; whatever stood there before still stands there."""


def to_json(judgement: Judgement, catalogue: Catalogue | None = None) -> str:
    """Return *judgement* as one JSON document that ends in a newline and is plain ASCII.

    Args:
        judgement: what to report.
        catalogue: what it must cover; the default is the shipped catalogue.

    Raises:
        IncompleteJudgement: it does not cover the catalogue.
    """
    clauses = shipped() if catalogue is None else catalogue
    require_complete(judgement, clauses)
    return json.dumps(_document(judgement, clauses), indent=2, allow_nan=False) + "\n"


def check_writable(path: Path) -> None:
    """Find out before the work whether `write_json` will have somewhere to write to.

    Raises:
        ReportNotWritten: there is no such folder, it may not be written to, or *path* is a folder.
    """
    folder = path.resolve().parent
    if path.is_dir():
        problem = "it is a folder"
    elif not folder.is_dir():
        problem = f"there is no folder {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        problem = "this user may not write there"
    else:
        return
    raise ReportNotWritten(
        f"the JSON report could not be written to {path}",
        observed=problem,
        hint="name a file in an existing folder you may write to",
    )


def write_json(judgement: Judgement, path: Path, catalogue: Catalogue | None = None) -> None:
    """Write `to_json` to *path*: all of it, or nothing at all.

    Raises:
        IncompleteJudgement: the judgement does not cover the catalogue.
        ReportNotWritten: the file cannot be written.
    """
    write_text(to_json(judgement, catalogue), path)


def write_text(text: str, path: Path) -> None:
    """Write a report to *path*: all of it, or nothing at all.

    The text goes to a new file in the same folder, which then takes the name. What is no regular file
    (a pipe, a terminal) is written to directly.

    Raises:
        ReportNotWritten: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_text(text, encoding="ascii")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        failed = ReportNotWritten(
            f"the JSON report was not written: {error.strerror or error}",
            tried=f"writing {path}",
            hint="name a file in an existing folder you may write to",
        )
        lack = exhaustion(error, failed.tried)
        if lack is not None:
            failed.call_it(lack.kind)
            failed.hint = lack.hint
        raise failed from error


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("x", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _document(judgement: Judgement, catalogue: Catalogue) -> dict[str, Any]:
    made_on = judgement.provenance
    captures = judgement.oracle_milliseconds
    return {
        "schema": SCHEMA,
        "catalogue": {"clauses": len(catalogue), "implementation": catalogue.implementation},
        "provenance": {
            "kernel": made_on.kernel,
            "release": made_on.release,
            "qemu": made_on.qemu,
            "accelerator": made_on.accelerator,
            "accelerator_reason": made_on.accelerator_reason,
            "machine": made_on.machine,
            "module": made_on.module,
            "start": made_on.start,
        },
        "judged": "attributes, not caching behaviour",
        "counts": {
            **_counts(judgement.results),
            "total": len(judgement.results),
            "from_outside": len(outside(judgement)[1]),
        },
        "timings": {
            "boot_seconds": round(judgement.boot_seconds, 6),
            "check_seconds": round(judgement.check_seconds, 6),
            "oracle_milliseconds": {
                "count": len(captures),
                "median": round(median(captures), 3) if captures else None,
                "max": round(max(captures), 3) if captures else None,
            },
        },
        "groups": [
            {"group": letter, "title": catalogue.groups[letter], "counts": _counts(results)}
            for letter, results in by_group(judgement, catalogue).items()
        ],
        "clauses": [_clause(result) for result in judgement.results],
    }


def _counts(results: tuple[ClauseResult, ...]) -> Mapping[str, int]:
    return {verdict.value: sum(result.verdict is verdict for result in results) for verdict in Verdict}


def _clause(result: ClauseResult) -> dict[str, Any]:
    return {
        "id": result.clause.id,
        "group": result.clause.group,
        "kind": result.clause.kind.value,
        "sentence": result.clause.sentence,
        "verdict": result.verdict.value,
        "reason": result.reason,
        "expected": result.expected,
        "observed": result.observed,
        "from_outside": result.from_outside,
        "seconds": round(result.seconds, 6),
        "evidence": _evidence(result.evidence),
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {
        "notes": list(evidence.notes),
        "ranges": [{"start": hex(start), "length": length} for start, length in evidence.ranges],
        "pages": [_page(page) for page in evidence.pages],
    }


def _page(page: PageEvidence) -> dict[str, Any]:
    return {
        "va": hex(page.va),
        "pa": hex(page.pa),
        "size": page.size,
        "entry": hex(page.entry),
        "pat_index": page.pat_index,
        "pat_type": page.pat_type,
        "effective": page.effective,
    }
