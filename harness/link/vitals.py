# SPDX-License-Identifier: MIT
"""Where in its memory a guest shows that it lives; asked while it does, for the day it does not.

Two places, both of which stay where they are from boot to the end:

* The page with the kernel's clock that every process has mapped for its vDSO.  The kernel writes to it with
  every tick (kernel/time/vsyscall.c: update_vsyscall).  Who watches it from outside needs neither symbols nor
  an answer of the guest's.
* The note that crash dumps begin with, VMCOREINFO: it says where the kernel's log buffer and its symbol table
  are (kernel/vmcore_info.c; kernel/crash_core.c before 6.9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from harness.errors import HarnessError
from harness.link.syscalls import Nr, cstring

if TYPE_CHECKING:
    from harness.link.guest import Guest

_VVAR: Final = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ .*\[vvar\]$", re.MULTILINE)
_GPA: Final = re.compile(r"gpa: (0x[0-9a-f]+)")


@dataclass(frozen=True)
class Vitals:
    """Guest-physical addresses; None where the guest has no such thing.

    Attributes:
        clock: of the page with the kernel's clock.
        note: of VMCOREINFO.
    """

    clock: int | None = None
    note: int | None = None

    @classmethod
    def take(cls, guest: Guest) -> Self:
        """Ask a healthy guest; costs a few milliseconds, and nothing that goes wrong here is raised."""
        return cls(_asked(_clock, guest), _asked(_note, guest))

    @classmethod
    def recall(cls, memo: Mapping[str, Any]) -> Self:
        """Return those that a snapshot remembers; see `memo`."""
        kept = memo.get("vitals", {})
        return cls(kept.get("clock"), kept.get("note"))

    def memo(self) -> dict[str, Any]:
        """Return what `recall` takes."""
        return {"vitals": asdict(self)}


def _asked(question: Any, guest: Guest) -> int | None:
    try:
        found: int | None = question(guest)
    except (HarnessError, ValueError):
        return None  # what is wrong with the guest shows elsewhere; a probe less is no failure
    return found


def _clock(guest: Guest) -> int | None:
    mapped = _VVAR.search(guest.read_file("/proc/self/maps"))
    if mapped is None:
        return None
    address = int(mapped[1], 16)
    # Mapped at the first access only; the access is the kernel's own, which reads 8 bytes to write them.
    fd = guest.syscall(Nr.MEMFD_CREATE, cstring("touch"), 0, what="memfd_create").value
    try:
        guest.syscall(Nr.WRITE, fd, address, 8, what="touch the clock page")
    finally:
        guest.close(fd)
    # A processor that idles keeps the page tables of the process it ran last (arch/x86/mm/tlb.c).
    machine = guest.machine
    for cpu in range(machine.spec.cpus):
        told = machine.qmp.execute(
            "human-monitor-command", {"command-line": f"gva2gpa {address:#x}", "cpu-index": cpu}
        )
        found = _GPA.search(str(told))
        if found is not None and machine.ram.contains(int(found[1], 16), 1 << 12):
            return int(found[1], 16)
    return None


def _note(guest: Guest) -> int | None:
    place, size = guest.read_file("/sys/kernel/vmcoreinfo").split()
    address = int(place, 16)
    return address if guest.machine.ram.contains(address, int(size, 16)) else None
