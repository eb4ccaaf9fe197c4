# SPDX-License-Identifier: MIT
"""The judge: runs the checks it knows and gives every clause a verdict."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from harness.contract.case import Bench, Case
from harness.contract.facts import MachineFacts
from harness.contract.model import Clause, ClauseResult, Judgement, Provenance, Verdict
from harness.contract.outcome import Broken, NotApplicable, Unproved
from harness.errors import FailureKind, GuestFailure, HarnessError
from harness.images import Progress
from harness.iokit import IOKit
from harness.link import Guest, GuestOSError
from harness.machines import MACHINES
from harness.oracle import Oracle

CheckFunction = Callable[[Case], None]

_TELLING = frozenset(word for machine in MACHINES.values() for word in machine.cmdline)
"""Words of a kernel's command line that make another machine of it."""
_NO_CHECK = "no check decides this clause yet"


class CheckFault(HarnessError):
    """A check itself went wrong, so it says nothing about the clause: a bug of this project."""

    kind = FailureKind.HARNESS_BUG


@dataclass(frozen=True)
class Check:
    """What decides one clause.

    Attributes:
        clause: id of the clause.
        run: the function; returning means that the clause is kept.
        outside: the verdict rests on what the oracle saw.
        partial: what the check cannot see yet; then it may find the clause broken, and never that it holds.
        fills: it uses up all memory there is.  What a guest has once touched is searched at every look from
            then on, so such checks come last.
    """

    clause: str
    run: CheckFunction
    outside: bool
    partial: str
    fills: bool = False

    @property
    def name(self) -> str:
        """Module and function, for messages about the check itself."""
        return f"{self.run.__module__}.{self.run.__name__}"


class Checks(Mapping[str, Check]):
    """The checks by clause id."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def __getitem__(self, clause: str) -> Check:
        return self._checks[clause]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checks)

    def __len__(self) -> int:
        return len(self._checks)

    def check(
        self, clause: str, *, outside: bool = False, partial: str = "", fills: bool = False
    ) -> Callable[[CheckFunction], CheckFunction]:
        """Return a decorator that makes a function the check of *clause*.

        Args:
            clause: id of the clause.
            outside: the verdict rests on the oracle; the judge makes sure that it was used.
            partial: what the function cannot observe, as a sentence; "" when it decides the whole clause.
            fills: it uses up all memory there is.

        Raises:
            CheckFault: the clause has a check already, or the function does not say how it observes.
        """

        def register(function: CheckFunction) -> CheckFunction:
            made = Check(clause, function, outside, partial, fills)
            if clause in self._checks:
                raise CheckFault(
                    f"{clause} has two checks", observed=f"{self._checks[clause].name} and {made.name}"
                )
            if not function.__doc__:
                raise CheckFault(
                    f"{made.name} has no docstring", hint="say how the check observes the clause"
                )
            self._checks[clause] = made
            return function

        return register


CHECKS = Checks()
"""The checks of this package; `harness.contract.checks` fills it when it is imported."""
check = CHECKS.check


def judge(
    guest: Guest,
    iokit: IOKit,
    oracle: Oracle,
    clauses: Iterable[Clause],
    progress: Progress,
    *,
    checks: Mapping[str, Check] | None = None,
    into: list[ClauseResult] | None = None,
) -> Judgement:
    """Judge *clauses* on a booted guest, those that fill its memory last.

    Args:
        guest: the guest under judgement.
        iokit: the factories in it.
        oracle: the observer outside of it.
        clauses: what to judge; each gets a result, unproved where there is no check.
        progress: hears of every clause.
        checks: the checks by clause id; by default all of this package.
        into: receives each result as it is found, so that a dying guest does not take the others with it.

    Returns:
        A result for each clause, in the order of *clauses*.

    Raises:
        GuestFailure: the guest died or went silent; *into* has what was decided before.
        CheckFault: a check is wrong itself; the message names it.
    """
    known = all_checks() if checks is None else checks
    results = [] if into is None else into
    bench = Bench(guest, iokit, oracle, MachineFacts.of(guest.machine))
    earlier = len(oracle.milliseconds)
    wanted = tuple(clauses)
    started = time.perf_counter()
    with progress.task("judging", len(wanted)) as task:
        for clause in sorted(wanted, key=lambda one: one.id in known and known[one.id].fills):
            task.update(clause.id)
            found = known.get(clause.id)
            if found is None:
                results.append(ClauseResult(clause, Verdict.UNPROVED, reason=_NO_CHECK))
            else:
                case = Case(bench, seed=clause.id)
                results.append(_decide(found, clause, case))
            task.advance(1)
    found_for = {result.clause.id: result for result in results}
    return Judgement(
        results=tuple(found_for[clause.id] for clause in wanted),
        provenance=provenance_of(guest),
        boot_seconds=guest.boot_seconds,
        check_seconds=time.perf_counter() - started,
        oracle_milliseconds=oracle.milliseconds[earlier:],
    )


def provenance_of(guest: Guest) -> Provenance:
    """Return what a judgement on *guest* is made on."""
    machine, spec = guest.machine, guest.machine.spec
    return Provenance(
        kernel=guest.image.kernel.label,
        release=guest.hello.release,
        qemu=machine.qemu_version,
        accelerator=machine.accelerator.name,
        accelerator_reason=machine.accelerator.reason,
        machine=", ".join(
            (
                f"{spec.machine}, {spec.cpu} CPU model, {spec.cpus} vCPU, {spec.memory_mib} MiB",
                *spec.devices,
                *(word for word in spec.cmdline if word in _TELLING),
            )
        ),
        module=guest.image.module.build_id,
        start=guest.starts[0].how.value,
    )


def all_checks() -> Mapping[str, Check]:
    """Return every check of this package, by the id of its clause."""
    # Imported here because every check module imports this one for its decorator.
    import harness.contract.checks  # noqa: F401, PLC0415

    return CHECKS


@dataclass(frozen=True)
class _Ending:
    verdict: Verdict
    reason: str = ""
    expected: str = ""
    observed: str = ""


def _decide(check_: Check, clause: Clause, case: Case) -> ClauseResult:
    started = time.perf_counter()
    before = case.live()
    try:
        ending = _run(check_, case)
    except BaseException:
        # The guest may be the reason; whatever it is, the first error is the one to tell.
        with contextlib.suppress(HarnessError):
            case.release_all()
        raise
    case.release_all()
    left = case.live() - before
    if left and ending.verdict is not Verdict.BROKEN:
        ending = _Ending(
            Verdict.BROKEN,
            expected="no descriptor left after every one was released",
            observed=f"{left} more than before",
        )
    return ClauseResult(
        clause=clause,
        verdict=ending.verdict,
        reason=ending.reason,
        expected=ending.expected,
        observed=ending.observed,
        evidence=case.trail.evidence(),
        seconds=time.perf_counter() - started,
        from_outside=case.looked and check_.outside,
    )


def _run(check_: Check, case: Case) -> _Ending:
    """Run one check and say how it ended; what is no verdict is raised."""
    try:
        check_.run(case)
    except Broken as error:
        return _Ending(Verdict.BROKEN, expected=error.expected, observed=error.observed)
    except NotApplicable as error:
        return _Ending(Verdict.NOT_APPLICABLE, reason=str(error))
    except Unproved as error:
        return _Ending(Verdict.UNPROVED, reason=str(error), observed=_summary(case))
    except GuestOSError as error:
        # Apple's calls used here have no way to refuse: an errno out of the module is an answer, a wrong one.
        return _Ending(Verdict.BROKEN, expected="the call is accepted", observed=error.summary)
    except GuestFailure:
        raise
    except Exception as error:
        raise CheckFault(
            f"the check of {check_.clause} failed by itself; this says nothing about the clause",
            tried=check_.name,
            observed=f"{type(error).__name__}: {error}",
            hint="this is a bug of the harness; please report it with the traceback",
        ) from error
    if case.trail.comparisons == 0:
        raise CheckFault(f"the check of {check_.clause} compared nothing", tried=check_.name)
    if check_.outside and not case.looked:
        raise CheckFault(
            f"the check of {check_.clause} claims evidence from outside and never looked", tried=check_.name
        )
    if check_.partial:
        return _Ending(
            Verdict.UNPROVED, reason=check_.partial, expected=case.trail.expected, observed=_summary(case)
        )
    return _Ending(Verdict.HOLDS, expected=case.trail.expected, observed=_summary(case))


def _summary(case: Case) -> str:
    count = case.trail.comparisons
    if not count:
        return ""
    return f"{count} comparisons agree, the last: {case.trail.observed}" if count > 1 else case.trail.observed
