# SPDX-License-Identifier: MIT
"""What the virtual processors are doing, from QEMU's registers, a few looks in a row."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

_BLOCK: Final = re.compile(r"^CPU#(\d+)", re.MULTILINE)
_FIELDS: Final = {
    "rip": re.compile(r"\b[RE]IP=([0-9a-f]+)"),
    "flags": re.compile(r"\b(?:RFL|EFL)=([0-9a-f]+)"),
    "cpl": re.compile(r"\bCPL=(\d)"),
    "halted": re.compile(r"\bHLT=(\d)"),
}
_INTERRUPT_FLAG: Final = 1 << 9
#: A loop that waits for something fits into this many bytes; code that gets on does not stay in it.
_TIGHT: Final = 256


class Activity(Enum):
    """What a processor does over several looks."""

    #: Halted until an interrupt comes.
    IDLE = "idle"
    #: Halted with interrupts off: only an NMI wakes it.
    HALTED = "halted with interrupts off"
    #: In user mode, at least in one look.
    USER = "running in user mode"
    #: In the kernel with interrupts off in every look: nothing but an NMI reaches it.
    DEAF = "looping in the kernel with interrupts off"
    #: In the kernel in every look, at one place.
    SPINNING = "spinning in the kernel"
    #: In the kernel in every look, here and there.
    KERNEL = "busy in the kernel"


@dataclass(frozen=True)
class Look:
    """One processor at one moment.

    Attributes:
        cpu: its number.
        rip: instruction pointer; under TCG that of a moment ago.
        cpl: privilege level; 3 is user mode.
        interrupts: whether it takes them.
        halted: whether it sleeps in HLT.
    """

    cpu: int
    rip: int
    cpl: int
    interrupts: bool
    halted: bool


def parse(text: str) -> tuple[Look, ...]:
    """Read the monitor's ``info registers -a``; a block that lacks a field is left out."""
    blocks = [*_BLOCK.finditer(text)]
    found: list[Look] = []
    for match, after in zip(blocks, [*blocks[1:], None], strict=False):  # one None more where there is none
        block = text[match.start() : after.start() if after else len(text)]
        fields = {name: pattern.search(block) for name, pattern in _FIELDS.items()}
        values = {name: hit[1] for name, hit in fields.items() if hit is not None}
        if len(values) == len(_FIELDS):
            interrupts = bool(int(values["flags"], 16) & _INTERRUPT_FLAG)
            rip, cpl, halted = int(values["rip"], 16), int(values["cpl"]), values["halted"] == "1"
            found.append(Look(int(match[1]), rip, cpl, interrupts, halted))
    return tuple(found)


def activities(looks: Sequence[Look]) -> dict[int, Activity]:
    """Return what each processor did over all *looks*, by its number."""
    return {
        cpu: _activity([look for look in looks if look.cpu == cpu])
        for cpu in sorted({look.cpu for look in looks})
    }


def describe(looks: Sequence[Look]) -> str:
    """Say it for people: ``CPU 0 spinning in the kernel at 0xffffffff81a17a0b``."""
    words: list[str] = []
    for cpu, activity in activities(looks).items():
        last = [look for look in looks if look.cpu == cpu][-1]
        words.append(f"CPU {cpu} {activity.value} at {last.rip:#x}")
    return "; ".join(words)


def _activity(looks: Sequence[Look]) -> Activity:
    if any(look.halted for look in looks):
        idle = any(look.interrupts for look in looks if look.halted)
        return Activity.IDLE if idle else Activity.HALTED
    if any(look.cpl == 3 for look in looks):
        return Activity.USER
    if not any(look.interrupts for look in looks):
        return Activity.DEAF
    places = [look.rip for look in looks]
    return Activity.SPINNING if max(places) - min(places) < _TIGHT else Activity.KERNEL
