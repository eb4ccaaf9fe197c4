# SPDX-License-Identifier: MIT
"""The fixture ``audit``: drivers under audit, in a guest of their own that has the devices they want.

One such guest lives at a time.  It is restored before every audit; another kernel, machine or set of devices
takes its place.  What its kernel complains of fails the test, as with every guest.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.audit import AuditResult, AuditRun, Exercise, Finding, exercise_of, kind_of
from harness.auditing import Equipment, audit_guest, prepared
from harness.errors import HarnessError
from harness.forensics import diagnose
from harness.images import GuestImage
from harness.machines import NamedMachine, find_machine, fitting
from harness.options import MachineOptions
from harness.oracle import Oracle
from harness.pytest_plugin.asked import in_its_own_words, kernel_asked, machine_options, progress, uncaptured
from harness.pytest_plugin.seat import Ground, Role, Seat, taken
from harness.report import print_audit, report_console

RESULTS = pytest.StashKey[list[AuditResult]]()
"""Of a test: what its audits came to."""


@dataclass
class AuditStage:
    """Where audits take place: at most one guest, and what it was made for.

    Attributes:
        config: of the session.
        image: what is booted.
        kernel: which of several kernels, as typed; None where there is only one.
        machine: the machine tests run on.
    """

    config: pytest.Config
    image: GuestImage
    kernel: str | None
    machine: NamedMachine
    _stack: ExitStack = field(default_factory=ExitStack)
    _place: tuple[MachineOptions, Equipment] | None = None
    _seat: Seat | None = None
    _oracle: Oracle | None = None

    def seat(self, test: str, machine: str, equipment: Equipment) -> tuple[Seat, Oracle]:
        """Return a clean guest with these devices, and who looks at it.

        Args:
            test: id of the test.
            machine: a machine's name; ``""`` for the one the test runs on.
            equipment: devices it has beside its own.
        """
        options = machine_options(self.config, self.kernel, machine or self.machine.name)
        place = (options, equipment)
        if self._seat is None or self._oracle is None or place != self._place:
            self.close()
            fitting([find_machine(options.machine)], self.image.kernel, asked=options.machine)
            guest = audit_guest(options, self.image, equipment, progress(self.config))
            self._stack.enter_context(guest)
            looked_at = self.config.getoption("--keep-vm") or self.config.getoption("--dump-on-failure")
            on = Ground(self.kernel, self.machine.name)
            seat = Seat(Role.AUDIT, guest, on, snapshots=options.snapshot, looked_at=looked_at)
            self._seat = self._stack.enter_context(taken(self.config, seat))
            self._oracle, self._place = Oracle(guest.machine), place
        self._seat.ready(test, clean=True)
        self._seat.used_by = test
        return self._seat, self._oracle

    def close(self) -> None:
        """End the guest."""
        stack, self._stack = self._stack, ExitStack()
        self._seat = self._oracle = self._place = None
        stack.close()


class Auditor:
    """Audits drivers for one test."""

    def __init__(self, item: pytest.Item, stage: AuditStage) -> None:
        """Name the test, and where its audits take place."""
        self._item = item
        self._stage = stage

    @contextmanager
    def module(
        self,
        path: str | Path,
        *,
        devices: Sequence[str] = (),
        machine: str = "",
        exercise: str | Path | None = None,
        params: str = "",
        module: str = "",
        load: Sequence[str] = (),
    ) -> Iterator[AuditRun]:
        """Audit a driver: it is loaded, the block is its exercise, it is unloaded.

        Args:
            path: a folder with sources, a ``.ko`` file, or the name of a module of the kernel's. Relative
                ones are looked for beside the test first, then in the working directory.
            devices: what the machine is to have, as after ``iobmd audit --device``.
            machine: a machine by name; by default the one ``--machine`` names.
            exercise: something to do before the block, as after ``iobmd audit --exercise``.
            params: the driver's module parameters.
            module: which of a folder's modules, where it builds several.
            load: modules of the kernel's that are to be loaded first.

        Yields:
            The run; its findings are those so far in the block, and all of them after it.

        Raises:
            BadInput: something that was asked for is not there.
            DriverNotLoaded: the kernel refused the driver, or its init code failed.
            DriverNotUnloaded: it is still in use when the block is over.
            GuestFailure: the guest died of it, under its own name.
        """
        source, work = self._found(str(path)), self._exercise(exercise)
        equipment = Equipment(tuple(devices))
        config = self._item.config
        with uncaptured(config), in_its_own_words():
            subject, ledger = prepared(
                source, self._stage.image, equipment, progress(config), module=module, also=load
            )
        with in_its_own_words():
            seat, oracle = self._stage.seat(self._item.nodeid, machine, equipment)
        asked = ", ".join(filter(None, (machine or self._stage.machine.name, str(equipment))))
        run = AuditRun(seat.guest, subject, ledger, params=params, oracle=oracle, asked=asked)
        try:
            with run:
                if work is not None:
                    work(run)
                yield run
        except HarnessError as error:
            better = diagnose(seat.guest, error)
            if isinstance(better, HarnessError):
                run.failure = better
            if better is error:
                raise
            raise better from error
        finally:
            if run.begun:
                self._keep(run.result())

    def _found(self, path: str) -> str:
        beside = self._item.path.parent / path
        if not Path(path).is_absolute() and beside.exists():
            return _short(beside)
        with in_its_own_words():
            kind_of(path)
        return path

    def _exercise(self, word: str | Path | None) -> Exercise | None:
        if word is None:
            return None
        beside = self._item.path.parent / word
        with in_its_own_words():
            return exercise_of(_short(beside) if beside.is_file() else str(word))

    def _keep(self, result: AuditResult) -> None:
        """Have it shown with the test if that fails, and kept with its evidence."""
        self._item.stash.setdefault(RESULTS, []).append(result)
        self._item.add_report_section("call", f"iobmd audit of {result.driver}", as_text(result))
        for finding in result.findings:
            self._item.user_properties.append(("finding", f"{finding.rule.id}: {finding.site}"))


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Tell findings that were not expected as findings, not as the fields of their classes."""
    if op != "==" or not all(isinstance(side, list | tuple) for side in (left, right)):
        return None
    sides = [[one for one in side if isinstance(one, Finding)] for side in (left, right)]  # type: ignore[attr-defined]
    if not any(sides):
        return None
    there, wanted = sides
    lines = [f"{_counted(there)}, where there was to be {_counted(wanted)}"]
    for finding in there:
        if finding not in wanted:
            lines += finding.render(stack=False).splitlines()
    for finding in wanted:
        if finding not in there:
            lines += ["missing:", *finding.render(stack=False).splitlines()]
    return lines


def _short(path: Path) -> str:
    """Return a path as it is typed here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _counted(findings: list[Finding]) -> str:
    return f"{len(findings)} finding{'' if len(findings) == 1 else 's'}" if findings else "none"


def as_text(result: AuditResult) -> str:
    """Return an audit as ``iobmd audit`` prints it."""
    text = io.StringIO()
    print_audit(result, report_console(text))
    return text.getvalue()


@pytest.fixture(scope="session")
def iobmd_audit_stage(
    pytestconfig: pytest.Config, guest_image: GuestImage, named_machine: NamedMachine
) -> Iterator[AuditStage]:
    """Where audits take place; not for tests."""
    stage = AuditStage(pytestconfig, guest_image, kernel_asked(pytestconfig), named_machine)
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def audit(request: pytest.FixtureRequest, iobmd_audit_stage: AuditStage) -> Auditor:
    """Drivers under audit: ``with audit.module("./mydriver", devices=["edu"]) as run: ...``."""
    return Auditor(request.node, iobmd_audit_stage)
