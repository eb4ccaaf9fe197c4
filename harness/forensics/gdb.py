# SPDX-License-Identifier: MIT
"""What gdb needs to know of a guest: Debian's kernels come without symbols, the module has all of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from harness.errors import HarnessError
from harness.link import GuestOSError

if TYPE_CHECKING:
    from harness.link import Guest

_MODULE: Final = "iobmd"
_TEXT: Final = ".text"
#: What debuggers look things up in; those of the module's start are freed after it.
_TELLING: Final = re.compile(r"\.(?:text|data|bss|rodata|exit\.text)(?:\.(?!str|cst)\S*)?")


def module_sections(guest: Guest) -> dict[str, int]:
    """Ask a guest where the sections of its module lie; nothing where it does not say.

    Args:
        guest: its agent answers.
    """
    try:
        with guest.image.module.ko_debug.open("rb") as file:
            names = [item.name for item in ELFFile(file).iter_sections() if _TELLING.fullmatch(item.name)]
        found = {}
        for name in names:
            address = _address(guest, name)
            if address:
                found[name] = address
        return found
    except (HarnessError, OSError, ELFError):
        return {}


def serve(guest: Guest, socket: Path) -> None:
    """Let QEMU wait for a debugger.

    Args:
        guest: its QEMU answers.
        socket: a path of less than 100 bytes; QEMU makes it.

    Raises:
        MachineFailure: QEMU does not answer.
    """
    guest.machine.qmp.hmp(f"gdbserver unix:{socket},server=on,wait=off")


def leave(guest: Guest) -> None:
    """End what `serve` began.

    Raises:
        MachineFailure: QEMU does not answer.
    """
    guest.machine.qmp.hmp("gdbserver none")


def command(guest: Guest, sections: Mapping[str, int], socket: Path) -> str:
    """Return the line that attaches gdb, with the module's functions, lines and variables at their places.

    Args:
        guest: whose module it is.
        sections: from `module_sections`; without them gdb knows no names.
        socket: as given to `serve`.
    """
    steps = ["set confirm off", "set architecture i386:x86-64"]
    if _TEXT in sections:
        others = [f"-s {name} {address:#x}" for name, address in sections.items() if name != _TEXT]
        where = " ".join([f"{sections[_TEXT]:#x}", *others])
        steps.append(f"add-symbol-file {guest.image.module.ko_debug} {where}")
    steps.append(f"target remote {socket}")
    return shlex.join(["gdb", "-q", *(word for step in steps for word in ("-ex", step))])


def _address(guest: Guest, section: str) -> int:
    """Where it lies; 0: the kernel has freed it after the module's start, or never had it."""
    try:
        return int(guest.read_file(f"/sys/module/{_MODULE}/sections/{section}"), 16)
    except GuestOSError:
        return 0
