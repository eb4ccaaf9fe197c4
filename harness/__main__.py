# SPDX-License-Identifier: MIT
"""``python -m harness`` is ``iobmd``."""

from harness.entry import main

main()
