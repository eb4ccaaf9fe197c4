# SPDX-License-Identifier: MIT
"""The last assertion of every session: of its machines nothing is left."""

from __future__ import annotations

from typing import Any

import pytest

from harness.pytest_plugin.asked import is_worker
from harness.vm.leaks import held

_BEFORE = pytest.StashKey[frozenset[str]]()
_LEAKED = pytest.StashKey[list[str]]()
_OUTPUT = "iobmd_leaked"


def pytest_configure(config: pytest.Config) -> None:
    """Note what is there already: a session may run within a test of another one."""
    config.stash[_BEFORE] = held()
    config.stash[_LEAKED] = []


@pytest.hookimpl(trylast=True)  # every fixture has been taken down by then
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session for what it has left behind; of a worker's the process with the terminal is told."""
    config = session.config
    found = leaked(config)
    before: frozenset[str] = config.stash[_BEFORE]
    found += sorted(held() - before)
    if is_worker(config):
        config.workeroutput[_OUTPUT] = found  # type: ignore[attr-defined]
    elif found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker has left behind; what a killed one had has ended with it."""
    told = getattr(node, "workeroutput", {}).get(_OUTPUT, [])
    leaked(node.config).extend(f"[{node.gateway.id}] {what}" for what in told)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what is left."""
    found = leaked(config)
    if found:
        terminalreporter.write_sep("=", "iobmd: left behind", red=True)
        terminalreporter.write_line("this session has not ended everything it started:")
        for what in found:
            terminalreporter.write_line(f"  {what}")
        terminalreporter.write_line("a test or a fixture entered a Guest or a Machine and never left it")


def leaked(config: pytest.Config) -> list[str]:
    """Return what the session is known to have left behind."""
    return config.stash.setdefault(_LEAKED, [])
