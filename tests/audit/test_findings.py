# SPDX-License-Identifier: MIT
"""Every faulty driver of the gallery is found, with its rule and its line alone; every twin with nothing."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from audit_drivers import Driver, drivers
from audit_stage import KERNELS, MACHINES, Stage

CASES = [
    pytest.param(kernel, driver, id=f"{kernel}-{driver.name}")
    for kernel in KERNELS
    for machine in MACHINES
    for driver in drivers()
    if driver.machine == machine
]


@pytest.mark.parametrize(("kernel", "driver"), CASES)
def test_what_is_found_is_what_is_wrong(stage: Stage, kernel: str, driver: Driver) -> None:
    with stage.audit(kernel, driver) as audit:
        found = audit.run()
    told = "\n\n".join(one.render() for one in found)
    places = {(one.rule.id, PurePath(one.site.file).name, one.site.line) for one in found}
    wanted = {(driver.rule, f"{driver.name}.c", driver.line)} if driver.rule else set()
    assert places == wanted, told
    assert all(one.driver == one.module == driver.name and one.evidence for one in found), told
