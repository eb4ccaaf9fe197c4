# SPDX-License-Identifier: MIT
"""C here is formatted by the .clang-format at the root, and the module keeps its own house rules."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted(path for room in ("kext_shim", "guest") for path in (ROOT / room).glob("*.[ch]"))
MODULE = sorted((ROOT / "kext_shim").glob("*.[ch]"))


@pytest.mark.skipif(shutil.which("clang-format") is None, reason="clang-format is not installed")
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_clang_format_has_nothing_to_say(path):
    ran = subprocess.run(
        ["clang-format", "--dry-run", "-Werror", "--style=file", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_both_rooms_are_looked_at():
    assert {path.parent.name for path in SOURCES} == {"kext_shim", "guest"}


@pytest.mark.parametrize("path", MODULE, ids=lambda path: path.name)
def test_kernel_differences_live_in_compat_h(path):
    text = path.read_text()
    assert path.name == "compat.h" or "LINUX_VERSION_CODE" not in text
    assert "SPDX-License-Identifier" in text.splitlines()[0]
