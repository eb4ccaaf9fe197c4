# SPDX-License-Identifier: MIT
"""Several guests side by side: what pytest-xdist's workers may use, and how their words reach the terminal.

Every worker is a pytest of its own: it owns its machines, their private folders and their consoles.  What
workers share is the cache, whose locks let one make a thing while the others wait, and the results folder,
where a test's evidence has the test's own name.  Nothing here needs pytest-xdist to be installed.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Generator
from typing import Any

import pytest

from harness.pytest_plugin.asked import is_worker, machines
from harness.pytest_plugin.seat import Role, lines
from harness.vm.ram import MIB, available_memory

GUEST_OVERHEAD_MIB = 128
"""What QEMU needs beside the guest's RAM: 65 MiB after a boot, and translated code on top of it."""

WORKER_OVERHEAD_MIB = 64
"""What a pytest with this plugin needs beside its guests: 33 MiB before its first test."""

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h

# Few tests have a guest for audits as well; memory is taken as guests touch it, so there is room for that.
_SEATS = (Role.SESSION, Role.FRESH)
_CAPPED = pytest.StashKey[str]()
_OUTPUT = "iobmd"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Let no more workers be started than this host has memory for."""
    wanted = getattr(config.option, "numprocesses", None)
    if isinstance(wanted, int):  # "auto" becomes a number later, see below
        config.option.numprocesses = _capped(config, wanted)
    return (yield)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> Generator[None, int, int]:
    """Let ``-n auto`` be no more than this host has memory for."""
    return _capped(config, (yield))


def pytest_configure(config: pytest.Config) -> None:
    """Have a worker end with the process that started it; by itself it would first end its test.

    A killed worker takes its guests along: they end with it.
    """
    if is_worker(config):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@pytest.hookimpl(trylast=True)  # the guests have ended by then, and their last lines are written
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's lines to the process that has the terminal."""
    if is_worker(session.config):
        session.config.workeroutput[_OUTPUT] = list(lines(session.config))  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take a worker's lines; one that crashed leaves none."""
    told = getattr(node, "workeroutput", {}).get(_OUTPUT, [])
    kept = lines(node.config)
    kept.extend(f"[{node.gateway.id}] {line}" for line in told)
    kept.sort(key=lambda line: (line.index("]"), line.partition("]")[0]))  # a worker's own stay in order


def capped(config: pytest.Config) -> str:
    """Return why there are fewer workers than were asked for, or ``""``."""
    return config.stash.get(_CAPPED, "")


def workers_for(available: int, guest_mib: int) -> int:
    """Return how many workers fit, each with a guest in every seat; at least one.

    Args:
        available: bytes of memory the host has left.
        guest_mib: RAM of one guest in MiB.
    """
    return max(1, available // (_worker_mib(guest_mib) * MIB))


def _worker_mib(guest_mib: int) -> int:
    return len(_SEATS) * (guest_mib + GUEST_OVERHEAD_MIB) + WORKER_OVERHEAD_MIB


def _capped(config: pytest.Config, wanted: int) -> int:
    available = available_memory()
    asked_mib: int | None = config.getoption("--memory")
    guest_mib = max(one.memory_mib for one in machines(config)) if asked_mib is None else asked_mib
    if available is None or guest_mib < 1:  # the second is refused in a moment, in its own words
        return wanted
    most = getattr(config.option, "maxprocesses", None)
    asked = min(wanted, most) if most else wanted
    room = workers_for(available, guest_mib)
    if asked <= room:
        return wanted
    config.stash[_CAPPED] = (
        f"{room} worker{'' if room == 1 else 's'} instead of {asked}: each may need "
        f"{_worker_mib(guest_mib)} MiB for {len(_SEATS)} guests, and this host has {available // MIB} MiB "
        f"left; a smaller --memory makes room for more"
    )
    return room
