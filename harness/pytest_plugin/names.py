# SPDX-License-Identifier: MIT
"""Names for a guest's addresses, learnt while it answers, for the day it does not."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import BadInput, HarnessError
from harness.forensics import LineTable, Symbols
from harness.images.modules import modinfo

if TYPE_CHECKING:
    from harness.link import Guest

_FOLDER = "modules"


class Names:
    """The symbols and source lines of one guest: its kernel's, its module's, and those tests load.

    Args:
        guest: its agent answers.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._files: dict[str, Path] = {}
        guest.on_load = self._loaded
        self._learn()

    @property
    def lines(self) -> LineTable | None:
        """Source lines of the modules that have debug information; None if there is none."""
        usable = []
        for path in (self._guest.image.module.ko_debug, *self._files.values()):
            with contextlib.suppress(BadInput, OSError):  # without debug information it has no lines
                LineTable.of(path)
                usable.append(path)
        try:
            return LineTable.of(*usable) if usable else None
        except (BadInput, OSError):
            return None

    def renew(self) -> None:
        """The guest was restored: what tests have loaded is gone from it."""
        if self._files:
            self._files.clear()
            self._learn()

    def _loaded(self, ko: bytes) -> None:
        folder = self._guest.machine.workdir / _FOLDER
        with contextlib.suppress(OSError, BadInput):  # evidence will be poorer, no more
            name = modinfo(ko)["name"].replace("-", "_")
            folder.mkdir(exist_ok=True)
            path = folder / f"{name}.ko"
            path.write_bytes(ko)
            self._files[name] = path
            self._learn()

    def _learn(self) -> None:
        with contextlib.suppress(HarnessError):  # whatever is wrong with the guest shows by itself
            Symbols.of(self._guest, self._files)
