# SPDX-License-Identifier: MIT
"""The pytest door: fixtures that start a guest, speak to it and look at it from outside.

=================  ========  =================================================================
``--kernel`` takes one kernel, several with commas between, or ``all``: with more than one, every test that
uses a guest runs on each, and its id carries the kernel's release.  ``--machine`` does the same for machines
(`harness.machines`), whose names are in the ids.  JUnit reports name the kernel, machine, QEMU, accelerator
and module build of every such test, how its guest was started, and the clause it decides where it is marked
``@pytest.mark.clause("C08")``.

With pytest-xdist, ``-n 4`` runs four workers with guests of their own, or as many as the host has memory for.
Tests are ordered by kernel and dealt out in that order: every worker changes to the next kernel once.

The kernel's log is cut per test.  An oops, a warning or a checker's finding fails the test it came in, even
if its asserts passed, unless ``@pytest.mark.expect_oops("regex")`` wants it; the guest is restored then.

``audit`` watches a driver that nobody changed, in a guest with the devices it wants (`harness.audit`)::

    with audit.module("./mydriver", devices=["edu"]) as run:
        run.sh("...")
    assert run.findings == []

A test that fails while it uses a guest leaves what is known of the guest in ``results/latest``
(``--results``), with ``--dump-on-failure`` its memory as well; ``iobmd repro`` runs it again from there.
``--keep-vm`` keeps the guest itself, for gdb, a shell and QMP.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import pytest

from harness.errors import FailureKind, GuestFailure
from harness.images import GuestImage
from harness.iokit import IOKit
from harness.link import Guest
from harness.machines import NamedMachine, find_machine
from harness.options import add_options, make_guest, prepare
from harness.oracle import Oracle
from harness.pytest_plugin import attribution, evidence
from harness.pytest_plugin.asked import (
    KERNEL,
    in_its_own_words,
    is_worker,
    kernel_asked,
    kernels,
    left_out,
    machine_options,
    machines,
    parametrize,
    progress,
    uncaptured,
)
from harness.pytest_plugin.attribution import current
from harness.pytest_plugin.kept import keep
from harness.pytest_plugin.kinds import error_of, note_kind, shorten
from harness.pytest_plugin.runs import KEEP_RUNS
from harness.pytest_plugin.seat import Ground, NoCleanGuest, Role, Seat, gone, lines, seats_of, taken
from harness.pytest_plugin.workers import capped
from harness.vm import Machine

if TYPE_CHECKING:
    from harness.link.ssh import Ssh

pytest_plugins = (
    "harness.pytest_plugin.workers",
    "harness.pytest_plugin.attribution",
    "harness.pytest_plugin.runs",
    "harness.pytest_plugin.leftovers",
    "harness.pytest_plugin.kept",
    "harness.pytest_plugin.audits",
)

_ORACLES = pytest.StashKey[WeakKeyDictionary[Guest, Oracle]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the machine's options in a group of their own."""
    group = parser.getgroup("iobmd", "guests for kernel tests")
    add_options(group.addoption)
    group.addoption(
        "--fresh", action="store_true",
        help="make the guest as clean as after its boot before every test that uses it",
    )  # fmt: skip
    group.addoption(
        "--results", metavar="DIR", type=Path, default=Path("results"),
        help="where failing tests leave console, QEMU's logs and how to repeat; default %(default)s",
    )  # fmt: skip
    group.addoption(
        "--keep-runs", metavar="N", type=int, default=KEEP_RUNS,
        help="how many runs with failures stay in the results folder; default %(default)s",
    )  # fmt: skip
    group.addoption(
        "--dump-on-failure", action="store_true",
        help="keep the guest's memory of a failed test as well, as an ELF core: as large as --memory",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and refuse a machine or a kernel that cannot be before anything is collected."""
    config.addinivalue_line("markers", "clause(id): the clause of the contract that this test decides")
    for name in kernels(config):
        for machine in machines(config):
            machine_options(config, name, machine.name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a guest once per kernel and machine, when several were asked for."""
    parametrize(metafunc)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which kernel and machine tests get; the accelerator is decided when the first guest starts."""
    options = machine_options(config)
    names, wanted = kernels(config), machines(config)
    ways = [name for name in ("--fresh", "--no-snapshot") if config.getoption(name)]
    guest = options.guest(with_shell=False)
    sizes = [f"{guest.memory_mib} MiB", f"{guest.cpus} vCPU"]
    if len(wanted) > 1:
        sizes = [f"{value} {unit}" for value, unit in
                 ((options.memory_mib, "MiB"), (options.cpus, "vCPU")) if value is not None]  # fmt: skip
    head = [
        f"kernel{'s' if len(names) > 1 else ''} {', '.join(names)}",
        f"machine{'s' if len(wanted) > 1 else ''} {', '.join(machine.name for machine in wanted)}",
        *sizes, f"accelerator {options.accel.value}", *ways,
    ]  # fmt: skip
    return [f"iobmd: {', '.join(head)}", *(f"iobmd: {line}" for line in (capped(config),) if line)]


@pytest.fixture(scope="session")
def guest_image(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> GuestImage:
    """What the session boots; fetched and built on the first use, with progress on the terminal."""
    pytestconfig.stash[KERNEL] = kernel = getattr(request, "param", None)
    options = machine_options(pytestconfig, kernel)
    with uncaptured(pytestconfig), in_its_own_words():
        return prepare(options, progress(pytestconfig))


@pytest.fixture(scope="session")
def named_machine(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> NamedMachine:
    """The machine of `harness.machines` that this test's guest is; ``--memory`` and ``--cpus`` change it."""
    name = getattr(request, "param", None)
    return machines(pytestconfig)[0] if name is None else find_machine(name)


@pytest.fixture(scope="session")
def guest(
    pytestconfig: pytest.Config, guest_image: GuestImage, named_machine: NamedMachine
) -> Iterator[Guest]:
    """A running guest whose agent answered; shared by the whole session."""
    with _seated(pytestconfig, guest_image, named_machine, Role.SESSION) as seat:
        yield seat.guest


@pytest.fixture(scope="session")
def machine(guest: Guest) -> Machine:
    """The QEMU process the guest runs in."""
    return guest.machine


@pytest.fixture(scope="session")
def iobmd_fresh_seat(
    pytestconfig: pytest.Config, guest_image: GuestImage, named_machine: NamedMachine
) -> Iterator[Seat]:
    """Where `fresh_guest` sits between the tests that ask for it; not for tests."""
    with _seated(pytestconfig, guest_image, named_machine, Role.FRESH) as seat:
        yield seat


@pytest.fixture
def fresh_guest(request: pytest.FixtureRequest, iobmd_fresh_seat: Seat) -> Guest:
    """A guest for this test alone, as clean as after its boot; ``iobmd``, ``oracle`` and ``ssh`` mean it."""
    _make_ready(request.session, iobmd_fresh_seat, request.node.nodeid, clean=True)
    return iobmd_fresh_seat.guest


@pytest.fixture
def fresh_machine(fresh_guest: Guest) -> Machine:
    """The QEMU process of `fresh_guest`."""
    return fresh_guest.machine


@pytest.fixture
def iobmd_subject(
    request: pytest.FixtureRequest,
    guest_image: GuestImage,  # noqa: ARG001
    named_machine: NamedMachine,  # noqa: ARG001
) -> Guest:
    """The guest a test is about: the fresh one where the test names it, else the session's."""
    # Both are named for pytest: a test is run once per kernel and machine if its fixtures need them.
    wanted = "fresh_guest" if "fresh_guest" in request.fixturenames else "guest"
    found: Guest = request.getfixturevalue(wanted)
    return found


@pytest.fixture
def oracle(pytestconfig: pytest.Config, iobmd_subject: Guest) -> Oracle:
    """The observer outside the guest: page tables, PAT, MTRRs, memory; the same one all along a guest."""
    known = pytestconfig.stash.setdefault(_ORACLES, WeakKeyDictionary())
    if iobmd_subject not in known:
        known[iobmd_subject] = Oracle(iobmd_subject.machine)
    return known[iobmd_subject]


@pytest.fixture
def ssh(pytestconfig: pytest.Config, iobmd_subject: Guest) -> Ssh:
    """A shell in the guest; its server is brought there when the first command runs."""
    with uncaptured(pytestconfig), in_its_own_words():
        iobmd_subject.image.ssh_payload(progress(pytestconfig))  # downloaded once
    return iobmd_subject.ssh


@pytest.fixture
def iobmd(iobmd_subject: Guest) -> Iterator[IOKit]:
    """The factories of IOBufferMemoryDescriptor; what a test leaves over is released for it."""
    with in_its_own_words():
        session = IOKit(iobmd_subject)
    try:
        yield session
    finally:
        with contextlib.suppress(GuestFailure):  # a dead guest has failed the test already, with its reason
            session.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Give a test a guest that is alive, and with ``--fresh`` one without traces of the tests before."""
    for seat in seats_of(item):
        if seat.role is Role.SESSION:  # the fresh one is restored by its fixture
            _make_ready(item.session, seat, item.nodeid, clean=item.config.getoption("--fresh"))
    try:
        return (yield)
    finally:
        for seat in seats_of(item):  # one that was started just now is used as well
            seat.used_by = item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the evidence of a failure while the guest is still there."""
    seats = seats_of(item) or gone(item)
    if call.when == "setup":
        item.user_properties += evidence.properties(item, seats)
    item.user_properties += attribution.properties(attribution.blame_of(item).trouble(call.when))
    report = yield
    note_kind(item, call, report)
    if report.failed and call.excinfo is not None:
        shorten(report, call.excinfo.value)
    if report.failed and seats:
        try:
            _look_closer(item, call, report, seats)
        except KeyboardInterrupt:  # the failure is to be told all the same
            item.session.shouldstop = "Ctrl-C while the evidence of a failure was kept"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Close with what the tests ran on, how it was started and why, and what became of it."""
    for line in left_out(config):
        terminalreporter.write_line(f"iobmd: left out of --machine all: {line}")
    if capped(config) and config.get_verbosity() < 0:  # there was no header to say it in
        terminalreporter.write_line(f"iobmd: {capped(config)}")
    for line in lines(config):
        terminalreporter.write_line(f"iobmd: {line}")


def _look_closer(
    item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, seats: tuple[Seat, ...]
) -> None:
    """Keep what there is of a failure, the guest itself if that is wanted; then let go of what hangs."""
    evidence.attach(item, call, report, seats)
    if item.config.getoption("--keep-vm"):
        seats[0].call_sick("it was kept")
        keep(item.config, seats[0].guest, seats[0].sections, item.nodeid)
    named = error_of(call.excinfo.value if call.excinfo is not None else None)
    if isinstance(named, GuestFailure) and named.kind is not FailureKind.KERNEL_TAINTED:
        for seat in seats:
            seat.give_up(named)


@contextlib.contextmanager
def _seated(config: pytest.Config, image: GuestImage, named: NamedMachine, role: Role) -> Iterator[Seat]:
    """Start a guest, keep it in its seat, end it."""
    kernel = kernel_asked(config)
    options = machine_options(config, kernel, named.name)
    with contextlib.ExitStack() as stack:
        with in_its_own_words():
            started = stack.enter_context(make_guest(options, image, progress(config)))
        with in_its_own_words():
            looked_at = config.getoption("--keep-vm") or config.getoption("--dump-on-failure")
            on = Ground(kernel, named.name)
            seat = Seat(role, started, on, snapshots=options.snapshot, looked_at=looked_at)
            if role is Role.SESSION:  # the fresh one is made ready by its fixture
                seat.ready(current(config), clean=False)
        yield stack.enter_context(taken(config, seat))


def _make_ready(session: pytest.Session, seat: Seat, test: str, *, clean: bool) -> None:
    """Hand a guest to a test, or end the session: without one no test after this can be believed."""
    try:
        seat.ready(test, clean=clean)
        return
    except NoCleanGuest as error:
        hopeless = error
    if is_worker(session.config):  # only a reason to stop reaches the process with the terminal
        session.shouldstop = hopeless.summary
        pytest.fail(str(hopeless), pytrace=False)
    pytest.exit(str(hopeless), returncode=hopeless.exit_code)
