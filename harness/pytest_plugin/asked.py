# SPDX-License-Identifier: MIT
"""What a session was asked for: the machine, the kernels, and how to get at them in the user's terms."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from copy import copy
from typing import Any

import pytest
from rich.console import Console

from harness.errors import HarnessError
from harness.images import Progress, RichProgress, load_recipes, prepare_kernel
from harness.options import MachineOptions, from_namespace

_KERNELS = pytest.StashKey[list[Any]]()


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for another one (pytest-xdist)."""
    return hasattr(config, "workerinput")


def kernels(config: pytest.Config) -> list[str]:
    """What ``--kernel`` names, never empty; one that does not exist is among them as it was typed."""
    asked: str = config.getoption("--kernel")
    if asked == "all":
        return list(load_recipes())
    return [name.strip() for name in asked.split(",") if name.strip()] or [asked]


def machine_options(config: pytest.Config, kernel: str | None = None) -> MachineOptions:
    """Return the machine that was asked for.

    Args:
        config: of the session.
        kernel: which of `kernels`; the first if None.

    Raises:
        pytest.UsageError: it cannot be.
    """
    chosen = copy(config.option)
    chosen.kernel = kernel or kernels(config)[0]
    try:
        return from_namespace(chosen)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


def kernel_params(config: pytest.Config) -> list[Any]:
    """Return one pytest.param per kernel, fetched now: their releases are the ids of the tests.

    Raises:
        pytest.UsageError: a kernel cannot be had.
    """
    if _KERNELS not in config.stash:
        try:
            with uncaptured(config):
                told = progress(config)
                releases = {
                    name: prepare_kernel(machine_options(config, name).selector, told).release
                    for name in kernels(config)
                }
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[_KERNELS] = [pytest.param(name, id=release) for name, release in releases.items()]
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
        pytest.fail(str(error), pytrace=False)


@contextlib.contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let progress through to the terminal: the first download takes longer than anybody likes to stare."""
    manager = config.pluginmanager.getplugin("capturemanager")
    if manager is None:
        yield
        return
    with manager.global_and_fixture_disabled():
        yield
