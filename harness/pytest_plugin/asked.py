# SPDX-License-Identifier: MIT
"""What a session was asked for: the machine, the kernels, and how to get at them in the user's terms."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from copy import copy

import pytest
from rich.console import Console

from harness.errors import HarnessError
from harness.images import Kernel, Progress, RichProgress, load_recipes, prepare_kernel
from harness.machines import ALL, NamedMachine, fitting, machines_named
from harness.options import MachineOptions, from_namespace

KERNEL = pytest.StashKey[str | None]()
"""Which of several kernels the image in use is of."""

_KERNELS = pytest.StashKey[dict[str, Kernel]]()
_LEFT_OUT = pytest.StashKey[dict[str, None]]()


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for another one (pytest-xdist)."""
    return hasattr(config, "workerinput")


def kernels(config: pytest.Config) -> list[str]:
    """What ``--kernel`` names, never empty; one that does not exist is among them as it was typed."""
    asked: str = config.getoption("--kernel")
    if asked == "all":
        return list(load_recipes())
    return [name.strip() for name in asked.split(",") if name.strip()] or [asked]


def kernel_asked(config: pytest.Config) -> str | None:
    """Return which of several kernels the image in use is of, as typed; None where there is only one."""
    return config.stash[KERNEL]


def machines(config: pytest.Config) -> tuple[NamedMachine, ...]:
    """What ``--machine`` names, never empty.

    Raises:
        pytest.UsageError: there is no such machine.
    """
    try:
        return machines_named(config.getoption("--machine"))
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


def several_machines(config: pytest.Config) -> bool:
    """Whether tests run on more than one machine, and carry its name in their ids."""
    return config.getoption("--machine") == ALL or len(machines(config)) > 1


def machine_options(
    config: pytest.Config, kernel: str | None = None, machine: str | None = None
) -> MachineOptions:
    """Return the machine that was asked for.

    Args:
        config: of the session.
        kernel: which of `kernels`; the first if None.
        machine: the name of one of `machines`; the first if None.

    Raises:
        pytest.UsageError: it cannot be.
    """
    chosen = copy(config.option)
    chosen.kernel = kernel or kernels(config)[0]
    chosen.machine = machine or machines(config)[0].name
    try:
        return from_namespace(chosen)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run what uses a guest once per kernel and machine, where several were asked for.

    Their fixtures are ``guest_image``, whose parameter is a kernel, and ``named_machine``. A test that wants
    an image and none of our guests runs once per kernel: it has machines of its own.

    Raises:
        pytest.UsageError: a kernel cannot be had, or cannot run on a machine that was asked for by name.
    """
    config = metafunc.config
    several = {"guest_image": len(kernels(config)) > 1, "named_machine": several_machines(config)}
    wanted = [name for name in several if several[name] and name in metafunc.fixturenames]
    if not wanted:
        return
    rows: dict[tuple[str, ...], str] = {}
    for kernel in kernels(config):
        release = _prepared(config)[kernel].release
        able = _machines_of(config, kernel) if "named_machine" in wanted else ("",)
        for machine in able:
            value = {"guest_image": kernel, "named_machine": machine}
            words = {"guest_image": release, "named_machine": machine}
            rows[tuple(value[name] for name in wanted)] = "-".join(words[name] for name in wanted)
    metafunc.parametrize(wanted, list(rows), ids=list(rows.values()), indirect=True, scope="session")


def left_out(config: pytest.Config) -> tuple[str, ...]:
    """Return which machines of ``--machine all`` a kernel cannot run on, and why; a line each."""
    lines: dict[str, None] = config.stash.setdefault(_LEFT_OUT, {})
    return tuple(lines)


def _machines_of(config: pytest.Config, kernel: str) -> tuple[str, ...]:
    """The names of the machines a kernel can run on."""
    asked = config.getoption("--machine")
    try:
        able, others = fitting(machines(config), _prepared(config)[kernel], asked=asked)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash.setdefault(_LEFT_OUT, {}).update(dict.fromkeys(others))
    return tuple(machine.name for machine in able)


def _prepared(config: pytest.Config) -> dict[str, Kernel]:
    """The kernels, fetched now: their releases are in the ids of the tests.

    Raises:
        pytest.UsageError: a kernel cannot be had.
    """
    if _KERNELS not in config.stash:
        try:
            with uncaptured(config):
                told = progress(config)
                config.stash[_KERNELS] = {
                    name: prepare_kernel(machine_options(config, name).selector, told)
                    for name in kernels(config)
                }
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[_KERNELS]


def progress(config: pytest.Config) -> Progress:
    """Return what long steps report to; several workers on one terminal write lines and redraw nothing."""
    return RichProgress(Console(file=sys.stderr, force_terminal=False) if is_worker(config) else None)


@contextlib.contextmanager
def in_its_own_words() -> Iterator[None]:
    """Fail with what the error says: the harness's own frames would only bury it."""
    try:
        yield
    except HarnessError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@contextlib.contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let progress through to the terminal: the first download takes longer than anybody likes to stare."""
    manager = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield
        return
    with manager.global_and_fixture_disabled():
        yield
