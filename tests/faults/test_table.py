# SPDX-License-Identifier: MIT
"""Every fault has its name, in time, and leaves nothing."""

from pathlib import Path

import agent_faults  # noqa: F401 - importing puts them into the table
import boot_faults  # noqa: F401
import channel_faults  # noqa: F401
import host_faults  # noqa: F401
import kernel_faults  # noqa: F401
import pytest
import qemu_faults  # noqa: F401
import tainted_faults  # noqa: F401
from fault_table import Fault, carry_out, dump
from left_over import Census, left_over
from stage import FAULTS, Shop, Stage


def test_the_table_is_long_enough():
    assert len(FAULTS) >= 30
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault: Fault, shop: Shop, world: Path, tmp_path: Path, record_property):
    before = Census.take(world)
    scale = shop.options.timeout_scale
    row = carry_out(fault, Stage(shop, tmp_path), lambda: left_over(before, world), scale)
    record_property("fault", dump(row))
    assert not row.faults, "\n".join(row.faults)
