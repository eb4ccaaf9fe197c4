# SPDX-License-Identifier: MIT
"""What is said before a ledger is built."""

from pathlib import Path

import pytest

from harness.audit import build_ledger
from harness.errors import BadInput
from harness.images import Kernel, SilentProgress


def test_a_kernel_without_what_the_ledger_sees_calls_by(tmp_path):
    (tmp_path / "include/config").mkdir(parents=True)
    (tmp_path / "include/config/auto.conf").write_text("CONFIG_KPROBES=y\nCONFIG_DYNAMIC_FTRACE=y\n")
    nothing = Path("/nonexistent")
    kernel = Kernel("custom", "6.1.2-own", nothing, nothing, "", nothing, tmp_path, ())
    with pytest.raises(BadInput, match=r"audited on 6\.1\.2-own") as caught:
        build_ledger(kernel, SilentProgress())
    assert caught.value.observed == "not set: CONFIG_DYNAMIC_FTRACE_WITH_REGS"
