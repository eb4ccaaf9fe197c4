# SPDX-License-Identifier: MIT
"""An exercise: kicks the driver and sees the mistake at once."""


def exercise(run):
    run.sh(f"echo 1 > /sys/module/{run.name}/parameters/kick")
    assert "unmap-direction" in [finding.rule.id for finding in run.findings]
