# SPDX-License-Identifier: MIT
"""A test fails by what its kernel says, whatever its asserts say; and by nobody else's kernel.

Each phase of a test (setup, call, teardown) is looked at when it is over.  What comes up when the test is
over altogether is told as an error of that test as well, with the next one or at the end of the session.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.errors import FailureKind, GuestFailure
from harness.forensics import KernelTainted, Splat
from harness.pytest_plugin.kinds import NAMED, PROPERTY, error_of
from harness.pytest_plugin.seat import Seat, gone, seats_of, take_late
from harness.pytest_plugin.watch import Trouble

_MARKER = "expect_oops"
_NO_PHASE = (pytest.exit.Exception, KeyboardInterrupt, SystemExit)

_CURRENT = pytest.StashKey[str]()
_BLAME = pytest.StashKey["Blame"]()


@dataclass
class Blame:
    """What the kernels said while a test was carried out.

    Attributes:
        expected: patterns of the reports the test wants, each with whether one came.
        by_phase: the trouble of each phase, by its name.
    """

    expected: dict[str, bool]
    by_phase: dict[str, list[tuple[Seat, Trouble]]] = field(default_factory=dict)

    def note(self, phase: str, seat: Seat, trouble: Trouble) -> None:
        """Keep what came up."""
        if trouble:
            self.by_phase.setdefault(phase, []).append((seat, trouble))
            seat.call_sick(trouble.title)
            for splat in trouble.splats:
                self.expected |= {pattern: True for pattern in self.expected if splat.matches(pattern)}

    def trouble(self, phase: str) -> Trouble:
        """All that came up in a phase, in all guests."""
        return sum((trouble for _, trouble in self.by_phase.get(phase, ())), Trouble())

    def unwanted(self, trouble: Trouble) -> Trouble:
        """What of it nobody asked for; the taint of a report that was wanted is wanted."""
        if not self.expected:
            return trouble
        splats = tuple(splat for splat in trouble.splats if not self.wanted(splat))
        return Trouble(splats, trouble.taint if not trouble.splats else type(trouble.taint)(0), trouble.said)

    def wanted(self, splat: Splat) -> bool:
        """Whether the test asked for a report."""
        return any(splat.matches(pattern) for pattern in self.expected)

    @property
    def missing(self) -> tuple[str, ...]:
        """Patterns whose report did not come."""
        return tuple(pattern for pattern, came in self.expected.items() if not came)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(regex): the test makes its kernel report an oops, a warning or a panic that matches; "
        "it fails when none comes, or another one",
    )


def blame_of(item: pytest.Item) -> Blame:
    """What the kernels said during a test so far.

    Raises:
        pytest.UsageError: its marker has no regular expression.
    """
    if _BLAME not in item.stash:
        item.stash[_BLAME] = Blame({_pattern(mark): False for mark in item.iter_markers(_MARKER)})
    return item.stash[_BLAME]


def current(config: pytest.Config) -> str:
    """Return the id of the test that is being carried out."""
    return config.stash.get(_CURRENT, "")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """See what came up while the fixtures were made."""
    item.config.stash[_CURRENT] = item.nodeid
    blame_of(item)
    try:
        result = yield from _phase(item, "setup", [])
    finally:
        tell_late(item.session)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """See what came up while the test ran."""
    return (yield from _phase(item, "call", list(seats_of(item))))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """See what came up while the fixtures were taken down."""
    blame = blame_of(item)
    for seat in seats_of(item):
        if seat.watch.open:  # its setup did not get far enough for a call
            blame.note("teardown", seat, seat.ended(ask=True))
    return (yield from _phase(item, "teardown", []))


@pytest.hookimpl(trylast=True)  # the guests have ended by then
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell what came up after the last test."""
    tell_late(session)


def _phase(item: pytest.Item, phase: str, ended: list[Seat]) -> Generator[None, Any, Any]:
    """Run a phase; end it with the failure its kernels make of it."""
    blame = blame_of(item)
    try:
        result = yield
    except _NO_PHASE:
        raise
    except BaseException as error:
        _examine(item, blame, phase, ended, error)
        if phase == "call" and _died_as_wanted(blame, error):
            return None
        raise
    _examine(item, blame, phase, ended, None)
    unwanted = blame.unwanted(blame.trouble(phase))
    if unwanted:
        raise _failed(unwanted, phase)
    if phase == "call" and blame.missing:
        raise _not_come(blame)
    return result


def _examine(
    item: pytest.Item, blame: Blame, phase: str, ended: list[Seat], error: BaseException | None
) -> None:
    """Look at every guest of the test, and keep what is found."""
    for seat in seats_of(item):
        if seat in ended:
            found = seat.ended(ask=not isinstance(error_of(error), GuestFailure))
        else:
            found = seat.watch.look()
        blame.note(phase, seat, found)
    for seat in gone(item):  # the last test's teardown ends the guests as well
        for _, trouble in seat.take_late():
            blame.note(phase, seat, trouble)


def _died_as_wanted(blame: Blame, error: BaseException) -> bool:
    """Whether the test failed because its guest died of the very thing it was to die of."""
    trouble = blame.trouble("call")
    return (
        isinstance(error, GuestFailure)
        and error.kind in (FailureKind.KERNEL_PANICKED, FailureKind.QEMU_DIED)
        and bool(blame.expected and trouble.splats)
        and not blame.missing
        and not blame.unwanted(trouble)
    )


def _failed(trouble: Trouble, phase: str) -> BaseException:
    when = "during this test" if phase == "call" else f"in this test's {phase}"
    kind = FailureKind.KERNEL_TAINTED.word
    return _in_words(trouble, f"{kind}: the kernel complained {when}: {trouble.title}")


def _in_words(trouble: Trouble, summary: str) -> BaseException:
    cause = KernelTainted(
        summary, taints=trouble.taint.names, splats=tuple(splat.title for splat in trouble.splats)
    )
    failed = pytest.fail.Exception(f"{summary}\n\n{trouble.render()}", pytrace=False)
    setattr(failed, NAMED, cause)  # as its cause it would be printed above it
    return failed


def _not_come(blame: Blame) -> BaseException:
    wanted = ", ".join(repr(pattern) for pattern in blame.missing)
    return pytest.fail.Exception(
        f"the kernel was expected to report what matches {wanted}, and did not", pytrace=False
    )


def _pattern(mark: pytest.Mark) -> str:
    pattern = mark.args[0] if len(mark.args) == 1 and not mark.kwargs else None
    if isinstance(pattern, re.Pattern):
        pattern = pattern.pattern
    if not isinstance(pattern, str):
        raise pytest.UsageError(f"@pytest.mark.{_MARKER} takes one regular expression")
    try:
        re.compile(pattern)
    except re.error as error:
        raise pytest.UsageError(f"@pytest.mark.{_MARKER}({pattern!r}): {error}") from error
    return pattern


# -- what comes when a test is over -------------------------------------------------------------------------


def tell_late(session: pytest.Session) -> None:
    """Report what came up after a test had been looked at for the last time, as an error of that test."""
    for test, trouble in take_late(session.config):
        item = next((item for item in session.items if item.nodeid == test), None)
        if item is None:
            continue
        unwanted = blame_of(item).unwanted(trouble)
        if unwanted:
            _report(item, unwanted)


def _report(item: pytest.Item, trouble: Trouble) -> None:
    kind = FailureKind.KERNEL_TAINTED.word
    text = f"{kind}: the kernel complained when this test was over: {trouble.title}\n\n{trouble.render()}"
    report = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=text,
        when="teardown",
        sections=[("iobmd: console after this test", trouble.said.strip())],
        user_properties=[*item.user_properties, (PROPERTY, kind), *properties(trouble)],
    )
    worker = _xdist_worker(item.config)
    if worker is None:
        item.ihook.pytest_runtest_logreport(report=report)
        return
    now = worker.item_index  # it may only report about the test it is at
    worker.item_index = item.session.items.index(item)
    try:
        item.ihook.pytest_runtest_logreport(report=report)
    finally:
        worker.item_index = now


def properties(trouble: Trouble) -> list[tuple[str, object]]:
    """Return the fingerprints of the kernel's reports, for JUnit."""
    return [("splat", mark) for mark in trouble.fingerprints]


def _xdist_worker(config: pytest.Config) -> Any:
    """pytest-xdist's reporter in a worker process, which has no name to ask for it by."""
    if not hasattr(config, "workerinput"):
        return None
    plugins = config.pluginmanager.get_plugins()
    return next((plugin for plugin in plugins if hasattr(plugin, "item_index")), None)
