# SPDX-License-Identifier: MIT
"""Where failures leave their evidence: a folder per run, one per test in it, the last few runs kept.

::

    results/latest -> 20260214-093012-4711
    results/20260214-093012-4711/tests_vm_test_it.py_test_it/...
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

KEEP_RUNS = 10
"""How many runs with failures are kept unless ``--keep-runs`` says otherwise."""

LATEST = "latest"
_NAME_MAX = 150
_INPUT = "iobmd_run"
#: The time of its start and the process that ran it; nothing else in the folder is ever removed.
_RUN = re.compile(r"\d{8}-\d{6}-(\d+)")
_SAME_NAME_MAX = 1000

_STARTED = pytest.StashKey[str]()
_MADE = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the run its name; workers have their session's."""
    own = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"
    config.stash[_STARTED] = getattr(config, "workerinput", {}).get(_INPUT, own)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist the run's name."""
    node.workerinput[_INPUT] = node.config.stash[_STARTED]


def results_root(config: pytest.Config) -> Path:
    """Return the folder with all runs."""
    given: Path = config.getoption("--results")
    # Without a configuration file pytest's root is the folder that all words of its command line have in
    # common, those that name a kernel's files among them.
    stray = config.getoption("--modules") is not None and config.inipath is None
    if stray and config.getoption("rootdir", None) is None:
        return config.invocation_params.dir / given
    return config.rootpath / given


def run_folder(config: pytest.Config) -> Path:
    """Return this run's folder; made when the first failure needs it, and older runs make room for it.

    Raises:
        OSError: the disk is full, or read-only.
    """
    root = results_root(config)
    folder = root / config.stash[_STARTED]
    if config.stash.get(_MADE, False):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config.stash[_MADE] = True
    _point_to(root, folder.name)
    prune(root, config.getoption("--keep-runs"), folder.name)
    return folder


def test_folder(config: pytest.Config, test: str) -> Path:
    """Make a folder for one failure of a test.

    Args:
        config: of the session.
        test: its id.

    Raises:
        OSError: the disk is full, or read-only.
    """
    run, name = run_folder(config), folder_name(test)
    for number in range(1, _SAME_NAME_MAX):  # it failed in its call and in its teardown, or was run again
        folder = run / (name if number == 1 else f"{name}.{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise OSError(f"{run} has {_SAME_NAME_MAX} failures of {test}")


def folder_name(test: str) -> str:
    """Return the name of a test's folder: its id, with a hash where not all of it can be in a name."""
    plain = test.replace("::", "_").replace("/", "_")
    name = re.sub(r"[^\w.\[\]=-]+", "_", plain)
    if name == plain and len(name) <= _NAME_MAX:
        return name
    return f"{name[:_NAME_MAX]}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"


def prune(root: Path, keep: int, current: str) -> tuple[Path, ...]:
    """Remove the oldest runs.

    Args:
        root: the folder with all runs.
        keep: how many stay, the current one included.
        current: name of the run that is going on; other processes' runs that go on stay as well.

    Returns:
        What was removed.
    """
    runs = sorted((path for path in root.iterdir() if _RUN.fullmatch(path.name)), key=lambda path: path.name)
    gone = []
    for path in runs[: max(0, len(runs) - max(1, keep))]:
        match = _RUN.fullmatch(path.name)
        alive = match is not None and Path(f"/proc/{match[1]}").exists()
        if path.name != current and not alive and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path)
    return tuple(gone)


def _point_to(root: Path, name: str) -> None:
    """Let ``latest`` lead to a run; what else may have that name is not ours to remove."""
    latest = root / LATEST
    if latest.exists() and not latest.is_symlink():
        return
    new = root / f".{LATEST}-{os.getpid()}"
    with contextlib.suppress(OSError):
        new.unlink(missing_ok=True)
        new.symlink_to(name)
        new.replace(latest)
