# SPDX-License-Identifier: MIT
"""Every driver of the gallery builds, loads, does what it does and unloads, on both kernel series."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
from audit_drivers import Driver, drivers
from audit_stage import KERNELS, MACHINES, Stage

from harness.forensics import Taint
from harness.link import GuestOSError

# What a faulty driver may leave in the kernel's conscience: its own warnings, and pages it mistreated.
WARNS = {"dma-from-stack", "dma-from-vmalloc", "sleeping-in-atomic", "unaligned-set-memory",
         "unchecked-mapping-error", "pool-double-free"}  # fmt: skip
CASES = [
    pytest.param(kernel, driver, id=f"{kernel}-{driver.name}")
    for kernel in KERNELS
    for machine in MACHINES
    for driver in drivers()
    if driver.machine == machine
]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Where they are shown."""
    theatre = Stage()
    try:
        yield theatre
    finally:
        theatre.close()


@pytest.mark.parametrize(("kernel", "driver"), CASES)
def test_it_builds_loads_and_unloads(stage: Stage, kernel: str, driver: Driver) -> None:
    build = stage.build(kernel, driver)
    assert not re.search(r"\bwarning\b", build.log.read_text(), re.IGNORECASE)
    with stage.show(kernel, driver) as show:
        before = Taint.read(show.guest.read_file("/proc/sys/kernel/tainted"))
        show.load()
        assert show.bound == ("refusal" not in driver.needs)
        with show.mapped() if "mmap" in driver.needs else contextlib.nullcontext():
            pass
        show.unload()
        show.guest.link.ping()
        with pytest.raises(GuestOSError):
            show.guest.read_file(f"/sys/module/{driver.name}/initstate")
        new = Taint.read(show.guest.read_file("/proc/sys/kernel/tainted")).faults & ~before
        assert not new & ~Taint.WARN, new.names
        assert not new or driver.rule in WARNS, show.log()[-3000:]
