# SPDX-License-Identifier: MIT
"""What the tests of this room share: a cache of their own and a C compiler."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("IOBMD_CACHE", str(folder))
    return folder


@pytest.fixture
def compile_c(tmp_path: Path) -> Callable[..., Path]:
    """Compile headers and a source into an object file with DWARF, as the module's are."""

    def build(headers: dict[str, str], source: str, *flags: str) -> Path:
        for name, text in headers.items():
            (tmp_path / name).write_text(text)
        (tmp_path / "unit.c").write_text(source)
        target = tmp_path / "unit.o"
        options = ["-g", "-c", "-fno-eliminate-unused-debug-types", *flags]
        subprocess.run(["gcc", *options, "unit.c", "-o", str(target)], cwd=tmp_path, check=True)
        return target

    return build
