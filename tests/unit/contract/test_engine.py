# SPDX-License-Identifier: MIT
"""The judge: every clause gets a verdict, and the judge watches the checks as closely as the guest."""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.contract.case import Case
from harness.contract.engine import CheckFault, Checks, judge
from harness.contract.model import ClauseResult, Judgement, Verdict
from harness.errors import GuestFailure
from harness.images import SilentProgress
from harness.link import GuestOSError


@pytest.fixture
def fakes(load_fakes: ModuleType) -> Any:
    return load_fakes


@pytest.fixture
def run(fakes: Any) -> Callable[..., Judgement]:
    def run_(function: Callable[[Case], None] | None, iokit: Any = None, **options: Any) -> Judgement:
        checks = Checks()
        into = options.pop("into", None)
        if function is not None:
            checks.check("A01", **options)(function)
        iokit = iokit or fakes.FakeIOKit()
        clauses = [fakes.clause("A01"), fakes.clause("A02")]
        return judge(
            fakes.FakeGuest(),
            iokit,
            fakes.FakeOracle(iokit),
            clauses,
            SilentProgress(),
            checks=checks,
            into=into,
        )

    return run_


def first(judgement: Judgement) -> ClauseResult:
    assert [result.clause.id for result in judgement.results] == ["A01", "A02"]
    assert judgement.results[1].verdict is Verdict.UNPROVED
    assert "no check" in judgement.results[1].reason
    return judgement.results[0]


def agrees(case: Case) -> None:
    """Compares two numbers that are equal."""
    case.expect(5, equals=5, what="answer")


def looks(case: Case) -> None:
    """Makes a buffer and reads it from outside."""
    buf = case.make()
    planted = case.plant(buf)
    with case.look() as look:
        look.aliases(buf)
        case.expect_planted(look, buf, planted)


def test_a_check_that_returns_holds(run: Callable[..., Judgement]) -> None:
    judgement = run(agrees)
    result = first(judgement)
    assert result.verdict is Verdict.HOLDS
    assert (result.expected, result.observed) == ("answer = 5", "answer = 5")
    assert not result.from_outside
    assert judgement.count(Verdict.HOLDS) == 1
    assert judgement.provenance.accelerator == "tcg"
    assert judgement.provenance.module == "0123"


def test_a_clause_without_check_is_unproved(run: Callable[..., Judgement]) -> None:
    result = first(run(None))
    assert result.verdict is Verdict.UNPROVED
    assert result.reason


def test_a_mismatch_is_broken_and_says_both_sides(run: Callable[..., Judgement]) -> None:
    def differs(case: Case) -> None:
        """Compares two addresses."""
        case.note("before")
        case.expect(0x1000, equals=0x2000, what="address", show=hex)

    result = first(run(differs))
    assert result.verdict is Verdict.BROKEN
    assert (result.expected, result.observed) == ("address = 0x2000", "address = 0x1000")
    assert result.evidence.notes == ("before",)


def test_null_where_a_buffer_is_needed_is_broken(run: Callable[..., Judgement]) -> None:
    def makes(case: Case) -> None:
        """Makes a buffer of no bytes."""
        case.make(capacity=0)

    result = first(run(makes))
    assert result.verdict is Verdict.BROKEN
    assert "EINVAL" in result.observed


def test_a_buffer_where_null_is_needed_is_broken_and_released(
    run: Callable[..., Judgement], fakes: Any
) -> None:
    def makes(case: Case) -> None:
        """Makes a buffer that should not be."""
        case.null(case.iokit.withOptions(3, 4096))

    iokit = fakes.FakeIOKit()
    assert first(run(makes, iokit)).verdict is Verdict.BROKEN
    assert iokit.made == []


def test_not_applicable_carries_its_reason(run: Callable[..., Judgement]) -> None:
    def lacks(case: Case) -> None:
        """Needs an IOMMU."""
        case.not_applicable("no IOMMU")

    result = first(run(lacks))
    assert (result.verdict, result.reason) == (Verdict.NOT_APPLICABLE, "no IOMMU")


def test_a_check_may_leave_a_clause_unproved(run: Callable[..., Judgement]) -> None:
    def undecided(case: Case) -> None:
        """Cannot tell."""
        case.expect(1, equals=1, what="one")
        case.unproved("cannot tell")

    result = first(run(undecided))
    assert (result.verdict, result.reason, result.observed) == (Verdict.UNPROVED, "cannot tell", "one = 1")


def test_a_partial_check_never_holds(run: Callable[..., Judgement]) -> None:
    result = first(run(agrees, partial="map() is not built yet"))
    assert result.verdict is Verdict.UNPROVED
    assert result.reason == "map() is not built yet"
    assert result.observed == "answer = 5"


def test_a_partial_check_can_break(run: Callable[..., Judgement]) -> None:
    def differs(case: Case) -> None:
        """Compares unequal numbers."""
        case.expect(1, equals=2, what="number")

    assert first(run(differs, partial="half of it")).verdict is Verdict.BROKEN


def test_outside_evidence_is_kept(run: Callable[..., Judgement]) -> None:
    judgement = run(looks, outside=True)
    result = first(judgement)
    assert result.verdict is Verdict.HOLDS
    assert result.from_outside
    assert result.evidence.ranges == ((0, 4096), (0, 32), (2016, 64), (4064, 32))
    assert [page.effective for page in result.evidence.pages] == ["WB"]
    assert len(judgement.oracle_milliseconds) == 1


def test_claiming_to_look_and_not_looking_is_a_fault(run: Callable[..., Judgement]) -> None:
    with pytest.raises(CheckFault, match="never looked"):
        run(agrees, outside=True)


def test_comparing_nothing_is_a_fault(run: Callable[..., Judgement]) -> None:
    def idle(case: Case) -> None:
        """Does nothing."""
        case.note("nothing")

    with pytest.raises(CheckFault, match="compared nothing"):
        run(idle)


def test_a_bug_in_a_check_is_named_and_not_called_broken(run: Callable[..., Judgement], fakes: Any) -> None:
    def stumbles(case: Case) -> None:
        """Divides by zero."""
        case.make()
        raise ZeroDivisionError("oops")

    iokit, into = fakes.FakeIOKit(), []
    with pytest.raises(CheckFault, match="A01") as caught:
        run(stumbles, iokit, into=into)
    assert "stumbles" in caught.value.tried
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert iokit.made == []
    assert into == []


def test_a_dead_guest_ends_the_judgement_and_leaves_the_results(fakes: Any) -> None:
    checks, into = Checks(), []
    checks.check("A01")(agrees)

    @checks.check("A02")
    def dies(case: Case) -> None:
        """Loses the guest."""
        case.note("the last words")
        raise GuestFailure("the kernel panicked")

    iokit = fakes.FakeIOKit()
    clauses = [fakes.clause(name) for name in ("A01", "A02", "A03")]
    with pytest.raises(GuestFailure, match="panicked"):
        judge(
            fakes.FakeGuest(),
            iokit,
            fakes.FakeOracle(iokit),
            clauses,
            SilentProgress(),
            checks=checks,
            into=into,
        )
    assert [(result.clause.id, result.verdict) for result in into] == [("A01", Verdict.HOLDS)]


def test_what_fills_memory_comes_last_and_stands_in_its_place(fakes: Any) -> None:
    checks, ran = Checks(), []

    def agree(case: Case) -> None:
        """Compares a value with itself."""
        ran.append(len(ran))
        case.expect(1, equals=1, what="one")

    checks.check("A01", fills=True)(agree)
    for name in ("A02", "A03"):
        checks.check(name)(agree)
    iokit, into = fakes.FakeIOKit(), []
    clauses = [fakes.clause(name) for name in ("A01", "A02", "A03", "A04")]
    judgement = judge(
        fakes.FakeGuest(), iokit, fakes.FakeOracle(iokit), clauses, SilentProgress(), checks=checks, into=into
    )
    assert [result.clause.id for result in into] == ["A02", "A03", "A04", "A01"]
    assert [result.clause.id for result in judgement.results] == ["A01", "A02", "A03", "A04"]


def test_an_errno_from_the_module_breaks_the_clause(run: Callable[..., Judgement]) -> None:
    def refused(case: Case) -> None:
        """Is refused by the module."""
        case.note("before")
        raise GuestOSError(14, "ioctl SET_LENGTH")

    result = first(run(refused))
    assert result.verdict is Verdict.BROKEN
    assert "SET_LENGTH" in result.observed


def test_an_unmapped_buffer_is_broken_not_a_dead_guest(run: Callable[..., Judgement], fakes: Any) -> None:
    def lost(case: Case) -> None:
        """Looks for a buffer that lies nowhere."""
        nowhere = SimpleNamespace(address=0xFFFF_9999_0000_0000, storage=4096)
        with case.look() as look:
            look.where(nowhere)

    iokit = fakes.FakeIOKit()
    result = first(run(lost, iokit))
    assert result.verdict is Verdict.BROKEN
    assert "mapped" in result.expected


def test_everything_made_is_released_whatever_happens(run: Callable[..., Judgement], fakes: Any) -> None:
    def leaves_things(case: Case) -> None:
        """Makes buffers and breaks."""
        for _ in range(3):
            case.make()
        case.expect(1, equals=2, what="number")

    iokit = fakes.FakeIOKit()
    run(leaves_things, iokit)
    assert iokit.made == []
    assert iokit.released == 3


def test_a_descriptor_that_survives_its_release_breaks_the_clause(
    run: Callable[..., Judgement], fakes: Any
) -> None:
    iokit = fakes.FakeIOKit()

    def leaks(case: Case) -> None:
        """Makes a buffer the module never forgets."""
        case.expect(1, equals=1, what="one")
        iokit.leaks += 1

    result = first(run(leaks, iokit))
    assert result.verdict is Verdict.BROKEN
    assert "1 more" in result.observed


def test_two_checks_for_a_clause_are_refused() -> None:
    checks = Checks()
    checks.check("A01")(agrees)
    with pytest.raises(CheckFault, match="two checks"):
        checks.check("A01")(looks)


def test_a_check_says_how_it_observes() -> None:
    def silent(case: Case) -> None:
        case.expect(1, equals=1, what="one")

    with pytest.raises(CheckFault, match="docstring"):
        Checks().check("A01")(silent)
