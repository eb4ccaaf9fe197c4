# SPDX-License-Identifier: MIT
"""C here is formatted by the .clang-format at the root, and the module keeps its own house rules."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("kext_shim", "kext_shim/ledger", "guest")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).glob("*.[ch]"))
MODULE = [path for path in SOURCES if path.is_relative_to(ROOT / "kext_shim")]


@pytest.mark.skipif(shutil.which("clang-format") is None, reason="clang-format is not installed")
@pytest.mark.parametrize("room", ROOMS)
def test_clang_format_has_nothing_to_say(room):
    files = [str(path) for path in SOURCES if path.parent == ROOT / room]
    assert files
    ran = subprocess.run(
        ["clang-format", "--dry-run", "-Werror", "--style=file", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("path", MODULE, ids=lambda path: str(path.relative_to(ROOT / "kext_shim")))
def test_kernel_differences_live_in_compat_h(path):
    text = path.read_text()
    assert path.name == "compat.h" or "LINUX_VERSION_CODE" not in text
    assert "SPDX-License-Identifier" in text.splitlines()[0]


def test_every_source_is_part_of_the_module():
    for path in MODULE:
        objects = path.with_name("Kbuild").read_text()
        assert path.suffix == ".h" or f"{path.stem}.o" in objects, path.name
