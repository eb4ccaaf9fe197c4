# SPDX-License-Identifier: MIT
"""The kind of a test's failure, for reports that machines read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import FailureKind, HarnessError, exhaustion

if TYPE_CHECKING:
    import pytest

PROPERTY = "failure-kind"
"""The JUnit property that holds `FailureKind.word`."""

NAMED = "iobmd_named"
"""The attribute of an error of pytest's that holds the error of ours it stands for."""


def error_of(error: BaseException | None) -> HarnessError | None:
    """Return the error of ours that an error is, stands for, or came from; None where there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        known = getattr(error, NAMED, error)
        if isinstance(known, HarnessError):
            return known
        named = exhaustion(error, "")
        if named is not None:
            return named
        error = error.__cause__ or error.__context__
    return None


def kind_of(error: BaseException | None) -> FailureKind | None:
    """Return the kind of an error or of the one it came from; None when it is a test's own: an assertion."""
    found = error_of(error)
    return None if found is None else found.kind


def note_kind(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Put the kind of a failure among the test's properties; the first one counts."""
    if not report.failed or call.excinfo is None or any(name == PROPERTY for name, _ in item.user_properties):
        return
    kind = kind_of(call.excinfo.value)
    if kind is not None:
        item.user_properties.append((PROPERTY, kind.word))
        report.user_properties.append((PROPERTY, kind.word))


def shorten(report: pytest.TestReport, error: BaseException) -> None:
    """Keep an error of ours to its first line in pytest's short summary, which a CI gets uncut."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None and error_of(error) is not None:
        crash.message = crash.message.partition("\n")[0]
