# SPDX-License-Identifier: MIT
"""Lines of a module's sources, to be shown beside their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Sources:
    """Folders of sources; each file is read once."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Name them, by module."""
        self._folders = folders
        self._files: dict[tuple[str, str], list[str]] = {}

    def line(self, module: str, file: str, number: int) -> str:
        """Return a line without the space around it; ``""`` where there is none, or several such files.

        Args:
            module: whose source.
            file: its name, or the end of its path.
            number: from 1.
        """
        if not file or number < 1 or module not in self._folders:
            return ""
        key = (module, file)
        if key not in self._files:
            self._files[key] = _lines(self._folders[module], file)
        lines = self._files[key]
        return lines[number - 1].strip() if number <= len(lines) else ""


def _lines(folder: Path, file: str) -> list[str]:
    try:
        found = [path for path in folder.rglob(Path(file).name) if path.as_posix().endswith(file)]
        return found[0].read_text(encoding="utf-8", errors="replace").splitlines() if len(found) == 1 else []
    except OSError:
        return []
