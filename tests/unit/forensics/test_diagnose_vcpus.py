# SPDX-License-Identifier: MIT
"""What the virtual processors do, from what QEMU's monitor prints."""

import pytest

from harness.forensics.vcpus import Activity, Look, activities, describe, parse

# QEMU 7.2, `info registers -a`, shortened.
RECORDED = (
    "\r\nCPU#0\r\n"
    "RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000\r\n"
    "R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000000000\r\n"
    "RIP=ffffffff81a17a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n"
    "ES =0000 0000000000000000 00000000 00000000\r\n"
    "CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\n"
    "\r\nCPU#1\r\n"
    "RIP=0000000000457e00 RFL=00000046 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\r\n"
    "\r\nCPU#2\r\n"
    "EIP=000f1234 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n"
)


def test_a_recorded_answer():
    assert parse(RECORDED) == (
        Look(0, 0xFFFFFFFF81A17A0B, 0, interrupts=True, halted=True),
        Look(1, 0x457E00, 3, interrupts=False, halted=False),
        Look(2, 0xF1234, 0, interrupts=False, halted=False),
    )


@pytest.mark.parametrize("text", ["", "unknown command: 'info registers'", "CPU#0\r\nRIP=1 CPL=0"])
def test_what_is_no_answer(text):
    assert parse(text) == ()


def look(rip: int = 0, cpl: int = 0, *, interrupts: bool = True, halted: bool = False) -> Look:
    return Look(0, rip, cpl, interrupts, halted)


@pytest.mark.parametrize(
    ("looks", "activity"),
    [
        ([look(halted=True)], Activity.IDLE),
        ([look(cpl=3), look(halted=True)], Activity.IDLE),
        ([look(halted=True, interrupts=False)], Activity.HALTED),
        ([look(halted=True, interrupts=False), look(halted=True)], Activity.IDLE),
        ([look(), look(cpl=3)], Activity.USER),
        ([look(100), look(200)], Activity.SPINNING),
        ([look(100, interrupts=False), look(200)], Activity.SPINNING),
        ([look(100), look(100_000)], Activity.KERNEL),
        ([look(100, interrupts=False), look(100_000, interrupts=False)], Activity.DEAF),
    ],
)
def test_activities(looks, activity):
    assert activities(looks) == {0: activity}


def test_in_words():
    assert describe(parse(RECORDED)[:2]) == (
        "CPU 0 idle at 0xffffffff81a17a0b; CPU 1 running in user mode at 0x457e00"
    )
