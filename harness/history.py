# SPDX-License-Identifier: MIT
"""The last verdict on every clause, kept in the cache for `iobmd clauses`."""

import contextlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.contract.model import Judgement, Verdict
from harness.images import cache_root
from harness.images.store import read_json, write_json


@dataclass(frozen=True)
class Remembered:
    """What became of a clause when it was last judged.

    Attributes:
        verdict: the verdict's word.
        release: the kernel it was judged on.
        when: ISO 8601, UTC, to the second.
    """

    verdict: str
    release: str
    when: str


def remember(judgement: Judgement, path: Path | None = None) -> None:
    """Keep the verdicts of *judgement*; clauses that it leaves unproved keep what they had.

    A cache that cannot be written costs the memory, not the judgement.
    """
    file = path or _file()
    when = datetime.now(UTC).isoformat(timespec="seconds")
    release = judgement.provenance.release
    known = last_verdicts(file) | {
        result.clause.id: Remembered(result.verdict.value, release, when)
        for result in judgement.results
        if result.verdict is not Verdict.UNPROVED
    }
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {name: asdict(one) for name, one in sorted(known.items())})


def last_verdicts(path: Path | None = None) -> dict[str, Remembered]:
    """Return the last verdict by clause id; a missing or damaged memory is an empty one."""
    kept = read_json(path or _file()) or {}
    try:
        return {name: Remembered(**one) for name, one in kept.items()}
    except TypeError:
        return {}


def _file() -> Path:
    return cache_root() / "last-verdicts.json"
