# SPDX-License-Identifier: MIT
"""The pytest door: fixtures that boot a guest, speak to it and look at it from outside.

==============  ========  ===========================================================================
fixture         scope     what it is
==============  ========  ===========================================================================
``guest``       session   a booted kernel whose agent answered; one per worker
``machine``     session   the QEMU process under it
``oracle``      session   the observer outside it
``ssh``         session   a shell in the guest: ``ssh.run("uname -r")``, ``put``, ``get``
``iobmd``       function  the factories; every descriptor left over is released when the test ends
``guest_image`` session   what is booted: kernel, module, agent, initramfs
==============  ========  ===========================================================================

``--kernel`` takes one kernel, several with commas between, or ``all``: with more than one, every test that
uses a guest runs on each, and its id carries the kernel's release.  JUnit reports name the kernel, QEMU,
accelerator and module build of every such test, and the clause it decides where it is marked
``@pytest.mark.clause("C08")``.

A test that fails while it uses a guest leaves the guest's console, QEMU's command line and the command that
repeats the test in the results folder (``--results``).
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from collections.abc import Generator, Iterator
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import GuestFailure, HarnessError
from harness.images import GuestImage, RichProgress, load_recipes, prepare_kernel, source_root
from harness.iokit import IOKit
from harness.link import Guest
from harness.options import MachineOptions, add_options, from_namespace, make_guest, prepare
from harness.oracle import Oracle
from harness.vm import Machine

if TYPE_CHECKING:
    from harness.link.ssh import Ssh

_GUEST = pytest.StashKey[Guest]()
_CONSOLE_START = pytest.StashKey[int]()
_BOOTED = pytest.StashKey[list[str]]()
_KERNELS = pytest.StashKey[list[Any]]()
_CONSOLE_TAIL = 40


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the machine's options in a group of their own."""
    group = parser.getgroup("iobmd", "guests for kernel tests")
    add_options(group.addoption)
    group.addoption(
        "--results", metavar="DIR", type=Path, default=Path("results"),
        help="where failing tests leave console, QEMU command line and how to repeat; default %(default)s",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and refuse a machine or a kernel that cannot be before anything is collected."""
    config.addinivalue_line("markers", "clause(id): the clause of the contract that this test decides")
    for name in _kernels(config):
        _options(config, name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a guest once per kernel, when several were asked for."""
    if "guest_image" in metafunc.fixturenames and len(_kernels(metafunc.config)) > 1:
        metafunc.parametrize("guest_image", _prepared(metafunc.config), indirect=True, scope="session")


def pytest_report_header(config: pytest.Config) -> str:
    """Say which kernel and machine tests get; the accelerator is decided when the first guest boots."""
    options = _options(config)
    kernels = _kernels(config)
    return (
        f"iobmd: kernel{'s' if len(kernels) > 1 else ''} {', '.join(kernels)}, {options.memory_mib} MiB, "
        f"{options.cpus} vCPU, accelerator {options.accel.value}"
    )


@pytest.fixture(scope="session")
def guest_image(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> GuestImage:
    """What the session boots; fetched and built on the first use, with progress on the terminal."""
    options = _options(pytestconfig, getattr(request, "param", None))
    with _uncaptured(pytestconfig), _in_its_own_words():
        return prepare(options, RichProgress())


@pytest.fixture(scope="session")
def guest(pytestconfig: pytest.Config, guest_image: GuestImage) -> Iterator[Guest]:
    """A booted guest whose agent answered; shared by the whole session."""
    with contextlib.ExitStack() as stack:
        with _in_its_own_words():
            booted = stack.enter_context(make_guest(_options(pytestconfig), guest_image))
        pytestconfig.stash[_GUEST] = booted
        pytestconfig.stash.setdefault(_BOOTED, []).append(_summary(booted))
        yield booted
    del pytestconfig.stash[_GUEST]


@pytest.fixture(scope="session")
def machine(guest: Guest) -> Machine:
    """The QEMU process the guest runs in."""
    return guest.machine


@pytest.fixture(scope="session")
def oracle(machine: Machine) -> Oracle:
    """The observer outside the guest: page tables, PAT, MTRRs, memory."""
    return Oracle(machine)


@pytest.fixture(scope="session")
def ssh(pytestconfig: pytest.Config, guest: Guest) -> Ssh:
    """A shell in the guest; its server is brought there when the first command runs."""
    with _uncaptured(pytestconfig), _in_its_own_words():
        guest.image.ssh_payload(RichProgress())  # downloaded once
    return guest.ssh


@pytest.fixture
def iobmd(guest: Guest) -> Iterator[IOKit]:
    """The factories of IOBufferMemoryDescriptor; what a test leaves over is released for it."""
    try:
        guest.machine.check()
    except GuestFailure as gone:
        pytest.fail(f"the guest has died before this test: {gone.summary}", pytrace=False)
    session = IOKit(guest)
    try:
        yield session
    finally:
        with contextlib.suppress(GuestFailure):  # a dead guest has failed the test already, with its reason
            session.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Remember where this test's part of the console starts."""
    booted = item.config.stash.get(_GUEST, None)
    item.stash[_CONSOLE_START] = len(booted.machine.console.text()) if booted else 0
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the evidence of a failure while the guest is still there."""
    report = yield
    booted = item.config.stash.get(_GUEST, None)
    if call.when == "setup":
        item.user_properties += _properties(item, booted)
    if report.failed and booted is not None and "guest" in getattr(item, "fixturenames", ()):
        try:
            kept = f"kept in {_keep_evidence(item, booted, call)}"
        except OSError as error:  # a full disk must not take the report of the failure with it
            kept = f"not kept: {error}"
        report.sections.append(("iobmd: console of this test", "\n".join(_console_of(item, booted))))
        report.sections.append(("iobmd: evidence", f"{kept}\nrepeat with: {_repeat_command(item)}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Close with what the tests ran on and why."""
    for line in config.stash.get(_BOOTED, []):
        terminalreporter.write_line(line)


def _summary(booted: Guest) -> str:
    verdict = booted.machine.accelerator
    return (
        f"iobmd: {booted.hello.release} ({booted.image.kernel.label}), "
        f"QEMU {booted.machine.qemu_version}, {verdict.name}: {verdict.reason}; "
        f"booted in {booted.boot_seconds:.2f} s"
    )


def _options(config: pytest.Config, kernel: str | None = None) -> MachineOptions:
    chosen = copy(config.option)
    chosen.kernel = kernel or _kernels(config)[0]
    try:
        return from_namespace(chosen)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


def _kernels(config: pytest.Config) -> list[str]:
    asked: str = config.getoption("--kernel")
    if asked == "all":
        return list(load_recipes())
    return [name.strip() for name in asked.split(",") if name.strip()] or [asked]


def _prepared(config: pytest.Config) -> list[Any]:
    """Fetch every kernel now: their releases are the ids of the tests."""
    if _KERNELS not in config.stash:
        progress = RichProgress()
        try:
            with _uncaptured(config):
                releases = {
                    name: prepare_kernel(_options(config, name).selector, progress).release
                    for name in _kernels(config)
                }
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[_KERNELS] = [pytest.param(name, id=release) for name, release in releases.items()]
    return config.stash[_KERNELS]


def _properties(item: pytest.Item, booted: Guest | None) -> list[tuple[str, object]]:
    """Say for JUnit what a test ran on and what it decides."""
    found: list[tuple[str, object]] = [("clause", mark.args[0]) for mark in item.iter_markers("clause")]
    if booted is not None and "guest" in getattr(item, "fixturenames", ()):
        machine = booted.machine
        found += [
            ("kernel", booted.hello.release),
            ("recipe", booted.image.kernel.label),
            ("qemu", machine.qemu_version),
            ("accelerator", machine.accelerator.name),
            ("accelerator-reason", machine.accelerator.reason),
            ("module", booted.image.module.build_id),
        ]
    return found


@contextlib.contextmanager
def _in_its_own_words() -> Iterator[None]:
    """Fail with what the error says: the harness's own frames would only bury it."""
    try:
        yield
    except HarnessError as error:
        pytest.fail(str(error), pytrace=False)


@contextlib.contextmanager
def _uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let progress through to the terminal: the first download takes longer than anybody likes to stare."""
    manager = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield
        return
    with manager.global_and_fixture_disabled():
        yield


def _console_of(item: pytest.Item, booted: Guest) -> list[str]:
    text = booted.machine.console.text()[item.stash.get(_CONSOLE_START, 0) :]
    lines = text.splitlines()[-_CONSOLE_TAIL:]
    return lines or ["(the kernel said nothing during this test)"]


def _repeat_command(item: pytest.Item) -> str:
    options = _options(item.config)
    # Elsewhere than in this project the plugin runs in the caller's own environment.
    door = ["images/bootstrap"] if item.config.rootpath == source_root() else []
    words = [*door, "pytest", item.nodeid, "--kernel", item.config.getoption("--kernel")]
    words += ["--memory", str(options.memory_mib), "--cpus", str(options.cpus)]
    words += ["--accel", options.accel.value]
    for name in ("modules", "headers"):
        folder = getattr(options, name)
        words += [f"--{name}", str(folder)] if folder else []
    return shlex.join(words)


def _keep_evidence(item: pytest.Item, booted: Guest, call: pytest.CallInfo[None]) -> Path:
    name = re.sub(r"[^\w.\[\]=-]+", "_", item.nodeid)[:150]
    results: Path = item.config.getoption("--results")
    folder = item.config.rootpath / results / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "console.log").write_text(booted.machine.console.text(), errors="replace")
    (folder / "qemu.sh").write_text(
        f"# as it was run: {booted.machine.command()}\n{booted.machine.repro_command()}\n"
    )
    there = shlex.quote(str(item.config.rootpath))
    (folder / "repeat.sh").write_text(f"cd {there}\n{_repeat_command(item)}\n")
    if call.excinfo is not None:
        (folder / "error.txt").write_text(str(call.excinfo.value) + "\n")
    return folder
