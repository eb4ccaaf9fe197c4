# SPDX-License-Identifier: MIT
"""The gallery: small drivers, each with one fault that its source names, and twins without it.

A driver is a folder with a Kbuild and one C file of the same name.  Comments in the C file say what it is::

    /* One sentence: what it does wrong, or does well. */          the second line
    /* TWIN: rule, rule */                    does well what these rules are about; any number of such lines
    /* NEEDS: word word */                    what it needs to show itself, words of NEEDS
    statement; /* FAULT: rule */              the line a finding has to name

The marked line is one that a call stack can name: where a device is given a wrong address, what is marked is
the call that should have made it right.  ``virt_to_phys`` has no such call, and what it writes into registers
nobody sees: it marks what it should have used, the call that gave the memory its address on the bus.

A driver has one FAULT or some TWIN, never both and never neither.  Its parameters ``va`` and ``dma`` are what
an observer has to be told until the ledger finds them by itself: address in the kernel, address on the bus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

GALLERY = Path(__file__).with_name("gallery")
NEEDS = {
    "edu": "QEMU's teaching device",
    "narrow": "the device drives 24 address lines",
    "high": "there is RAM above 4 GiB",
    "iommu": "the device is behind a DMA remapping unit",
    "mmap": "somebody has to map its device node",
    "refusal": "its probe fails, and that is the point",
}

_RULE = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_FAULT = re.compile(rf"\S.*; /\* FAULT: ({_RULE}) \*/$")
_TWIN = re.compile(rf"^/\* TWIN: ({_RULE}(?:, {_RULE})*) \*/$")
_NEED = re.compile(r"^/\* NEEDS: ([a-z]+(?: [a-z]+)*) \*/$")
_ABOUT = re.compile(r"^/\* ([A-Z].*[.]) \*/$")
_MARK = re.compile(r"\b(FAULT|TWIN|NEEDS)\b")


class BadMarks(ValueError):
    """A driver's source does not say what it is as the grammar wants it."""


@dataclass(frozen=True)
class Driver:
    """One driver of the gallery.

    Attributes:
        name: of the folder, the C file and the module.
        folder: its sources.
        about: what it does, a sentence.
        rule: the rule it breaks, ``""`` for a twin.
        line: the line that breaks it, from 1; 0 for a twin.
        twin_of: rules a twin must not be accused of.
        needs: words of `NEEDS`.
    """

    name: str
    folder: Path
    about: str
    rule: str
    line: int
    twin_of: tuple[str, ...]
    needs: frozenset[str]

    @property
    def machine(self) -> str:
        """Which of `test_gallery`'s machines it runs in."""
        return next((word for word in ("iommu", "narrow", "high") if word in self.needs), "plain")


def drivers() -> tuple[Driver, ...]:
    """Return every driver by name.

    Raises:
        BadMarks: one says nothing that can be read.
    """
    return tuple(read(folder) for folder in sorted(GALLERY.iterdir()) if (folder / "Kbuild").is_file())


def read(folder: Path) -> Driver:
    """Read one driver's marks.

    Raises:
        BadMarks: they break the grammar; the message says where.
    """
    source = folder / f"{folder.name}.c"
    lines = source.read_text(encoding="utf-8").splitlines()
    faults: list[tuple[str, int]] = []
    twins: list[str] = []
    needs: list[str] = []
    for number, line in enumerate(lines, 1):
        if not _MARK.search(line):
            continue
        if found := _FAULT.search(line):
            faults.append((found[1], number))
        elif found := _TWIN.match(line):
            twins += found[1].split(", ")
        elif found := _NEED.match(line):
            needs += found[1].split()
        else:
            raise BadMarks(f"{source}:{number}: no mark of the grammar: {line.strip()}")
    about = _ABOUT.match(lines[1])
    if about is None:
        raise BadMarks(f"{source}:2: the second line has to be a sentence about the driver")
    if len(faults) + bool(twins) != 1:
        raise BadMarks(f"{source}: {len(faults)} faults and {len(twins)} rules it keeps")
    if unknown := set(needs) - NEEDS.keys():
        raise BadMarks(f"{source}: nobody has {', '.join(sorted(unknown))}")
    rule, line = faults[0] if faults else ("", 0)
    return Driver(folder.name, folder, about[1], rule, line, tuple(twins), frozenset(needs))
