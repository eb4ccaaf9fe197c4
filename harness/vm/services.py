# SPDX-License-Identifier: MIT
"""What lives in the guest and is reached through its machine, filled in by whoever put it there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class RemoteShell(Protocol):
    """A shell in the guest, as far as this room knows one."""

    def run(
        self, command: str | Sequence[str], *, timeout: float = ..., stdin: bytes = ..., check: bool = ...
    ) -> tuple[int, bytes, bytes]:
        """Run a command: exit status, standard output, standard error."""

    def put(self, local: str | Path, remote: str) -> None:
        """Copy a file into the guest."""

    def get(self, remote: str, local: str | Path) -> None:
        """Copy a file out of the guest."""


@dataclass
class Services:
    """Ways into the guest that need a program in it.

    Attributes:
        ssh: gives the guest's shell; None where nobody answers for one.
    """

    ssh: Callable[[], RemoteShell] | None = None
