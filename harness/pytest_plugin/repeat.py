# SPDX-License-Identifier: MIT
"""How to run a test again: as words for a shell, and as the record `iobmd repro` reads."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

import pytest

from harness.errors import FailureKind
from harness.images import source_root
from harness.pytest_plugin.asked import kernels, machine_options
from harness.pytest_plugin.seat import Seat
from harness.repro import KernelFiles, Record

#: What decides the order of a set of strings, and with it now and then how a test goes.
_ENVIRONMENT = ("PYTHONHASHSEED", "PYTHONPATH")


def command(item: pytest.Item) -> str:
    """Return the words that run a test again, on the same machine."""
    # Elsewhere than in this project the plugin runs in the caller's own environment.
    door = ["images/bootstrap"] if item.config.rootpath == source_root() else []
    return shlex.join([*door, "pytest", plain_id(item), *_machine(item.config), *_seeds(item)])


def plain_id(item: pytest.Item) -> str:
    """Return a test's id as a user types it: ``--dist loadgroup`` appends ``@GROUP``."""
    if getattr(item.config.option, "loadgroup", False) and item.get_closest_marker("xdist_group"):
        return item.nodeid.rpartition("@")[0]
    return item.nodeid


def record(item: pytest.Item, kind: FailureKind | None, seats: tuple[Seat, ...]) -> dict[str, Any]:
    """Return what `harness.repro.run` needs to run a failed test again.

    Args:
        item: the test.
        kind: of its failure, or None.
        seats: the guests it used; not empty.

    Raises:
        OSError: the kernel's file cannot be read.
    """
    found = Record(
        test=plain_id(item),
        root=str(item.config.rootpath),
        kernel=KernelFiles.of(seats[0].ground.kernel or kernels(item.config)[0], seats[0].guest.image.kernel),
        machine=tuple(_machine(item.config)),
        settings=(*_settings(item.config), *_seeds(item)),
        environment={name: os.environ.get(name) for name in _ENVIRONMENT},
        failure=kind.word if kind is not None else "",
    )
    return found.to_json()


def _machine(config: pytest.Config) -> list[str]:
    options = machine_options(config)
    words = ["--kernel", config.getoption("--kernel"), "--machine", config.getoption("--machine")]
    for name, value in (("--memory", options.memory_mib), ("--cpus", options.cpus)):
        words += [name, str(value)] if value is not None else []
    words += ["--accel", options.accel.value]
    for name in ("modules", "headers"):
        folder = getattr(options, name)
        words += [f"--{name}", str(folder)] if folder else []
    words += ["--timeout-scale", f"{options.timeout_scale:g}"] if options.timeout_scale != 1 else []
    return words + [name for name in ("--fresh", "--no-snapshot") if config.getoption(name)]


def _settings(config: pytest.Config) -> list[str]:
    """What pytest itself was told that may decide how a test goes; not what chose or showed the tests."""
    option = config.option
    words = ["-c", str(config.inipath)] if getattr(option, "inifilename", None) else []
    for flag, name in (("-o", "override_ini"), ("-p", "plugins"), ("-W", "pythonwarnings")):
        for value in getattr(option, name, None) or ():
            words += [flag, str(value)]
    mode = getattr(option, "importmode", "prepend")
    return words + ([f"--import-mode={mode}"] if mode != "prepend" else [])


def _seeds(item: pytest.Item) -> list[str]:
    """Seeds of plugins that roll dice: what they were given, or have chosen."""
    option = item.config.option
    words = []
    hypothesis = getattr(option, "hypothesis_seed", None)
    if hypothesis is None:
        # What Hypothesis itself prints for a failure that its database does not keep.
        test = getattr(item, "obj", None)
        hypothesis = getattr(test, "_hypothesis_internal_use_generated_seed", None)
    if hypothesis is not None:
        words.append(f"--hypothesis-seed={hypothesis}")
    if _hypothesis_on_ci():
        words.append("--hypothesis-profile=ci")
    return words


def _hypothesis_on_ci() -> bool:
    """Whether Hypothesis chose its profile for CI by itself: no dice, where a desk has some."""
    hypothesis = sys.modules.get("hypothesis")
    return hypothesis is not None and hypothesis.settings.get_current_profile_name() == "ci"
