# SPDX-License-Identifier: MIT
"""Every driver of the gallery builds, loads, does what it does and unloads, on both kernel series."""

from __future__ import annotations

import contextlib
import re
import subprocess

import pytest
from audit_drivers import Driver, drivers
from audit_stage import KERNELS, MACHINES, Stage

from harness.forensics import LineTable, Taint
from harness.images import ModuleBuild
from harness.link import GuestOSError

# Breaches of these make the kernel warn by itself, once; of the others it never says a word.
WARNS = {
    "dma-from-stack",
    "dma-from-vmalloc",
    "sleeping-in-atomic",
    "unaligned-set-memory",
    "unchecked-mapping-error",
}
CASES = [
    pytest.param(kernel, driver, id=f"{kernel}-{driver.name}")
    for kernel in KERNELS
    for machine in MACHINES
    for driver in drivers()
    if driver.machine == machine
]


def lines_of_calls(build: ModuleBuild, name: str) -> set[int]:
    """Return the lines of a driver that a call stack can name: those whose calls come back to them."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", str(build.ko_debug)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    table, function, start, after_call = LineTable.of(build.ko_debug), "", 0, False
    lines = set()
    for line in listing.splitlines():
        if head := re.match(r"([0-9a-f]+) <(\S+)>:", line):
            function, start, after_call = head[2], int(head[1], 16), False
        elif code := re.match(r"\s+([0-9a-f]+):\s+(\w+)", line):
            if after_call:
                chain = table.lookup(function, int(code[1], 16) - start, module=name)
                lines |= {step.line for step in chain if step.file.endswith(f"{name}.c")}
            after_call = code[2].startswith("call")
    return lines


@pytest.mark.parametrize(("kernel", "driver"), [case for case in CASES if case.values[1].rule])
def test_a_call_stack_can_name_the_marked_line(stage: Stage, kernel: str, driver: Driver) -> None:
    """A call that is the last thing of a function is a jump, and whoever looks at the stack misses it."""
    assert driver.line in lines_of_calls(stage.build(kernel, driver), driver.name)


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
