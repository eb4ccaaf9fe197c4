# SPDX-License-Identifier: MIT
"""Names of a real kernel's addresses, its vCPUs from outside, and the end of one that panics."""

from __future__ import annotations

import re

import pytest

from harness.errors import GuestFailure
from harness.forensics import LineTable, SplatKind, Symbols, Taint, backtraces, splats
from harness.forensics.kallsyms import symbols_in
from harness.forensics.kernel_log import numbers

LINE = re.compile(r"([0-9a-f]{16}) ([tTwW]) (\S+)(?:\t\[(\w+)\])?")
KERNEL_HALF = 0xFFFF_8000_0000_0000
# In some unwound stack of every kernel there is one of these at the bottom.
BOTTOMS = {"do_idle", "do_syscall_64", "kthread", "ret_from_fork", "cpu_startup_entry", "entry_SYSCALL_64"}


@pytest.fixture
def symbols(guest):
    return Symbols.of(guest)


def test_every_function_has_the_kernels_own_name(guest, symbols):
    told = guest.read_file("/proc/kallsyms").decode()
    names = {}
    for found in LINE.finditer(told):
        address, module = int(found[1], 16), found[4] or ""
        if address >= KERNEL_HALF and module in ("", "iobmd"):
            names.setdefault((address, module), set()).add(found[3])
    assert len(names) > 40_000
    assert sum(module == "iobmd" for _, module in names) > 100
    for (address, module), known in names.items():
        frame = symbols.frame(address)
        assert (frame.offset, frame.module) == (0, module), (hex(address), frame, known)
        assert frame.symbol in known
        assert symbols.is_code(address)
    assert symbols.address("jiffies_64") >= KERNEL_HALF


def test_the_table_in_memory_is_what_the_kernel_tells(guest):
    facts = numbers(guest.machine.ram.read(guest.vitals.note, 4096))
    read = [
        f"{address:016x} {letter} {name}" for address, letter, name in symbols_in(guest.machine.ram, facts)
    ]
    told = guest.read_file("/proc/kallsyms").decode().splitlines()
    assert read == [line for line in told if "\t[" not in line and line >= "ffff8"]
    assert len(read) > 50_000


def test_a_dead_guest_that_was_never_asked(fresh_guest):
    fresh_guest.machine.qmp.execute("stop")
    try:
        symbols = Symbols.known(fresh_guest)
        assert symbols is not None
        assert symbols.name(symbols.address("do_idle") + 3).startswith("do_idle+0x3/")
        vcpu = backtraces(fresh_guest.machine, symbols)[0]
        assert vcpu.user or vcpu.rip.size
    finally:
        fresh_guest.machine.qmp.execute("cont")


def test_every_function_of_the_module_has_source_lines(guest, symbols):
    table = LineTable.of(guest.image.module.ko_debug)
    (module,) = [module for module in symbols.modules if module.name == "iobmd"]
    own = [name for name in module.table.names if name.startswith("iobmd")]
    assert len(own) > 100
    without = [name for name in own if not table.lookup(name, 1, module="iobmd", exact=True)]
    assert len(without) <= len(own) // 50, without  # padding and thunks have none
    files = {table.lookup(name, 1, module="iobmd", exact=True)[-1].file for name in set(own) - set(without)}
    assert {"iobmd_main.c", "iobmd_map.c", "iobmd_memory.c"} <= files


def test_vcpus_from_outside(guest, symbols):
    found = backtraces(guest.machine, symbols, lines=LineTable.of(guest.image.module.ko_debug))
    assert [vcpu.index for vcpu in found] == list(range(guest.options.cpus))
    for vcpu in found:
        if not vcpu.user:
            assert vcpu.rip.size > 0
            assert {frame.symbol for frame in (vcpu.rip, *vcpu.frames)} & BOTTOMS
        assert f"vCPU {vcpu.index}: " in vcpu.render()
    guest.link.ping(timeout=30)  # and it goes on


def test_taint_of_a_guest_with_its_module(guest):
    taint = Taint.read(guest.read_file("/proc/sys/kernel/tainted"))
    assert Taint.OOT_MODULE in taint
    assert not taint.faults


@pytest.mark.expect_oops("sysrq triggered crash")
def test_a_panic_on_request(fresh_guest):
    symbols = Symbols.of(fresh_guest)
    console = fresh_guest.machine.console
    mark = console.mark()
    with pytest.raises(GuestFailure):
        fresh_guest.write_file("/proc/sysrq-trigger", b"c")
    assert console.wait_end(10)
    (panic,) = splats(console.text(mark))
    assert panic.kind is SplatKind.PANIC
    assert panic.title == "Kernel panic - not syncing: sysrq triggered crash"
    called = [frame.symbol for frame in panic.frames if frame.sure]
    assert called.index("sysrq_handle_crash") < called.index("do_syscall_64")
    assert Symbols.known(fresh_guest) is symbols
    for frame in panic.frames:  # what the kernel says of itself at the end is what was read before
        if frame.sure and not frame.module:
            again = symbols.frame(symbols.address(frame.symbol) + frame.offset, exact=False)
            assert (again.symbol, again.offset) == (frame.symbol, frame.offset)
