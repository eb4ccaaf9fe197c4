# SPDX-License-Identifier: MIT
"""What the monitor tells in place of a capture, and what becomes of what it cannot tell."""

import dataclasses

import pytest

from harness.oracle import Oracle, StreamError, TypesChanged
from harness.oracle.registers import same_types, updated

# As QEMU 7.2 prints it, shortened; the second processor was never started.
TOLD = """
CPU#0
RAX=0000000000000000 RBX=ffffffff82616900 RCX=0000000000000000 RDX=0000000000000000
RIP=ffffffff81a17a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
CR0=80050033 CR2=ff11000004c01000 CR3=0000000002a0a001 CR4=00351ef0
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01
CPU#1
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
EFER=0000000000000000
"""


@pytest.fixture
def two(synthetic):
    return tuple(
        dataclasses.replace(synthetic.cpu_state(0x1000, 4), index=index, pat=0x0007040600070406 + index)
        for index in range(2)
    )


def test_control_registers_are_taken_and_types_are_kept(two):
    first, second = updated(two, TOLD)
    assert (first.cr0, first.cr3, first.cr4, first.efer) == (0x80050033, 0x2A0A001, 0x351EF0, 0xD01)
    assert (second.cr0, second.cr3, second.cr4, second.efer) == (0x60000010, 0, 0, 0)
    assert [cpu.pat for cpu in (first, second)] == [cpu.pat for cpu in two]
    assert first.levels == 5
    assert same_types(two, (first, second))


@pytest.mark.parametrize(
    "change", [{"pat": 1}, {"mtrr_def_type": 1}, {"mtrr_fixed": (6,) * 11}, {"index": 7}]
)
def test_other_types_are_not_the_same(two, change):
    assert not same_types(two, (two[0], dataclasses.replace(two[1], **change)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TOLD.partition("CPU#1")[0], "different vCPUs"),
        ("", "different vCPUs"),
        (TOLD.replace("EFER=0000000000000d01", ""), "does not tell vCPU 0's EFER"),
    ],
)
def test_a_monitor_that_tells_something_else_is_not_believed(two, text, words):
    with pytest.raises(StreamError, match=words):
        updated(two, text)


@pytest.fixture
def told(synthetic):
    """A machine that cannot be captured any more, whose CPU is as it was."""
    ram = synthetic.Ram((0, 4 << 20))
    cpu = synthetic.cpu_state(0x1000, 4)
    machine = synthetic.Machine(ram, [cpu])
    machine.registers = (
        f"CPU#0\nCR0={cpu.cr0:08x} CR2=0 CR3={cpu.cr3:016x} CR4={cpu.cr4:08x}\nEFER={cpu.efer:016x}\n"
    )
    return machine


def test_a_view_says_that_its_types_were_taken_for_granted(told):
    oracle = Oracle(told)
    with oracle.frozen() as view:
        assert view.note == "as before"
        assert view.cpus == tuple(told.cpus)
    told.registers = ""
    with oracle.frozen() as view:
        assert view.note == ""


def test_types_that_changed_in_the_meantime_are_told_once(told):
    oracle = Oracle(told)
    with oracle.frozen():
        pass
    told.registers = ""
    told.cpus = [dataclasses.replace(told.cpus[0], pat=0x0007040600070406)]
    with (
        pytest.raises(TypesChanged, match="have changed while QEMU could not tell") as caught,
        oracle.frozen(),
    ):
        pass
    assert "0x0407050600070106 was taken for granted, it is 0x0007040600070406" in caught.value.observed
    with oracle.frozen() as view:
        assert view.cpus[0].pat == 0x0007040600070406


def test_another_guest_may_have_other_types(told, synthetic):
    oracle = Oracle(told)
    with oracle.frozen():
        pass
    told.registers, told.ram = "", synthetic.Ram((0, 4 << 20))
    told.cpus = [dataclasses.replace(told.cpus[0], pat=0x0007040600070406)]
    with oracle.frozen() as view:
        assert view.cpus[0].pat == 0x0007040600070406
