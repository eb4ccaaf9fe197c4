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
@pytest.mark.parametrize("room", ["kext_shim", "guest"])
def test_clang_format_has_nothing_to_say(room):
    files = [str(path) for path in SOURCES if path.parent.name == room]
    assert files
    ran = subprocess.run(
        ["clang-format", "--dry-run", "-Werror", "--style=file", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("path", MODULE, ids=lambda path: path.name)
def test_kernel_differences_live_in_compat_h(path):
    text = path.read_text()
    assert path.name == "compat.h" or "LINUX_VERSION_CODE" not in text
    assert "SPDX-License-Identifier" in text.splitlines()[0]


def test_every_source_is_part_of_the_module():
    objects = (ROOT / "kext_shim" / "Kbuild").read_text()
    for path in MODULE:
        assert path.suffix == ".h" or f"{path.stem}.o" in objects, path.name
