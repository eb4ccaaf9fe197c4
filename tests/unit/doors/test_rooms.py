# SPDX-License-Identifier: MIT
"""Who may import whom: the claim and the evidence meet in ``harness/contract`` only."""

import subprocess
import sys
from pathlib import Path

_LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def test_no_room_knows_more_than_it_may():
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", _LINT], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
